"""Time-interleaved sampling masks: every frame samples few k-space lines, other frames other lines.

A mask is a boolean tensor `(frames, height, width)`; phase encoding runs along the height (ky), and a
sampled line is a whole row. DC is at `(height//2, width//2)`. Sources: Ke et al. 2020 (time-interleaved
masks), Winkelmann et al. 2007 (golden angle).
"""

import math

import torch

from utils.errors import InputError

Tensor = torch.Tensor

GOLDEN_ANGLE = math.pi * (math.sqrt(5) - 1) / 2  # 111.25°
PATTERNS = ("uniform", "random", "lattice", "radial")
DEFAULT_ACS = {"uniform": 16, "random": 16, "lattice": 20, "radial": 0}  # lines, as published


def make_mask(
    pattern: str,
    shape: tuple[int, int, int],
    acceleration: float,
    acs: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Sampling mask of a dynamic scan.

    Parameters
    ----------
    pattern
        `uniform`: frame t takes the lines ky ≡ t + seed (mod R). `random`: random lines, dealt without
        repetition within each group of R frames, so that a group covers k-space.
        `lattice`: the published family, the uniform lattice OR-ed with a separate 20-line ACS.
        `radial`: golden-angle spokes through DC, gridded to the nearest Cartesian sample.
    shape
        `(frames, height, width)`.
    acceleration
        R, before the ACS is added; a whole number for lines, any number ≥ 1 for radial.
    acs
        fully sampled central lines of every frame (radial: side of a central square). Default: as published.
    seed
        of the random lines; rotates the order of the uniform lattice and the first spoke.

    Returns
    -------
    boolean tensor of `shape`. Its net acceleration is `net_acceleration(mask)`.

    Raises
    ------
    InputError
        for an unknown pattern, or an acceleration or ACS that does not fit the shape.
    """
    frames, height, width = shape
    if pattern not in PATTERNS:
        raise InputError(f"mask pattern '{pattern}' is unknown; choose one of {', '.join(PATTERNS)}.")
    acs = DEFAULT_ACS[pattern] if acs is None else acs
    if min(shape) < 1:
        raise InputError(f"a mask of shape {tuple(shape)} is empty; give positive frames, height and width.")
    if not 1 <= acceleration <= height:
        raise InputError(f"acceleration {acceleration:g} must lie between 1 and the {height} lines of a frame.")
    if not 0 <= acs <= min(height, width if pattern == "radial" else height):
        most = min(height, width) if pattern == "radial" else height
        raise InputError(f"{acs} ACS lines do not fit a frame of {height}×{width}; give 0 to {most}.")
    if pattern == "radial":
        mask = _golden_angle_spokes(shape, acceleration, seed)
        mask[:, _central(height, acs), _central(width, acs)] = True
        return mask
    if acceleration != int(acceleration):
        raise InputError(f"pattern '{pattern}' needs a whole acceleration, not {acceleration:g}; round it.")
    if pattern == "random":
        lines = _random_lines(frames, height, int(acceleration), seed)
    else:
        lines = (torch.arange(height) - torch.arange(frames)[:, None] - seed) % int(acceleration) == 0
    lines[:, _central(height, acs)] = True
    return lines[:, :, None].repeat(1, 1, width)


def net_acceleration(mask: Tensor) -> float:
    """1 / (sampled fraction of all k-space locations of all frames)."""
    return 1.0 / mask.double().mean().item()


def is_lines(mask: Tensor) -> bool:
    """Whether every row of every frame is sampled not at all, or wherever any row is (a partial echo has no rest)."""
    readout = mask.any(dim=1, keepdim=True).any(dim=0, keepdim=True)
    return torch.equal(mask, mask.any(dim=-1, keepdim=True) & readout)


def lines_along_rows(mask: Tensor) -> Tensor:
    """The mask, transposed where its lines run along the height, so that lines are rows: `(frames, …, …)`."""
    return mask.mT if not is_lines(mask) and is_lines(mask.mT) else mask


def acs_rows(mask: Tensor) -> Tensor:
    """Which rows of a mask of lines belong to the ACS, the block around DC that every frame samples: `(height,)`."""
    full = mask.any(dim=-1).all(dim=0)
    centre = len(full) // 2
    above = full[centre:].long().cumprod(0)
    below = full[:centre].flip(0).long().cumprod(0).flip(0) * above[0]  # no DC line, no block around it
    return torch.cat((below, above)).bool()


def fit_mask(mask: Tensor, shape: tuple[int, int, int], name: str = "the mask") -> Tensor:
    """Bring a mask read from a file to the `(frames, height, width)` of a scan, or say why it cannot be.

    Accepted: `(frames, height, width)`; phase-encode lines as `(frames, height)` or `(height, frames)`; the same for
    every frame as `(height, width)` or `(height,)`. Lines may run along either axis.

    Raises
    ------
    InputError
        when the shape does not fit, or a frame has no sample.
    """
    frames, height, width = shape
    if mask.shape == (height,):
        mask = mask[None, :, None]
    elif mask.shape == (height, width) and mask.shape != (frames, height):
        mask = mask[None]
    elif mask.shape == (frames, height):
        mask = mask[:, :, None]
    elif mask.shape == (height, frames):
        mask = mask.T[:, :, None]
    elif mask.shape != tuple(shape):
        raise InputError(
            f"{name}: shape {tuple(mask.shape)} does not fit the scan's (frames, height, width) = {tuple(shape)}; "
            "give a mask of that shape, or change the scan with --frames or --size."
        )
    mask = mask.expand(*shape).contiguous()
    empty = (~mask.flatten(1).any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise InputError(
            f"{name}: frame {empty[0]} (counting from 0) has no sample; every frame needs at least one line: leave "
            "that frame out of scan and mask."
        )
    return mask


def _central(size: int, count: int) -> slice:
    """The `count` indices around DC: for 192 and 16, 88…103."""
    start = size // 2 - count // 2
    return slice(start, start + count)


def _random_lines(frames: int, height: int, acceleration: int, seed: int) -> Tensor:
    """Deal the lines of k-space at random to each group of R frames, each line once: `(frames, height)`.

    That each group covers k-space once fixes the mean density of its lines: it is the same everywhere, and
    the density varies by the ACS alone.
    """
    generator = torch.Generator().manual_seed(seed)
    lines = torch.zeros(frames, height, dtype=torch.bool)
    for first in range(0, frames, acceleration):
        dealt = torch.randperm(height, generator=generator)
        for member in range(min(acceleration, frames - first)):
            lines[first + member, dealt[member::acceleration]] = True
    return lines


def _golden_angle_spokes(shape: tuple[int, int, int], acceleration: float, seed: int) -> Tensor:
    """Consecutive golden-angle spokes; as many per frame as come nearest to the acceleration."""
    frames, height, width = shape
    best, best_error = 1, math.inf
    for spokes in range(1, 4 * max(height, width)):
        mask = _draw_spokes(shape if frames == 1 else (min(frames, 4), height, width), spokes, seed)
        error = abs(mask.double().mean().item() * acceleration - 1)
        if error > best_error:  # coverage grows with the spokes: past the best it only gets worse
            break
        best, best_error = spokes, error
    return _draw_spokes(shape, best, seed)


def _draw_spokes(shape: tuple[int, int, int], spokes: int, seed: int) -> Tensor:
    frames, height, width = shape
    index = torch.arange(frames * spokes, dtype=torch.float64).reshape(frames, spokes, 1)
    angle = (index + seed * 0.5) * GOLDEN_ANGLE
    # half-sample steps along the spoke leave no gap on the grid
    radius = torch.arange(-max(height, width), max(height, width) + 1, dtype=torch.float64) / 2
    ky = (height / 2 * (radius / (max(height, width) / 2)) * torch.sin(angle)).round().long() + height // 2
    kx = (width / 2 * (radius / (max(height, width) / 2)) * torch.cos(angle)).round().long() + width // 2
    inside = (ky >= 0) & (ky < height) & (kx >= 0) & (kx < width)
    mask = torch.zeros(frames, height * width, dtype=torch.bool)
    flat = torch.where(inside, ky * width + kx, (height // 2) * width + width // 2)
    mask.scatter_(1, flat.reshape(frames, -1), True)
    return mask.reshape(shape)
