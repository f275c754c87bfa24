"""Data consistency and the scale of a scan: the only places where the measured samples enter."""

import torch

from mri.fourier import ifft2c
from mri.interleave import temporal_mean
from utils.errors import InputError

Tensor = torch.Tensor


def data_consistency(
    kspace: Tensor,
    measured: Tensor,
    mask: Tensor,
    noise_std: float = 0.0,
    prior_std: float = 1.0,
) -> Tensor:
    """Put the measured samples back: all of each (hard), or as far as their noise allows (soft).

    The soft form minimises |k − kspace|² / prior_std² + |k − measured|² / noise_std² at every measured
    location; `noise_std = 0` gives the hard form.

    Parameters
    ----------
    kspace, measured
        complex `(..., frames, height, width)`, in the same units as both standard deviations.
    mask
        boolean, broadcastable to them.
    """
    if noise_std == 0:
        return torch.where(mask, measured, kspace)
    trust = prior_std**2 / (prior_std**2 + noise_std**2)
    return torch.where(mask, kspace + trust * (measured - kspace), kspace)


def data_residual(kspace: Tensor, measured: Tensor, mask: Tensor) -> float:
    """‖mask (kspace − measured)‖ / ‖mask measured‖."""
    difference = torch.where(mask, kspace - measured, 0)
    return (difference.norm() / torch.where(mask, measured, 0).norm()).item()


def scan_scale(kspace: Tensor, mask: Tensor) -> float:
    """The one number that a scan is divided by: 99.9th percentile of |image of its temporal mean k-space|.

    From the measured samples alone; shapes `(frames, height, width)`.

    Raises
    ------
    InputError
        when every measured sample is zero.
    """
    magnitude = ifft2c(temporal_mean(kspace, mask)).abs().flatten()
    scale = torch.quantile(magnitude, 0.999).item()
    if scale == 0:
        raise InputError("every measured sample of the scan is zero; check the mask and the k-space.")
    return scale
