"""View sharing: the missing samples of a frame are borrowed from other frames (paper, section 2.2 and Fig. 3).

Every coil is filled on its own, in k-space; `mri.operators.ForwardModel.combine` makes images of the result.
"""

from dataclasses import dataclass

import torch

from mri.lowrank.hankel import complete
from utils.errors import InputError

Tensor = torch.Tensor

WINDOWS = ("global", "local", "nearest")
SHARED_SAMPLES = 32  # fewer of two frames do not tell whether they resemble each other


@dataclass(frozen=True)
class FillReport:
    """Fractions of all k-space locations, by where they come from; they sum to 1."""

    own: float  # measured by the frame itself
    window: float  # mean over the frames of the window that measured it
    nearest: float  # from the nearest frames in time outside the window
    low_rank: float  # measured by nobody, completed by the structured low-rank operator

    def __str__(self) -> str:
        return (
            f"own samples {self.own:.1%}, window mean {self.window:.1%}, "
            f"nearest in time {self.nearest:.1%}, low rank {self.low_rank:.1%}"
        )


def share_views(
    kspace: Tensor,
    mask: Tensor,
    window: str = "nearest",
    local_window: int = 4,
    periodic: bool = False,
) -> tuple[Tensor, FillReport]:
    """Fill every frame's k-space from the frames around it.

    A frame's own samples stay. A location it did not measure gets the mean over the frames of its window
    that did; one that nobody in the window measured, the mean over the nearest frames in time that did; one
    that nobody ever measured is completed by structured low rank.

    Parameters
    ----------
    kspace
        complex `(frames, coils, ky, kx)`; values outside `mask` are ignored.
    mask
        boolean `(frames, ky, kx)`.
    window
        `global`: all frames. `local`: non-overlapping groups of `local_window` frames. `nearest`: the
        nearest frames in time that measured the location (a sliding window as short as the data allow).
    periodic
        whether the last frame is a neighbour of the first.

    Returns
    -------
    filled k-space of the same shape, and the `FillReport`.

    Raises
    ------
    InputError
        for an unknown window or a `local_window` below 1.
    """
    if window not in WINDOWS:
        raise InputError(f"pseudo-reference window '{window}' is unknown; choose one of {', '.join(WINDOWS)}.")
    if local_window < 1:
        raise InputError(f"local_window must be at least 1 frame, not {local_window}.")
    measured = torch.where(mask[:, None], kspace, 0)
    filled, known = measured.clone(), mask.clone()
    if window != "nearest":
        size = kspace.shape[0] if window == "global" else local_window
        mean, seen = _group_mean(measured, mask, size)
        filled = torch.where(known[:, None], filled, mean)
        known = known | seen
    by_window = known.double().mean().item()
    filled, known = fill_nearest(filled, known, measured, mask, periodic)
    by_time = known.double().mean().item()
    if by_time < 1:
        filled = torch.stack([complete(coil, known) for coil in filled.unbind(1)], dim=1)
    own = mask.double().mean().item()
    if window == "nearest":  # its window is the nearest frames themselves
        by_window = by_time
    return filled, FillReport(own, by_window - own, by_time - by_window, 1 - by_time)


def temporal_mean(kspace: Tensor, mask: Tensor) -> Tensor:
    """Mean over the frames that measured a location, 0 where none did: `(coils, ky, kx)`."""
    count = mask.sum(dim=0)
    return torch.where(mask[:, None], kspace, 0).sum(dim=0) / count.clamp(min=1)


def looks_periodic(kspace: Tensor, mask: Tensor) -> bool:
    """Whether the last frame is followed by the first as the other frames are by the next.

    True when the samples that the last and the first frame share differ no more than those of the pair of
    neighbours that differs most. Differences count by their distance to DC (edges move, brightness drifts). Without
    enough shared samples to tell: False.

    Parameters
    ----------
    kspace
        complex `(frames, coils, ky, kx)`.
    mask
        boolean `(frames, ky, kx)`.
    """
    frames, _, height, width = kspace.shape
    if frames < 5:
        return False
    ky = torch.arange(height, device=kspace.device) - height // 2
    kx = torch.arange(width, device=kspace.device) - width // 2
    radius = torch.hypot(ky[:, None].float(), kx[None, :].float())
    following = torch.roll(kspace, -1, dims=0)
    shared = mask & torch.roll(mask, -1, dims=0)
    count = shared.sum(dim=(1, 2))
    if count.min() < SHARED_SAMPLES:
        return False
    power = (radius * (following - kspace)).abs().square().sum(dim=1)  # of all coils
    power = torch.where(shared, power, 0).sum(dim=(1, 2)) / count
    return bool(power[-1] <= power[:-1].max())


def _group_mean(measured: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Mean over the measuring frames of each group of `size` frames, and where there is one."""
    mean, seen = torch.zeros_like(measured), torch.zeros_like(mask)
    for first in range(0, measured.shape[0], size):
        group = slice(first, first + size)
        mean[group] = temporal_mean(measured[group], mask[group])
        seen[group] = mask[group].any(dim=0)
    return mean, seen


def fill_nearest(
    filled: Tensor, known: Tensor, measured: Tensor, mask: Tensor, periodic: bool
) -> tuple[Tensor, Tensor]:
    """Fill unknown locations from the measuring frames at the smallest distance in time, ties averaged.

    k-space `filled` and `measured` is `(frames, coils, ky, kx)`; `known` and `mask` are `(frames, ky, kx)`. Returns
    `filled` and `known`, unchanged where no frame measured.
    """
    count = measured.shape[0]
    frames = torch.arange(count, device=measured.device)
    for distance in range(1, count // 2 + 1 if periodic else count):
        if known.all():
            break
        total, seen_by = torch.zeros_like(filled), torch.zeros(known.shape, device=known.device)
        for step in {distance, -distance}:
            source = frames + step
            valid = ((source >= 0) & (source < count)) | periodic
            source = source % count
            seen = mask[source] & valid[:, None, None]
            total += torch.where(seen[:, None], measured[source], 0)
            seen_by += seen
        new = ~known & (seen_by > 0)
        filled = torch.where(new[:, None], total / seen_by.clamp(min=1)[:, None], filled)
        known = known | new
    return filled, known
