"""Recognises k-space of coils that were combined after under-sampling, which looks fully sampled and is not.

Combining coils in the image spreads the measured samples over all of k-space: what was missing then holds leaked
energy, a fraction of what was measured. Three measures see the step between the two, each for another kind of mask.
"""

import math
import os

import torch
from torch.nn.functional import avg_pool1d

from utils.errors import InputError

Tensor = torch.Tensor

# limits of the three measures; full scans and scenes stay below 1.6, 2 and 10.5, except that some scenes with
# photographs reach a roughness of 2.1 (tests/test_mri/test_combined.py)
SWING = 2.0
ROUGHNESS = 2.2
POINT_SWING = 14.0  # above that of noise alone, 13
NEIGHBOURS = 9  # lines
BRIGHTEST = 0.05  # share of the locations outside the centre that `point_swing` compares
EMPTY = 1e-9  # of the largest energy of a line: below it lines are padding


def row_swing(kspace: Tensor) -> float:
    """How much the energy of single k-space lines swings over time, apart from what their neighbours do.

    log energy of a line, less its mean over the neighbouring lines of the frame (brightness changes that all lines
    share) and less its mean over time; exp of twice the standard deviation over the outer lines, of the axis where it
    is larger. Of a cine that was sampled fully it is near 1: neighbouring lines change alike. Where only some lines
    were measured in each frame, the other lines hold leaked energy alone.

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


def row_roughness(kspace: Tensor) -> float:
    """How much the energy of a k-space line, as the mean over time, differs from that of its two neighbours.

    exp of twice the root mean square of log energy less its mean over the two neighbours, outer lines, of the axis
    where it is larger. It sees lines that are the same in every frame, which `row_swing` cannot.
    """
    found = [1.0]
    for axis in (-1, -2):
        energy = kspace.abs().double().square().mean(dim=0).sum(dim=axis)
        held = energy > EMPTY * energy.max()
        log = energy.clamp(min=1e-300).log()
        step = log[1:-1] - (log[2:] + log[:-2]) / 2
        distance = (torch.arange(1, len(log) - 1, device=log.device) - len(log) // 2).abs()
        step = step[held[1:-1] & held[2:] & held[:-2] & (distance > len(log) // 8)]
        if len(step):
            found.append(math.exp(2 * step.square().mean().sqrt().item()))
    return max(found)


def point_swing(kspace: Tensor) -> float:
    """How much the energy of the brightest locations outside the centre swings over time.

    log energy less its mean over time and over the locations of the frame; exp of twice the standard deviation. It sees
    masks that are no lines: points, or radial ones of about R = 8 and more (fewer gaps leave a smaller step).
    Noise alone has 13.
    """
    energy = kspace.abs().double().square()
    mean = energy.mean(dim=0)
    height, width = mean.shape
    ky = (torch.arange(height, device=mean.device) - height // 2) / height
    kx = (torch.arange(width, device=mean.device) - width // 2) / width
    outside = (torch.hypot(ky[:, None], kx[None]) > 1 / 12) & (mean > EMPTY * mean.max())
    if not outside.any():
        return 1.0
    values = mean[outside]
    bright = outside & (mean >= values.sort().values[int((1 - BRIGHTEST) * len(values))])
    log = energy[:, bright].clamp(min=1e-12 * energy.max()).log()
    log = log - log.mean(dim=0)
    log = log - log.mean(dim=1, keepdim=True)
    return math.exp(2 * log.square().mean().sqrt().item())


def refuse_combined_after_undersampling(kspace: Tensor, path: str | os.PathLike) -> list[str]:
    """Look at k-space `(frames, ky, kx)` that may be fully sampled only in appearance.

    Returns
    -------
    a warning where lines differ from their neighbours, as those of a mask that is the same in every frame do, but also
    those of boxes and tubes; an empty list without suspicion.

    Raises
    ------
    InputError
        where lines or samples change from frame to frame as no full scan's do.
    """
    swing, rough, point = row_swing(kspace), row_roughness(kspace), point_swing(kspace)
    what = "the coils were probably combined after under-sampling, which mixes measured and missing samples"
    mend = "Give the k-space of every coil, (frames, coils, ky, kx), with zeros where nothing was measured."
    for value, limit, which in ((swing, SWING, "lines"), (point, POINT_SWING, "samples")):
        if value > limit:
            raise InputError(
                f"{path} looks fully sampled, but the energy of its k-space {which} changes {value:.0f}-fold from "
                f"frame to frame: {what}. {mend}"
            )
    if rough > ROUGHNESS:
        return [
            f"warning: the energy of the k-space lines changes {rough:.0f}-fold from one line to the next. Unless the "
            f"object has long straight edges, {what}, and all scores are wrong. {mend}"
        ]
    return []
