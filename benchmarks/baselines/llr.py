"""Locally low rank: every small patch moves in few ways."""

import torch

from benchmarks.baselines.unit_scale import solve_at_unit_scale
from mri.fourier import ifft2c
from mri.interleave import pseudo_reference
from mri.locally_low_rank import fista_locally_low_rank

Tensor = torch.Tensor

STRENGTHS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)  # λ, in units of the scan's scale


def llr(
    kspace: Tensor,
    mask: Tensor,
    strength: float,
    periodic: bool = False,
    patch: int = 8,
    iterations: int = 100,
) -> Tensor:
    """min over x of ½‖M F x − y‖² + λ Σ ‖(time × space) matrix of each patch of x‖_* (Trzasko & Manduca 2011).

    By FISTA with a new patch grid each iteration, from the nearest-in-time merge.

    Parameters
    ----------
    kspace, mask
        complex and boolean `(frames, height, width)`.
    strength
        λ, in units of the scan's scale.
    periodic
        whether the last frame is a neighbour of the first, for the start.
    patch
        its side, pixels.

    Returns
    -------
    complex `(frames, height, width)`, in the scan's units, the measured samples kept.
    """

    def solve(measured: Tensor) -> Tensor:
        start, _ = pseudo_reference(measured, mask, "nearest", periodic=periodic)
        noise_floor = strength / (patch + len(kspace) ** 0.5)  # of which the solver makes λ again
        return ifft2c(fista_locally_low_rank(start, measured, mask, noise_floor, (patch,), iterations))

    return solve_at_unit_scale(solve, kspace, mask)
