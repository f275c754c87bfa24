"""The frame around every optimisation problem: one scale for all scans, and the measured samples kept."""

from collections.abc import Callable

import torch

from mri.consistency import data_consistency, scan_scale
from mri.fourier import fft2c, ifft2c

Tensor = torch.Tensor


def solve_at_unit_scale(solve: Callable[[Tensor], Tensor], kspace: Tensor, mask: Tensor) -> Tensor:
    """Divide a scan by its own scale, solve, put the measured samples back, multiply by the scale.

    Parameters
    ----------
    solve
        from measured k-space of unit scale, 0 outside `mask`, to images; both complex `(frames, height, width)`.
    kspace, mask
        the scan, of that shape; values outside `mask` are ignored.

    Returns
    -------
    images in the scan's units, whose k-space equals `kspace` on `mask`.
    """
    scale = scan_scale(kspace, mask)
    measured = torch.where(mask, kspace, 0) / scale
    solution = solve(measured)
    return ifft2c(data_consistency(fft2c(solution), measured, mask)) * scale
