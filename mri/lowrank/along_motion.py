"""Low rank along the motion: patches followed from frame to frame, as an operator of the optimization unit.

Yoon et al. 2014 (motion-adaptive patch-based low rank, cardiac cine): `mri.lowrank.locally` groups the patches at one
position over time; here a group holds, from every frame, the patch that resembles a patch of the reference frame most.
A structure that moves without changing then has rank one.

`track` and `shrink_tracks` have a plain form for every device and, for CPUs with numba, a fused one in
`mri.lowrank.fused`, with the same results.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch.nn.functional import avg_pool2d, pad

from mri.lowrank.locally import check_patch
from mri.operators import ForwardModel

Tensor = torch.Tensor

MEMBERS = 16  # frames of a group, at most: those nearest in time to the reference frame
REFERENCES = 4  # reference frames for every MEMBERS frames; of shorter scans 4 or a few more
SEARCH = 3  # pixels in each direction in which a patch is looked for
NEARNESS = 1e-3  # a match d pixels away must be better by a factor of (1 + NEARNESS d²), which decides near ties
TRACKINGS, APART = 4, 10  # how often the patches are looked for, at most, and steps between, at least
GROUPS = 4096  # handled at once by the plain form: bounds the memory beside a few copies of the scan
FUSED = importlib.util.find_spec("numba") is not None  # whether CPUs use `mri.lowrank.fused`


@dataclass(frozen=True)
class Tracks:
    """Where the patches of every group lie.

    Attributes
    ----------
    corners
        `(groups, members)`: upper left pixel of a patch in the flattened `(frames, height, width)`; patches wrap
        around the image.
    patch
        side of a patch, pixels.
    counts
        `(frames, height, width)`: patches that cover a pixel; some may be covered by none.
    """

    corners: Tensor
    patch: int
    counts: Tensor


def track(image: Tensor, patch: int, periodic: bool = False) -> Tracks:
    """Follow the patches of every reference frame through the frames nearest to it, one patch of each.

    Parameters
    ----------
    image
        complex `(frames, height, width)`.
    patch
        side, pixels; the patches of a reference frame start every half side.
    periodic
        the last frame is followed by the first.

    Raises
    ------
    InputError
        when the patch is larger than the image.
    """
    frames, height, width = image.shape
    check_patch(patch, height, width)
    members = min(frames, MEMBERS)
    references = list(range(0, frames, max(1, members // REFERENCES)))
    near = torch.stack([nearest_frames(frames, reference, periodic)[:members] for reference in references])
    near = near.to(image.device)
    places = _places(image, references, near, patch)
    corners = (places + near[:, :, None, None] * (height * width)).flatten(2).mT.flatten(0, 1).contiguous()
    return Tracks(corners, patch, _counts(image.shape, corners, patch))


def _places(image: Tensor, references: list[int], near: Tensor, patch: int) -> Tensor:
    """Where the patches of the reference frames are found in the frames near to them: row · width + column.

    int64 `(references, members, rows, columns)`, the patches starting every half side.
    """
    if _is_fused(image):
        from mri.lowrank.fused import match_patches

        return match_patches(image, references, near, patch, stride_of(patch), SEARCH, _moves(), NEARNESS)
    _, height, width = image.shape
    stride = stride_of(patch)
    rows = torch.arange(0, height, stride, device=image.device)[:, None]
    columns = torch.arange(0, width, stride, device=image.device)
    channels = torch.view_as_real(image).permute(0, 3, 1, 2).contiguous()
    found = []
    for reference, frames in zip(references, near, strict=True):
        others, own = channels[frames], channels[reference]
        best = image.new_full((len(frames), len(rows), len(columns)), math.inf, dtype=torch.float32)
        places = torch.zeros(best.shape, dtype=torch.long, device=image.device)
        for down, right in _moves():
            difference = (torch.roll(others, (-down, -right), dims=(2, 3)) - own).square_().sum(1, keepdim=True)
            difference = pad(difference, (0, patch - 1, 0, patch - 1), mode="circular")
            difference = avg_pool2d(difference, (1, patch), stride=(1, stride))
            difference = avg_pool2d(difference, (patch, 1), stride=(stride, 1))[:, 0]
            difference *= 1 + NEARNESS * (down * down + right * right)
            better = difference < best
            best = torch.where(better, difference, best)
            here = (rows + down) % height * width + (columns + right) % width
            places = torch.where(better, here, places)
        found.append(places)
    return torch.stack(found)


def _counts(shape: torch.Size, corners: Tensor, patch: int) -> Tensor:
    """How many patches cover each pixel."""
    starts = torch.zeros(shape, device=corners.device)
    flat = corners.flatten()
    starts.view(-1).index_add_(0, flat, torch.ones(flat.shape, device=corners.device))
    for axis in (1, 2):
        starts = sum((torch.roll(starts, i, axis) for i in range(1, patch)), starts)
    return starts


def _is_fused(image: Tensor) -> bool:
    return FUSED and image.device.type == "cpu" and image.dtype == torch.complex64


def stride_of(patch: int) -> int:
    """Pixels between the patches of a reference frame."""
    return max(1, patch // 2)


def _moves() -> list[tuple[int, int]]:
    """Rows down and columns to the right within the search, the nearest first: of equal matches it is taken."""
    reach = range(-SEARCH, SEARCH + 1)
    moves = list(product(reach, reach))
    return sorted(moves, key=lambda move: move[0] ** 2 + move[1] ** 2)


def nearest_frames(count: int, reference: int, periodic: bool) -> Tensor:
    """All frames of a scan of `count`, those nearest in time to `reference` first."""
    distance = (torch.arange(count) - reference).abs()
    if periodic:
        distance = torch.minimum(distance, count - distance)
    return distance.argsort(stable=True)


def shrink_tracks(image: Tensor, tracks: Tracks, threshold: float, shift: tuple[int, int] = (0, 0)) -> Tensor:
    """Shrink the singular values s of every group by the non-negative garrote, s → s (1 − threshold²/s²)₊.

    The garrote hardly touches the large values, which soft thresholds lower as much as the small ones.

    Parameters
    ----------
    image
        complex `(frames, height, width)`.
    threshold
        in the image's units; singular values below it vanish.
    shift
        of all patches, pixels; drawing it at random removes the seams between patches.

    Returns
    -------
    the mean of the patches over every pixel, `(frames, height, width)`; a pixel of no patch stays as it is.
    """
    if image.requires_grad:  # training through the steps: backwards, as if nothing had been shrunk
        with torch.no_grad():
            removed = image - shrink_tracks(image.detach(), tracks, threshold, shift)
        return image - removed
    frames, height, width = image.shape
    rolled = torch.roll(image, (-shift[0], -shift[1]), dims=(1, 2))
    if _is_fused(image):
        from mri.lowrank.fused import shrink_groups

        sums = shrink_groups(rolled, tracks.corners, tracks.patch, threshold)
    else:
        sums = _shrunk_sums(rolled, tracks, threshold)
    mean = sums / tracks.counts.clamp(min=1)
    return torch.roll(torch.where(tracks.counts > 0, mean, rolled), shift, dims=(1, 2))


def _shrunk_sums(image: Tensor, tracks: Tracks, threshold: float) -> Tensor:
    """Sums over every pixel of the shrunk patches, in PyTorch's operations."""
    _, height, width = image.shape
    patch = tracks.patch
    padded = pad(torch.view_as_real(image).permute(0, 3, 1, 2), (0, patch - 1, 0, patch - 1), mode="circular")
    padded = torch.view_as_complex(padded.permute(0, 2, 3, 1).contiguous())
    windows = padded.unfold(1, patch, 1).unfold(2, patch, 1)  # a view: (frames, height, width, patch, patch)
    sums = torch.zeros(*image.shape, 2, device=image.device)
    for corners in tracks.corners.split(GROUPS):
        frame, place = corners // (height * width), corners % (height * width)
        group = _garrote(windows[frame, place // width, place % width].flatten(2), threshold)
        _add_patches(sums, corners, torch.view_as_real(group))
    return torch.view_as_complex(sums)


def _add_patches(total: Tensor, corners: Tensor, values: Tensor) -> None:
    """Add `values`, `(groups, members, pixels, …)`, to the patches' pixels in `total`, `(frames, height, width, …)`."""
    _, height, width = total.shape[:3]
    patch = math.isqrt(values.shape[2])
    corners, flat = corners.flatten(), total.flatten(0, 2)
    first_row, row, column = corners // width // height * height, corners // width % height, corners % width
    values = values.flatten(0, 1)
    for i in range(patch):
        rows = (first_row + (row + i) % height) * width
        for j in range(patch):
            flat.index_add_(0, rows + (column + j) % width, values[:, patch * i + j])


def _garrote(group: Tensor, threshold: float) -> Tensor:
    """Groups `(groups, members, pixels)` with shrunk singular values, by the smaller of their Gram matrices."""
    if group.shape[1] > group.shape[2]:
        return _garrote(group.mT, threshold).mT
    squared, vectors = torch.linalg.eigh(group @ group.mH)
    gain = (1 - threshold**2 / squared.clamp(min=1e-30)).clamp(min=0)
    return (vectors * gain[:, None, :]) @ (vectors.mH @ group)


@dataclass(frozen=True)
class Schedule:
    """Noise levels ν of the steps, falling geometrically; the threshold of a b²×n group is ν (b + √n).

    Attributes
    ----------
    first, last
        ν, standard deviation per pixel in units of the scan's scale.
    steps
        from `first` to `last`.
    restart
        step at which the momentum begins anew; 0: at none.
    """

    first: float = 0.05
    last: float = 0.002
    steps: int = 40
    restart: int = 0

    def noise(self, step: int) -> float:
        return self.first * (self.last / self.first) ** (step / max(self.steps - 1, 1))


class Iterate(NamedTuple):
    """Images after a step, complex `(frames, height, width)`, and what the next step needs."""

    consistent: Tensor  # with the measured samples
    low_rank: Tensor  # before the samples were put back
    momentum: Tensor  # extrapolated: what the next step shrinks
    t: float  # of FISTA
    tracks: dict[int, Tracks]  # by the side of the patches


def motion_low_rank(
    start: Tensor | Iterate,
    model: ForwardModel,
    measured: Tensor,
    patches: Sequence[int],
    schedule: Schedule | None = None,
    periodic: bool = False,
    seed: int = 0,
    follow: Callable[[Tensor, int], Tensor] | None = None,
    first: int = 0,
) -> Iterator[Iterate]:
    """Low rank along the motion and data consistency in turn, with FISTA's momentum, from large thresholds to small.

    Patches are tracked again as the image improves. The garrote is the proximal map of no convex
    function: the momentum speeds up convergence here without FISTA's guarantee.

    Parameters
    ----------
    start
        images to begin from, complex `(frames, height, width)` of unit scale; or what step `first − 1` of an earlier
        run yielded: without `follow` that run is continued exactly.
    model, measured
        A, and y `(frames, coils, ky, kx)` of unit scale, 0 outside the mask.
    patches
        sides of the patches, pixels, one a step, in turn. Small ones follow the motion better, large ones remove more
        noise.
    seed
        of the shifts of the patches.
    follow
        applied to the low-rank images of each step, called with them and the number of the step: a prior.
    first
        the step of the schedule to begin with.

    Yields
    ------
    the images after every step.
    """
    schedule = schedule or Schedule()
    generator = torch.Generator().manual_seed(seed)
    torch.randint(stride_of(1), (2 * first,), generator=generator)  # the shifts of the steps before
    tracks: dict[int, Tracks] = {}
    if isinstance(start, Iterate):
        image, momentum, t, tracks = start.consistent, start.momentum, start.t, dict(start.tracks)
    else:
        image = momentum = model.consistent(start, measured)
        t = 1.0
    for step in range(first, schedule.steps):
        if step % max(APART, math.ceil(schedule.steps / TRACKINGS)) == 0:
            tracks = {}
        if step == schedule.restart:
            t = 1.0
        patch = patches[step % len(patches)]
        if patch not in tracks:
            tracks[patch] = track(image.detach(), patch, periodic)
        threshold = schedule.noise(step) * (patch + math.sqrt(tracks[patch].corners.shape[1]))
        down, right = torch.randint(stride_of(patch), (2,), generator=generator).tolist()
        previous = image
        low_rank = shrink_tracks(momentum, tracks[patch], threshold, (down, right))
        if follow is not None:
            low_rank = follow(low_rank, step)
        image = model.consistent(low_rank, measured)
        t_next = (1 + math.sqrt(1 + 4 * t * t)) / 2
        momentum = image + (t - 1) / t_next * (image - previous)
        t = t_next
        yield Iterate(image, low_rank, momentum, t, dict(tracks))
