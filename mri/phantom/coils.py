"""Receive sensitivities of an array of loops around the chest (Biot & Savart), with a sum of squares of one."""

import math

import numpy as np
import torch

from utils.errors import InputError

Tensor = torch.Tensor

SIDE = (0.75, 0.73)  # semi-axes of the ellipse of the loops' centres, fields of view; keeps the wires off the image
RINGS = 8  # loops in one ring around the chest; further loops form rings beside it along the body axis
SEGMENTS = 24  # straight pieces of a loop


def make_coil_maps(coils: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Sensitivity maps of receive loops around the chest.

    The sensitivity of a loop is the transverse field B_x - i B_y of a unit current in it (reciprocity). Loops lie on
    an elliptic cylinder around the body, face inwards, and overlap their neighbours.

    Parameters
    ----------
    coils
        Number of loops, at least 1. Up to 8 form one ring in the plane of the slice; more form up to ceil(coils / 8)
        rings along the body axis.
    height, width
        Pixels, each at least 16, odd or even; the centre of the ellipse is at `(height//2, width//2)`.
    seed
        Shifts, tilts and resizes the loops a little.

    Returns
    -------
    complex64 `(coils, height, width)` with Σ_c |S_c|² = 1 in every pixel; all ones for one coil. The same arguments
    give the same bits.

    Raises
    ------
    InputError
        For no coils or an image smaller than 16×16.
    """
    if coils < 1 or min(height, width) < 16:
        raise InputError(
            f"maps of {coils} coils and {height} x {width} pixels cannot be made; "
            "ask for at least 1 coil and 16 x 16 pixels."
        )
    if coils == 1:
        return torch.ones(1, height, width, dtype=torch.complex64)
    rng = np.random.default_rng(seed)
    y, x = ((torch.arange(n, dtype=torch.float64) - n // 2) / n for n in (height, width))
    points = torch.stack(torch.broadcast_tensors(x, y[:, None], torch.zeros(1, 1, dtype=torch.float64)), dim=-1)
    fields = torch.stack([_transverse_field(wire, points) for wire in _loops(coils, rng)])
    return (fields / fields.abs().square().sum(dim=0).sqrt()).to(torch.complex64)


def _loops(coils: int, rng: np.random.Generator) -> list[Tensor]:
    """Corners of each loop, float64 `(SEGMENTS, 3)`: x, y, and z along the body axis."""
    rings = math.ceil(coils / RINGS)
    counts = [coils // rings + (ring < coils % rings) for ring in range(rings)]
    loops, start = [], rng.uniform(0, 2 * math.pi)
    for ring, count in enumerate(counts):
        z = 0.25 * (ring - (rings - 1) / 2)
        radius = min(0.3, 1.2 * math.pi * SIDE[0] / count)  # neighbours overlap
        places = np.arange(count) + 0.5 * ring + rng.uniform(-0.1, 0.1, count)  # rings are staggered
        for angle in start + 2 * math.pi / count * places:
            centre = np.array([SIDE[0] * math.cos(angle), SIDE[1] * math.sin(angle), z + rng.normal(0, 0.01)])
            facing = angle + rng.normal(0, 0.08)
            around = np.array([-math.sin(facing), math.cos(facing), 0.0])
            turn = 2 * math.pi * np.arange(SEGMENTS)[:, None] / SEGMENTS
            size = radius * rng.uniform(0.9, 1.1)
            wire = centre + size * (np.cos(turn) * around + np.sin(turn) * np.array([0.0, 0.0, 1.0]))
            loops.append(torch.from_numpy(wire))
    return loops


def _transverse_field(wire: Tensor, points: Tensor) -> Tensor:
    """B_x - i B_y at `points` `(height, width, 3)`, up to a factor: the sum of dl × r / |r|³ over the wire."""
    following = wire.roll(-1, 0)
    field = torch.zeros(points.shape[:2], dtype=torch.complex128)
    for start, end in zip(wire, following, strict=True):
        step, distance = end - start, points - (start + end) / 2
        weight = distance.square().sum(dim=-1) ** -1.5
        b_x = (step[1] * distance[..., 2] - step[2] * distance[..., 1]) * weight
        b_y = (step[2] * distance[..., 0] - step[0] * distance[..., 2]) * weight
        field += torch.complex(b_x, -b_y)
    return field
