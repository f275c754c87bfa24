"""The whole optimization unit as it was at commit 98c97d2, its search on held-out samples included, kept unchanged.

One coil, no noise: `benchmarks.speed --only motion` runs it beside today's. Its functions are those of that commit;
only the fields of its configuration became the constants below, with their defaults, and docstrings are left out.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product

import torch
from torch.nn.functional import avg_pool2d, pad
from tqdm import tqdm

from mri.fourier import fft2c, ifft2c
from mri.lowrank.locally import check_patch
from mri.masks import acs_rows, is_lines, lines_along_rows
from mri.view_sharing import share_views
from mri.weighting import RAMP_FILTER as DISTANCE_TO_DC

Tensor = torch.Tensor

NOISE_FLOOR, PATCHES, LLR_ITERATIONS, ANNEAL = 4e-4, (6, 8, 12), 100, 4.0
MOTION_PATCHES, MOTION_STEPS, MOTION_FIRST, MOTION_LAST = (4, 6, 8), 40, 0.05, 0.001
MOTION_MARGIN, WATCH, PATIENCE = 0.02, 5, 2


def optimization_unit(measured: Tensor, mask: Tensor, periodic: bool, seed: int = 0) -> Tensor:
    """Images of k-space `(frames, ky, kx)` of unit scale."""
    patch, taken = find_motion(measured, mask, periodic, seed)
    kspace = start_by_llr(measured, mask, periodic, seed)
    if patch:
        schedule = Schedule(MOTION_FIRST, MOTION_LAST, MOTION_STEPS)
        steps = motion_low_rank(kspace, measured, mask, patch, schedule, periodic, seed)
        (kspace,) = deque(islice(steps, taken), maxlen=1)
    return ifft2c(kspace)


def start_by_llr(measured: Tensor, mask: Tensor, periodic: bool, seed: int) -> Tensor:
    """k-space by `llr` from view sharing."""
    kspace = share_views(measured[:, None], mask, "nearest", periodic=periodic)[0][:, 0]
    return fista_locally_low_rank(kspace, measured, mask, NOISE_FLOOR, PATCHES, LLR_ITERATIONS, ANNEAL, seed)


def find_motion(measured: Tensor, mask: Tensor, periodic: bool, seed: int) -> tuple[int, int]:
    """Patch and number of steps, found on hidden samples; zeros where `llr` is better."""
    kept, hidden = hide(mask, seed=seed)
    if not hidden.any():
        return 0, 0
    known, found = torch.where(kept, measured, 0), (0, 0)
    start = start_by_llr(known, kept, periodic, seed)
    least = (1 - MOTION_MARGIN) * hidden_error(start, measured, hidden)
    before = math.inf
    for patch in sorted(MOTION_PATCHES, reverse=True):
        own, since = math.inf, 0
        schedule = Schedule(MOTION_FIRST, MOTION_LAST, MOTION_STEPS)
        for step, kspace in enumerate(motion_low_rank(start, known, kept, patch, schedule, periodic, seed), 1):
            if step % WATCH and step != MOTION_STEPS:
                continue
            error = hidden_error(kspace, measured, hidden)
            since = 0 if error < own else since + 1
            own = min(own, error)
            if error < least:
                least, found = error, (patch, step)
            if since == PATIENCE:
                break
        if own >= before:
            break
        before = own
    return found


def hidden_error(kspace: Tensor, measured: Tensor, hidden: Tensor) -> float:
    return DISTANCE_TO_DC(kspace - measured)[hidden].norm().item()


def data_consistency(kspace: Tensor, measured: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, measured, kspace)


def hide(mask: Tensor, fraction: float = 0.15, seed: int = 0) -> tuple[Tensor, Tensor]:
    if (rows_first := lines_along_rows(mask)) is not mask:
        kept, hidden = hide(rows_first, fraction, seed)
        return kept.mT, hidden.mT
    if not is_lines(mask):
        generator = torch.Generator().manual_seed(seed)
        hidden = mask & (torch.rand(mask.shape, generator=generator) < fraction).to(mask.device)
        return mask & ~hidden, hidden
    acs = acs_rows(mask)
    rows = acs.nonzero().flatten().tolist()
    lines = mask.any(dim=-1)
    density = lines[:, ~acs].double().mean().item() if not acs.all() else 0.0
    hidden = torch.zeros_like(mask)
    if len(rows) < 2 or density == 0:
        return mask, hidden
    period = max(2, round(1 / density))
    quarter = max(1, len(rows) // 4)
    outer = [*rows[:quarter], *rows[len(rows) - quarter :]] if len(rows) >= 4 else rows[:1]
    frames = torch.arange(len(mask), device=mask.device)
    for row in outer:
        hidden[(frames + row + seed) % period != 0, row] = True
    hidden &= mask
    return mask & ~hidden, hidden


def shrink_patches(
    image: Tensor, threshold: float, patch: int = 8, shift: tuple[int, int] = (0, 0), hard: bool = False
) -> Tensor:
    frames, height, width = image.shape
    check_patch(patch, height, width)
    rolled = torch.roll(image, shift, dims=(-2, -1))
    rows, columns = -(-height // patch), -(-width // patch)
    wrapped_rows = torch.arange(rows * patch, device=image.device) % height
    wrapped_columns = torch.arange(columns * patch, device=image.device) % width
    tiled = rolled[:, wrapped_rows[:, None], wrapped_columns[None, :]]
    casorati = tiled.reshape(frames, rows, patch, columns, patch).permute(1, 3, 2, 4, 0)
    casorati = casorati.reshape(rows * columns, patch * patch, frames)
    # the frames×frames Gram matrix has the right singular vectors and the squared singular values
    squared, vectors = torch.linalg.eigh(casorati.mH @ casorati)
    singular = squared.clamp(min=0).sqrt()
    gain = (1 - threshold / singular.clamp(min=1e-30)).clamp(min=0)
    if hard:
        gain = (gain > 0).to(gain)
    casorati = casorati @ ((vectors * gain[:, None, :]) @ vectors.mH)
    tiled = casorati.reshape(rows, columns, patch, patch, frames).permute(4, 0, 2, 1, 3)
    shrunk = tiled.reshape(frames, rows * patch, columns * patch)[:, :height, :width]
    return torch.roll(shrunk, (-shift[0], -shift[1]), dims=(-2, -1))


class LocallyLowRank:

    def __init__(
        self, noise_floor: float, patches: Sequence[int] = (8,), seed: int = 0, hard: bool = False
    ) -> None:
        self.noise_floor, self.patches, self.hard = noise_floor, patches, hard
        self.generator = torch.Generator().manual_seed(seed)
        self.calls = 0

    def __call__(self, image: Tensor, gain: float = 1.0) -> Tensor:
        patch = self.patches[self.calls % len(self.patches)]
        self.calls += 1
        shift = torch.randint(patch, (2,), generator=self.generator).tolist()
        threshold = gain * self.noise_floor * (patch + math.sqrt(len(image)))
        return shrink_patches(image, threshold, patch, tuple(shift), self.hard)


def fista_locally_low_rank(
    start: Tensor,
    measured: Tensor,
    mask: Tensor,
    noise_floor: float,
    patches: Sequence[int] = (8,),
    iterations: int = 100,
    anneal: float = 1.0,
    seed: int = 0,
    hard: bool = False,
) -> Tensor:
    low_rank = LocallyLowRank(noise_floor, patches, seed, hard)
    kspace = momentum = start
    t = 1.0
    for i in tqdm(range(iterations), desc="OU (locally low rank)", leave=False, disable=None):
        gain = anneal ** (1 - (i + 1) / iterations)
        # the gradient step of length 1 puts the measured samples back
        previous = kspace
        kspace = fft2c(low_rank(ifft2c(data_consistency(momentum, measured, mask)), gain))
        t_next = (1 + (1 + 4 * t * t) ** 0.5) / 2
        momentum = kspace + (t - 1) / t_next * (kspace - previous)
        t = t_next
    return data_consistency(kspace, measured, mask)


MEMBERS = 16  # frames of a group, at most: those nearest in time to the reference frame
REFERENCES = 4  # reference frames for every MEMBERS frames; of shorter scans 4 or a few more
SEARCH = 3  # pixels in each direction in which a patch is looked for
NEARNESS = 1e-3  # a match d pixels away must be (1 + NEARNESS d²) times as like, which decides near ties
REMATCH = 10  # steps after which the patches are looked for again
GROUPS = 4096  # handled at once: bounds the memory beside a few copies of the scan


@dataclass(frozen=True)
class Tracks:

    corners: Tensor
    patch: int
    counts: Tensor


def track(image: Tensor, patch: int, periodic: bool = False) -> Tracks:
    frames, height, width = image.shape
    check_patch(patch, height, width)
    stride = max(1, patch // 2)
    members = min(frames, MEMBERS)
    rows = torch.arange(0, height, stride, device=image.device)[:, None]
    columns = torch.arange(0, width, stride, device=image.device)
    channels = torch.view_as_real(image).permute(0, 3, 1, 2).contiguous()
    corners = []
    for reference in range(0, frames, max(1, members // REFERENCES)):
        near = nearest_frames(frames, reference, periodic)[:members].to(image.device)
        others, own = channels[near], channels[reference]
        best = image.new_full((members, len(rows), len(columns)), math.inf, dtype=torch.float32)
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
        corners.append((places + near[:, None, None] * (height * width)).flatten(1).T)
    tracks = Tracks(torch.cat(corners), patch, image.new_zeros(image.shape, dtype=torch.float32))
    for group in tracks.corners.split(GROUPS):
        _add_patches(tracks.counts, group, group.new_ones((), dtype=torch.float32).expand(*group.shape, patch**2))
    return tracks


def _moves() -> list[tuple[int, int]]:
    moves = product(range(-SEARCH, SEARCH + 1), repeat=2)
    return sorted(moves, key=lambda move: move[0] ** 2 + move[1] ** 2)


def nearest_frames(count: int, reference: int, periodic: bool) -> Tensor:
    distance = (torch.arange(count) - reference).abs()
    if periodic:
        distance = torch.minimum(distance, count - distance)
    return distance.argsort(stable=True)


def shrink_tracks(image: Tensor, tracks: Tracks, threshold: float, shift: tuple[int, int] = (0, 0)) -> Tensor:
    shape, patch = image.shape, tracks.patch
    frames, height, width = shape
    rolled = torch.roll(image, (-shift[0], -shift[1]), dims=(1, 2))
    padded = pad(torch.view_as_real(rolled).permute(0, 3, 1, 2), (0, patch - 1, 0, patch - 1), mode="circular")
    padded = torch.view_as_complex(padded.permute(0, 2, 3, 1).contiguous())
    windows = padded.unfold(1, patch, 1).unfold(2, patch, 1)  # a view: (frames, height, width, patch, patch)
    sums = torch.zeros(*shape, 2, device=image.device)
    for corners in tracks.corners.split(GROUPS):
        frame, place = corners // (height * width), corners % (height * width)
        group = _garrote(windows[frame, place // width, place % width].flatten(2), threshold)
        _add_patches(sums, corners, torch.view_as_real(group))
    mean = torch.view_as_complex(sums) / tracks.counts.clamp(min=1)
    return torch.roll(torch.where(tracks.counts > 0, mean, rolled), shift, dims=(1, 2))


def _add_patches(total: Tensor, corners: Tensor, values: Tensor) -> None:
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
    if group.shape[1] > group.shape[2]:
        return _garrote(group.mT, threshold).mT
    squared, vectors = torch.linalg.eigh(group @ group.mH)
    gain = (1 - threshold**2 / squared.clamp(min=1e-30)).clamp(min=0)
    return (vectors * gain[:, None, :]) @ (vectors.mH @ group)


@dataclass(frozen=True)
class Schedule:

    first: float = 0.05
    last: float = 0.001
    steps: int = 40

    def noise(self, step: int) -> float:
        return self.first * (self.last / self.first) ** (step / max(self.steps - 1, 1))


def motion_low_rank(
    start: Tensor,
    measured: Tensor,
    mask: Tensor,
    patch: int,
    schedule: Schedule | None = None,
    periodic: bool = False,
    seed: int = 0,
) -> Iterator[Tensor]:
    schedule = schedule or Schedule()
    generator = torch.Generator().manual_seed(seed)
    kspace = momentum = data_consistency(start, measured, mask)
    t, tracks = 1.0, None
    for step in tqdm(range(schedule.steps), desc=f"OU (along motion, {patch}×{patch})", leave=False, disable=None):
        if step % REMATCH == 0:
            tracks = track(ifft2c(kspace), patch, periodic)
        threshold = schedule.noise(step) * (patch + math.sqrt(tracks.corners.shape[1]))
        shift = tuple(torch.randint(max(1, patch // 2), (2,), generator=generator).tolist())
        previous = kspace
        kspace = fft2c(shrink_tracks(ifft2c(data_consistency(momentum, measured, mask)), tracks, threshold, shift))
        kspace = data_consistency(kspace, measured, mask)
        t_next = (1 + math.sqrt(1 + 4 * t * t)) / 2
        momentum = kspace + (t - 1) / t_next * (kspace - previous)
        t = t_next
        yield kspace
