"""Recognises k-space of coils that were combined after under-sampling, which looks fully sampled and is not."""

import math
import os

import torch
from torch.nn.functional import avg_pool1d

from utils.errors import InputError

Tensor = torch.Tensor

SWING = 2.0  # see `row_swing`; full scans stay below 1.4 (tests/test_mri/test_combined.py)
NEIGHBOURS = 9  # lines


def row_swing(kspace: Tensor) -> float:
    """How much the energy of single k-space lines swings over time, apart from what their neighbours do.

    log energy of a line, less its mean over the neighbouring lines of the frame (brightness changes that all lines
    share) and less its mean over time; exp of twice the standard deviation over the outer lines, of the axis where it
    is larger. Of a cine that was sampled fully it is near 1: neighbouring lines change alike. Where only some lines
    were measured in each frame and the coils combined in the image, the other lines hold leaked energy alone.

    Parameters
    ----------
    kspace
        complex `(frames, ky, kx)`.
    """
    found = []
    for axis in (-1, -2):
        energy = kspace.abs().double().square().sum(dim=axis)  # (frames, lines)
        log = energy.clamp(min=1e-12 * energy.max()).log()
        log = log - log.mean(dim=0)
        log = log - avg_pool1d(log[:, None], NEIGHBOURS, 1, NEIGHBOURS // 2, count_include_pad=False)[:, 0]
        distance = (torch.arange(log.shape[1]) - log.shape[1] // 2).abs()
        outer = log[:, (distance > log.shape[1] // 8).to(log.device)]
        found.append(math.exp(2 * outer.square().mean().sqrt().item()))
    return max(found)


def refuse_combined_after_undersampling(kspace: Tensor, path: str | os.PathLike) -> None:
    """Raise `InputError` for k-space `(frames, ky, kx)` that is fully sampled only in appearance."""
    swing = row_swing(kspace)
    if swing > SWING:
        raise InputError(
            f"{path} looks fully sampled, but the energy of its k-space lines changes {swing:.0f}-fold from frame to "
            "frame: the coils were probably combined after under-sampling, which mixes measured and missing samples. "
            "Give the k-space of every coil, (frames, coils, ky, kx), with zeros where nothing was measured."
        )
