"""No optimisation problem at all: the missing samples are zero, or borrowed from the neighbouring frames."""

import torch

from mri.fourier import ifft2c
from mri.interleave import pseudo_reference

Tensor = torch.Tensor


def zero_filled(kspace: Tensor, mask: Tensor) -> Tensor:
    """x = Fᴴ M y: the images of the measured samples alone, complex `(frames, height, width)` as `kspace`."""
    return ifft2c(torch.where(mask, kspace, 0))


def nearest_merge(kspace: Tensor, mask: Tensor, periodic: bool = False) -> Tensor:
    """x = Fᴴ of k-space whose missing samples come from the nearest frames in time that measured them.

    View sharing. `periodic`: the last frame is a neighbour of the first. Shapes as for `zero_filled`.
    """
    return ifft2c(pseudo_reference(kspace, mask, "nearest", periodic=periodic)[0])
