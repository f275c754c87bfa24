"""The chest that both phantoms share: body wall, lungs, spine, liver, great vessels, and the volume curve.

The contrasts are those of balanced steady-state free precession: blood and fat are bright, muscle is grey, lung is
dark. Every function draws from the random generator in a fixed order, on which the bits of the phantoms depend.
"""

import math
from typing import Any

import numpy as np
import torch

from mri.phantom.canvas import Canvas, Length, ellipse, segment, texture, wobble

Tensor = torch.Tensor


def coil_shading(canvas: Canvas, rng: np.random.Generator) -> Tensor:
    """Receive sensitivity left in the combined image: brighter towards the chest coil, `(1, height, width)`."""
    tilt, lift = rng.uniform(-0.25, 0.25), rng.uniform(0.15, 0.45)
    return 1 - tilt * canvas.x - lift * canvas.y - rng.uniform(0.2, 0.6) * (canvas.x**2 + canvas.y**2)


def volume_curve(rng: np.random.Generator) -> Any:
    """Contraction over the cycle: fast systole, early filling, diastasis, atrial kick.

    Returns a function of the time in heartbeats, for times from -1 to 2: 0 at end-diastole, 1 at end-systole.
    """
    systole = rng.uniform(0.30, 0.42)
    filled = systole + rng.uniform(0.22, 0.30)
    kick = rng.uniform(0.84, 0.90)
    rest = rng.uniform(0.12, 0.25)
    phase = np.array([0, 0.04, systole * 0.55, systole, systole + 0.06, filled, kick, 0.97])
    value = np.array([0, 0.02, 0.62, 1.0, 0.97, rest + 0.04, rest, 0.01])
    from scipy.interpolate import PchipInterpolator  # a command that draws no phantom need not wait for it

    return PchipInterpolator(np.concatenate([phase - 1, phase, phase + 1]), np.concatenate([value, value, value]))


def paint_chest(chest: Canvas, rng: np.random.Generator) -> None:
    """Everything but the heart and the great vessels."""
    thorax = _paint_body(chest, rng)
    _paint_lungs(chest, thorax, rng)
    _paint_back(chest, rng)
    _paint_liver(chest, thorax, rng)


def _paint_body(chest: Canvas, rng: np.random.Generator) -> Tensor:
    """Skin, fat, muscle with ribs, and soft tissue; returns the signed distance to the inside of the ribs."""
    x, y = chest.x, chest.y
    a, b = rng.uniform(0.44, 0.475), rng.uniform(0.36, 0.41)
    body = ellipse(x, y, a, b, wobble(x, y, rng, (2, 3, 4), 0.02))
    fat_depth = rng.uniform(0.014, 0.035) * (1 + 0.4 * torch.cos(2 * torch.atan2(y, x)))
    grain = texture(chest, rng, 15, 70)
    chest.paint(body, 0.35)
    chest.paint(body + 0.007, rng.uniform(0.7, 0.85) * (1 + 0.06 * grain))
    muscle = body + 0.007 + fat_depth
    chest.paint(muscle, rng.uniform(0.24, 0.32) * (1 + 0.10 * grain))
    ribs = int(rng.integers(9, 14))
    between = torch.cos(ribs * torch.atan2(y / b, x / a) + rng.uniform(0, 2 * math.pi))
    for edge, value in ((0.012, 0.12), (0.009, rng.uniform(0.45, 0.6))):
        rib = torch.maximum((muscle + 0.026).abs() - edge, (0.3 - between) * 0.03 + 0.012 - edge)
        chest.paint(rib, value)
    thorax = muscle + 0.046
    chest.paint(thorax, rng.uniform(0.36, 0.5) * (1 + 0.08 * grain))
    return thorax


def _paint_lungs(chest: Canvas, thorax: Tensor, rng: np.random.Generator) -> None:
    """Two dark lungs with branching vessels and a faint parenchyma."""
    for side in (-1, 1):
        x0, y0 = side * rng.uniform(0.215, 0.24), rng.uniform(-0.05, -0.01)
        a, b = rng.uniform(0.165, 0.185), rng.uniform(0.26, 0.30)
        x, y = chest.x - x0, chest.y - y0
        lean = x - side * rng.uniform(0.1, 0.3) * y  # the lungs nearly meet in front of the heart
        lung = ellipse(lean, y, a, b, wobble(x, y, rng, (2, 3, 4), 0.03))
        lung = torch.maximum(lung, thorax + 0.004)
        chest.paint(lung, rng.uniform(0.04, 0.08) * (1 + 0.35 * texture(chest, rng, 10, 60)))
        tree = chest.layer()
        for _ in range(int(rng.integers(4, 7))):
            root = np.array([x0 - side * 0.10, y0 + rng.uniform(-0.06, 0.14)])
            _paint_vessel(tree, rng, root, rng.normal(math.pi / 2 * (1 - side), 0.7), 0.0065, a * 0.6)
        chest.paint(lung + 0.006, rng.uniform(0.32, 0.45), opacity=tree.image)


def _paint_vessel(
    tree: Canvas, rng: np.random.Generator, start: np.ndarray, heading: float, radius: float, length: float
) -> None:
    """A vessel and, from its end, two thinner and fainter ones, down to half a pixel of 192 in radius."""
    end = start + length * np.array([math.cos(heading), math.sin(heading)])
    (left, top), (right, bottom) = np.minimum(start, end) - 0.03, np.maximum(start, end) + 0.03
    piece = tree.window(left, right, top, bottom)
    piece.paint(segment(piece.x, piece.y, start.tolist(), end.tolist(), radius), min(1.0, 190 * radius))
    if radius > 0.003:
        for turn in (-1, 1):
            bend, shrink = heading + turn * rng.uniform(0.15, 0.8), rng.uniform(0.55, 0.8)
            _paint_vessel(tree, rng, end, bend, radius * shrink, length * rng.uniform(0.5, 0.85))


def _paint_back(chest: Canvas, rng: np.random.Generator) -> None:
    """Vertebra with its canal, and back muscles with fat streaks: line pairs that become finer downwards."""
    x0, y0 = rng.uniform(-0.02, 0.02), rng.uniform(0.225, 0.25)
    x, y = chest.x - x0, chest.y - y0
    for side in (-1, 1):
        muscle = ellipse(x - side * 0.085, y - 0.065, 0.06, 0.04)
        period = (0.026 if side < 0 else 0.018) * rng.uniform(0.9, 1.1)
        cycles = (x - 0.4 * side * y) / period
        streaks = (0.5 + 0.5 * torch.cos(2 * math.pi * (cycles + 2.0 * cycles.abs() * y))) ** 2
        chest.paint(muscle, 0.26 + rng.uniform(0.25, 0.4) * streaks)
    bone = ellipse(x, y, 0.066, 0.05, wobble(x, y, rng, (2, 3), 0.04))
    chest.paint(bone, 0.12)
    chest.paint(bone + 0.006, rng.uniform(0.4, 0.55) * (1 + 0.15 * texture(chest, rng, 25, 80)))
    chest.paint(ellipse(x, y - 0.068, 0.026, 0.02), 0.15)
    chest.paint(ellipse(x, y - 0.068, 0.022, 0.016), rng.uniform(0.8, 0.95))
    chest.paint(ellipse(x, y - 0.068, 0.010, 0.007), 0.45)


def _paint_liver(chest: Canvas, thorax: Tensor, rng: np.random.Generator) -> None:
    """Dome of the liver at the lower left of the picture, with veins."""
    x0, y0 = rng.uniform(-0.25, -0.22), rng.uniform(0.14, 0.18)
    x, y = chest.x - x0, chest.y - y0
    liver = ellipse(x, y, rng.uniform(0.13, 0.16), rng.uniform(0.09, 0.12), wobble(x, y, rng, (2, 3), 0.05))
    liver = torch.maximum(liver, thorax + 0.004)
    chest.paint(liver, rng.uniform(0.42, 0.55) * (1 + 0.05 * texture(chest, rng, 20, 80)))
    tree = chest.layer()
    for _ in range(int(rng.integers(2, 5))):
        root = np.array([x0 + rng.uniform(0.02, 0.08), y0 + rng.uniform(-0.04, 0.05)])
        _paint_vessel(tree, rng, root, rng.normal(math.pi, 0.8), 0.0055, 0.05)
    chest.paint(liver + 0.006, rng.uniform(0.65, 0.85), opacity=tree.image)


def paint_aorta(chest: Canvas, squeeze: Tensor, blood: Length, rng: np.random.Generator) -> None:
    """Descending aorta beside the spine, widest just after the ventricle has emptied; and a vein.

    `squeeze` is the contraction and `blood` the brightness, `(frames, 1, 1)`.
    """
    x0, y0 = rng.uniform(0.07, 0.095), rng.uniform(0.15, 0.175)
    piece = chest.around(x0, y0, 0.07)
    x, y = piece.x - x0, piece.y - y0
    radius = rng.uniform(0.024, 0.031) * (1 + 0.09 * torch.roll(squeeze, 1, 0))
    piece.paint(torch.hypot(x, y) - radius - 0.006, 0.22)
    piece.paint(torch.hypot(x, y) - radius, blood * rng.uniform(0.95, 1.1))
    x1, y1 = rng.uniform(-0.085, -0.06), rng.uniform(0.12, 0.15)
    piece = chest.around(x1, y1, 0.06)
    x, y = piece.x - x1, piece.y - y1
    piece.paint(ellipse(x, y, rng.uniform(0.02, 0.03), rng.uniform(0.014, 0.02)), rng.uniform(0.65, 0.8))
