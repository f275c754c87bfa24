"""Synthetic moving scenes, made without MR images: unlimited training data for the priors.

A scene is a few layers of tissue, piecewise constant with texture or cut from a photograph, warped by smooth motions
in time. It has what a dynamic scan has (edges that move, wring, slide and change brightness; phase; shading) but no
real anatomy, so a network learns from it how moving images look, whatever they show.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import grid_sample, interpolate

from mri.draw import Draw
from mri.fourier import fft2c, ifft2c
from mri.photographs import part_of_a_photograph
from utils.arguments import LARGEST_SEED, integer_between
from utils.errors import InputError, exit_on_input_error
from utils.files import atomic_path, refuse_existing

Tensor = torch.Tensor

OVERSAMPLING = 2  # scenes are drawn on a finer grid and cut in k-space, as a scanner cuts them
SMALLEST = 32  # pixels; smaller scenes have no room for layers


@dataclass(frozen=True)
class Layer:
    """A part of the scene that moves as one."""

    tissue: Tensor  # (height, width)
    alpha: Tensor  # (height, width), 0 … 1: where it covers the layers below
    displacement: Tensor  # (frames, height, width, 2) in half fields of view, x before y
    brightness: Tensor  # (frames, 1, 1)
    flicker: Tensor | None  # (frames, height, width): what blood adds from frame to frame


def make_scene(
    frames: int, height: int, width: int, seed: int = 0, device: torch.device | str = "cpu"
) -> tuple[Tensor, bool]:
    """One scene.

    Parameters
    ----------
    frames, height, width
        any number of frames; even sizes of at least 32 pixels.
    seed
        the scene; equal on every device to rounding.

    Returns
    -------
    complex64 image `(frames, height, width)` without noise, of magnitude up to 1; and whether it is periodic,
    the last frame a neighbour of the first.

    Raises
    ------
    InputError
        for a size that is odd or too small.
    """
    if frames < 1 or min(height, width) < SMALLEST or height % 2 or width % 2:
        raise InputError(
            f"a scene of {frames} frames of {height}×{width} cannot be made; give at least 1 frame and even sizes "
            f"of at least {SMALLEST}."
        )
    draw = Draw(seed, device)
    shape = (OVERSAMPLING * height, OVERSAMPLING * width)
    periodic = draw.coin(0.6)
    grid = _grid(shape, device)
    breathing = _motion(draw, grid, frames, periodic, whole=True)
    layers = [_background(draw, grid, frames, breathing, periodic)]
    layers += [_organ(draw, grid, frames, breathing, periodic) for _ in range(draw.choice((0, 1, 1, 1, 2, 2, 3)))]
    image = torch.zeros(frames, *shape, device=device)
    for layer in layers:
        image = _paint(image, layer, grid)
    if draw.coin(0.25):
        image, periodic = image * (1 + _bolus(draw, shape, frames)), False
    image = image * torch.exp(draw.uniform(0, 0.6) * draw.smooth(shape, 3))  # coil shading
    image = torch.polar(image.abs(), _phase(draw, shape, frames, periodic))
    image = _cut(image, height, width)
    return (image / image.abs().max().clamp(min=1e-12)).to(torch.complex64), periodic


# ---------------------------------------------------------------------------------------------- drawing


def _grid(shape: tuple[int, int], device) -> Tensor:
    """Coordinates −1 … 1 of the pixels, x before y: `(height, width, 2)`."""
    y, x = (((torch.arange(n, device=device) + 0.5) / n * 2 - 1) for n in shape)
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)


def _size(grid: Tensor) -> tuple[int, int]:
    height, width = grid.shape[:2]
    return height, width


def _tissue(draw: Draw, grid: Tensor) -> Tensor:
    """A photograph, or piecewise-constant regions, ellipses and rings, texture: `(height, width)`, mostly 0 … 1."""
    shape = _size(grid)
    if draw.coin(0.5):
        return draw.uniform(0.3, 1.3) * part_of_a_photograph(draw, shape)
    field = draw.smooth(shape, draw.log_uniform(3, 14))
    edges = torch.sort(draw.normal(draw.integer(1, 5))).values
    values = torch.rand(len(edges) + 1, generator=draw.generator).to(grid.device) ** draw.uniform(0.7, 2)
    tissue = values[torch.bucketize(field, edges)]
    for _ in range(draw.integer(0, 12)):
        radius, thickness = draw.log_uniform(0.015, 0.35), draw.uniform(0.1, 0.6)
        distance = _distance(draw, grid) / radius
        inside = (distance < 1) & ((distance > 1 - thickness) if draw.coin(0.35) else True)
        tissue = torch.where(inside, draw.uniform(0, 1.2), tissue)
    for _ in range(draw.integer(1, 3)):
        texture = draw.smooth(shape, draw.log_uniform(8, shape[0] / 3))
        tissue = tissue * (1 + draw.log_uniform(0.01, 0.2) * texture)
    return tissue.clamp(min=0)


def _distance(draw: Draw, grid: Tensor, reach: float = 0.9) -> Tensor:
    """Distance from a random centre in the metric of a random ellipse: `(height, width)`."""
    x, y = grid[..., 0] - draw.uniform(-reach, reach), grid[..., 1] - draw.uniform(-reach, reach)
    angle, oval = draw.uniform(0, math.pi), draw.log_uniform(0.5, 2) ** 0.5
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.hypot((x * cos + y * sin) * oval, (y * cos - x * sin) / oval)


def _waveform(draw: Draw, frames: int, periodic: bool) -> Tensor:
    """A course in time between about −1 and 1: `(frames,)`."""
    t = torch.arange(frames) / frames
    beats = draw.choice((1, 1, 1, 2)) if periodic else draw.uniform(0.4, 2.5)
    start = draw.uniform(0, 1)
    kind = draw.choice(("beat", "beat", "wave") if periodic else ("beat", "beat", "wave", "drift", "irregular"))
    if kind == "beat":  # quick contraction, slow filling
        warped = (beats * t + start) % 1
        warped = warped ** draw.uniform(0.6, 1.6)
        w = torch.exp(draw.uniform(1, 4) * (torch.cos(2 * math.pi * warped) - 1))
    elif kind == "wave":
        w = torch.zeros(frames)
        for harmonic in range(1, 4):
            w += draw.uniform(-1, 1) / harmonic * torch.cos(2 * math.pi * (harmonic * beats * t + draw.uniform(0, 1)))
    elif kind == "drift":
        w = draw.uniform(-1, 1) * t + draw.uniform(-1, 1) * t**2
    else:
        knots = draw.normal(1, 1, draw.integer(3, max(4, frames // 2))).cpu()
        w = interpolate(knots, frames, mode="linear", align_corners=True)[0, 0] / 2
    return w.to(draw.device)


def _motion(draw: Draw, grid: Tensor, frames: int, periodic: bool, whole: bool, centre=None) -> Tensor:
    """Displacements in time: `(frames, height, width, 2)`. `whole`: of the body, slow and small."""
    motion = torch.zeros(frames, *grid.shape, device=grid.device)
    if draw.coin(0.35 if whole else 0.08):
        return motion
    for _ in range(draw.integer(1, 2) if whole else draw.integer(1, 4)):
        middle = torch.tensor([draw.uniform(-0.8, 0.8), draw.uniform(-0.8, 0.8)])
        if centre is not None:
            middle = centre + torch.tensor([draw.uniform(-0.1, 0.1), draw.uniform(-0.1, 0.1)])
        offset = grid - middle.to(grid.device)
        reach = draw.uniform(0.5, 1.5) if whole else draw.log_uniform(0.08, 0.45)
        bell = torch.exp(-offset.square().sum(-1, keepdim=True) / (2 * reach**2))
        kind = draw.choice(("radial", "radial", "radial", "translation", "rotation", "shear"))
        if whole:
            kind = draw.choice(("translation", "translation", "shear", "radial"))
        if kind == "translation":
            angle = draw.uniform(0, 2 * math.pi)
            direction = torch.tensor([math.cos(angle), math.sin(angle)], device=grid.device)
            field = direction.expand_as(offset) * draw.log_uniform(0.01, 0.05 if whole else 0.12)
        else:
            x, y = offset.unbind(-1)
            matrix = {"radial": (x, y), "rotation": (-y, x), "shear": (y, torch.zeros_like(y))}[kind]
            field = torch.stack(matrix, dim=-1) * draw.log_uniform(*((0.02, 0.08) if whole else (0.04, 0.6)))
            field = field * draw.choice((-1.0, 1.0, 1.0))
        motion += _waveform(draw, frames, periodic)[:, None, None, None] * field * bell
    return motion


def _background(draw: Draw, grid: Tensor, frames: int, breathing: Tensor, periodic: bool) -> Layer:
    alpha = torch.ones(grid.shape[:2], device=grid.device)
    if draw.coin(0.8):  # the outline of a body
        size = draw.uniform(0.6, 1.1)
        outline = 1 + draw.uniform(0.02, 0.15) * draw.smooth(_size(grid), draw.uniform(3, 7))
        alpha = (_distance(draw, grid, reach=0.2) < size * outline).to(alpha)
    own = _motion(draw, grid, frames, periodic, whole=False) if draw.coin(0.5) else 0
    return Layer(_tissue(draw, grid), alpha, breathing + own, torch.ones(frames, 1, 1, device=grid.device), None)


def _organ(draw: Draw, grid: Tensor, frames: int, breathing: Tensor, periodic: bool) -> Layer:
    shape = _size(grid)
    centre = torch.tensor([draw.uniform(-0.55, 0.55), draw.uniform(-0.55, 0.55)])
    radius, oval = draw.log_uniform(0.1, 0.5), draw.log_uniform(0.6, 1.6) ** 0.5
    offset = (grid - centre.to(grid.device)) * torch.tensor([oval, 1 / oval], device=grid.device)
    wobble = 1 + draw.uniform(0, 0.2) * draw.smooth(shape, draw.uniform(4, 12))
    distance = offset.norm(dim=-1) / radius * wobble
    tissue = _tissue(draw, grid)
    if draw.coin(0.7):  # a pool in a wall: the wall thickens as the pool empties
        wall = draw.uniform(0.15, 0.5)
        pool, muscle = draw.uniform(0.2, 1.3), draw.uniform(0, 0.8)
        mixed = draw.uniform(0, 0.3)
        tissue = torch.where(distance < 1 - wall, pool, muscle) * (1 - mixed) + mixed * tissue
        for _ in range(draw.integer(0, 3)):  # papillary muscles, valves, vessels
            angle, place = draw.uniform(0, 2 * math.pi), radius * draw.uniform(0, 0.9)
            spot = centre + place * torch.tensor([math.cos(angle), math.sin(angle)])
            away = (grid - spot.to(grid.device)).norm(dim=-1)
            tissue = torch.where(away < radius * draw.uniform(0.05, 0.22), draw.uniform(0, 1.2), tissue)
    motion = breathing + _motion(draw, grid, frames, periodic, whole=False, centre=centre)
    brightness = torch.ones(frames, device=grid.device)
    if draw.coin(0.4):
        brightness = 1 + draw.log_uniform(0.02, 0.3) * _waveform(draw, frames, periodic)
    flicker = None
    if draw.coin(0.25):  # flow
        amount, cells = draw.log_uniform(0.01, 0.08), draw.log_uniform(3, 20)
        flicker = amount * torch.stack([draw.smooth(shape, cells) for _ in range(frames)])
    return Layer(tissue, (distance < 1).to(tissue), motion, brightness[:, None, None].clamp(min=0), flicker)


def _paint(image: Tensor, layer: Layer, grid: Tensor) -> Tensor:
    """The layer, moved, over the image of the layers below."""
    frames = len(image)
    still = torch.stack([layer.tissue, layer.alpha])[None].expand(frames, -1, -1, -1)
    moved = grid_sample(still, grid + layer.displacement, padding_mode="border", align_corners=False)
    tissue, alpha = moved[:, 0] * layer.brightness, moved[:, 1]
    if layer.flicker is not None:
        tissue = tissue * (1 + layer.flicker)
    return image + alpha * (tissue - image)


def _bolus(draw: Draw, shape: tuple[int, int], frames: int) -> Tensor:
    """What a contrast agent adds, arriving later in some places than in others: `(frames, height, width)`."""
    t = torch.arange(frames, device=draw.device)[:, None, None] / frames
    arrival = draw.uniform(0, 0.4) + draw.uniform(0, 0.3) * torch.sigmoid(draw.smooth(shape, 5))
    since = ((t - arrival) / draw.uniform(0.08, 0.35)).clamp(min=0)
    uptake = draw.uniform(0.2, 2) * torch.sigmoid(draw.uniform(1, 6) * draw.smooth(shape, draw.log_uniform(3, 12)))
    return uptake * since * torch.exp(1 - since)


def _phase(draw: Draw, shape: tuple[int, int], frames: int, periodic: bool) -> Tensor:
    """Smooth, slowly moving phase in radians: `(frames, height, width)`."""
    still = draw.uniform(-math.pi, math.pi) + draw.uniform(0, 1.5) * draw.smooth(shape, draw.uniform(2, 6))
    moving = draw.uniform(0, 0.3) * draw.smooth(shape, draw.uniform(2, 6))
    return still + moving * _waveform(draw, frames, periodic)[:, None, None]


def _cut(image: Tensor, height: int, width: int) -> Tensor:
    """The centre of the k-space of a finer image, as image: edges ring as those of a scanner do."""
    kspace = fft2c(image)
    top, left = (kspace.shape[-2] - height) // 2, (kspace.shape[-1] - width) // 2
    return ifft2c(kspace[..., top : top + height, left : left + width]) / OVERSAMPLING


# ---------------------------------------------------------------------------------------- command line


def contact_sheet(path: Path, scans: list, columns: int = 8) -> None:
    """PNG of many scans: of each its first frame, its frame half way, and its middle row over time.

    Parameters
    ----------
    scans
        magnitudes `(frames, height, width)` of one shape, a multiple of `columns` of them.
    """
    import numpy as np
    from PIL import Image

    tiles = []
    for image in scans:
        frames, height, width = image.shape
        course = np.repeat(image[:, height // 2], max(1, height // (2 * frames)), axis=0)
        tile = np.concatenate([image[0], image[frames // 2], course]) / max(np.percentile(image, 99.5), 1e-12)
        tiles.append(np.pad(tile, ((0, 4), (0, 4)), constant_values=1))
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    sheet = np.round(255 * np.clip(np.concatenate(rows), 0, 1)).astype(np.uint8)
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, "PNG")


def main() -> None:
    """Draw a page of scenes, each with its motion over time, into a PNG."""
    parser = argparse.ArgumentParser(description="Draw a page of synthetic scenes.")
    any_seed = integer_between(0, LARGEST_SEED)
    parser.add_argument("--size", type=integer_between(SMALLEST, 4096), default=96, help="pixels, even")
    parser.add_argument("--frames", type=integer_between(1, 1024), default=16)
    parser.add_argument("--seed", type=any_seed, default=0, help="of the first of the 24 scenes")
    parser.add_argument("--out", required=True, help="PNG file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    flags = parser.parse_args()
    if Path(flags.out).suffix.lower() != ".png":
        raise InputError(f"--out {flags.out}: the page of scenes is a picture; name a .png file.")
    refuse_existing(flags.out, flags.overwrite)
    scans = []
    for seed in range(flags.seed, flags.seed + 24):
        image, _ = make_scene(flags.frames, flags.size, flags.size, seed)
        scans.append(image.abs().numpy())
    contact_sheet(Path(flags.out), scans)
    print(f"wrote {flags.out}: per scene a frame, a later frame, and the course of its middle row over time")


if __name__ == "__main__":
    exit_on_input_error(main)
