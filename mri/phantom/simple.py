"""The simple phantom: a heart whose regions move within the slice, in a chest that breathes with the heartbeat.

A cine with a known truth that needs no file. It is easier than a real scan, because tissue neither enters nor leaves
the slice and the last frame leads back to the first; `mri.phantom.heart` has what it lacks.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from mri.phantom.anatomy import coil_shading, paint_aorta, paint_chest, volume_curve
from mri.phantom.canvas import Canvas, around_once, ellipse, texture, wobble
from mri.phase import smooth_phase
from utils.errors import InputError

Tensor = torch.Tensor


def make_phantom(frames: int = 16, size: int = 192, seed: int = 0) -> Tensor:
    """One heartbeat of the simple phantom.

    Parameters
    ----------
    frames
        Frames per heartbeat, at least 2; frame `frames` would equal frame 0 (end of diastole).
    size
        Height and width in pixels, even, at least 64.
    seed
        Chooses the patient: anatomy, contrasts, texture, volume curve, breathing and image phase.

    Returns
    -------
    complex64 `(frames, size, size)`; the largest magnitude is 1. The same arguments give the same bits.

    Raises
    ------
    InputError
        For fewer than 2 frames, or an odd or too small size.
    """
    if frames < 2:
        raise InputError(f"a phantom of {frames} frame(s) cannot beat; ask for at least 2 frames.")
    if size < 64 or size % 2:
        raise InputError(f"a phantom of {size} pixels cannot be drawn; ask for an even size of at least 64.")
    rng = np.random.default_rng(seed)
    canvas = Canvas.blank(frames, size)
    shading = coil_shading(canvas, rng)
    chest = _breathing(canvas, rng)
    heart = Heart.random(frames, rng)
    paint_chest(chest, rng)
    paint_aorta(chest, heart.squeeze, heart.blood, rng)
    _paint_heart(canvas, heart, rng)
    magnitude = canvas.image.clamp_min(0) * shading
    return torch.polar(magnitude / magnitude.max(), smooth_phase(frames, size, size, seed))


def _breathing(canvas: Canvas, rng: np.random.Generator) -> Canvas:
    """The front of the chest moves by 0.5 to 2 pixels of 192 peak to peak, once per heartbeat."""
    angle = around_once(canvas.image.shape[0])
    rise = rng.uniform(0.25, 1.0) / 192 * torch.cos(angle + rng.uniform(0, 2 * math.pi))
    return canvas.moved(canvas.x, canvas.y - rise * torch.sigmoid((0.05 - canvas.y) / 0.07))


@dataclass
class Heart:
    """Shape and motion of one heart; lengths in units of the field of view, `(frames, 1, 1)` if moving."""

    squeeze: Tensor  # 0 at end-diastole, 1 at end-systole
    filling: Tensor  # minus the change of `squeeze` per heartbeat: positive while blood flows in
    blood: Tensor  # brightness of the blood, which inflow changes
    x: Tensor  # centre of the left ventricle
    y: Tensor
    turn: Tensor  # radians; septum and right ventricle lie in this direction
    cavity: Tensor  # radius of the endocardium
    outside: Tensor  # radius of the epicardium
    oval: float  # ratio of the ventricle's axes
    muscle: float  # brightness

    @staticmethod
    def random(frames: int, rng: np.random.Generator) -> "Heart":
        """The heart of a random patient."""
        angle, curve, time = around_once(frames), volume_curve(rng), np.arange(frames) / frames
        squeeze = torch.from_numpy(curve(time).astype(np.float32)).view(-1, 1, 1)
        filling = torch.from_numpy(-curve.derivative()(time).astype(np.float32)).view(-1, 1, 1)
        cavity, wall = rng.uniform(0.086, 0.104), rng.uniform(0.027, 0.038)
        ejected = rng.uniform(0.038, 0.046)  # travel of the endocardium
        epicardium = cavity + wall - rng.uniform(0.006, 0.011) * squeeze
        inflow = rng.uniform(0.03, 0.08) * torch.cos(angle + rng.uniform(-0.6, 0.6))
        swing = rng.uniform(0.004, 0.009, 2) * rng.choice([-1, 1], 2)
        return Heart(
            squeeze=squeeze,
            filling=filling,
            blood=rng.uniform(0.82, 0.92) * (1 - inflow),
            x=rng.uniform(0.035, 0.085) + float(swing[0]) * squeeze,
            y=rng.uniform(-0.08, -0.03) + float(swing[1]) * squeeze,
            turn=math.pi + rng.uniform(-0.35, 0.6) + rng.uniform(0.08, 0.2) * squeeze,
            cavity=cavity - ejected * squeeze,
            outside=epicardium,
            oval=rng.uniform(0.92, 1.08),
            muscle=rng.uniform(0.28, 0.38),
        )


def _paint_heart(canvas: Canvas, heart: Heart, rng: np.random.Generator) -> None:
    """Fat and pericardium, right ventricle, left ventricle, papillary muscles, coronary vessels."""
    piece = canvas.around(float(heart.x.mean()), float(heart.y.mean()), 0.32)
    x, y = piece.x - heart.x, piece.y - heart.y
    cos, sin = torch.cos(heart.turn), torch.sin(heart.turn)
    own = piece.moved(cos * x + sin * y, cos * y - sin * x)  # first axis points to the right ventricle
    epicardium = ellipse(
        own.x, own.y, heart.outside, heart.outside * heart.oval, wobble(own.x, own.y, rng, (3, 4), 0.015)
    )
    right, right_muscle = _right_ventricle(own, heart, rng)
    wall = rng.uniform(0.009, 0.013) + 0.004 * heart.squeeze

    sac = torch.minimum(epicardium, right - wall)
    fat = rng.uniform(0.006, 0.014) * (1 + wobble(own.x, own.y, rng, (2, 3, 5), 0.45)).clamp_min(0.1)
    own.paint(sac - fat - 0.005, 0.12)
    own.paint(sac - fat, rng.uniform(0.62, 0.78) * (1 + 0.05 * texture(own, rng, 20, 60, 12)))
    own.paint(right - wall, heart.muscle)
    own.paint(right, heart.blood * rng.uniform(0.88, 1.0) * (1 + 0.04 * texture(own, rng, 6, 20, 10)))
    _paint_trabeculae(own.moved(*right_muscle), heart, right, rng)
    _paint_left_ventricle(own, heart, epicardium, rng)
    for side in (-1, 1):  # coronary vessels in the grooves between the ventricles
        groove = heart.outside + 0.011
        bend = side * rng.uniform(1.15, 1.4)
        dot = torch.hypot(own.x - groove * math.cos(bend), own.y - groove * heart.oval * math.sin(bend))
        own.paint(dot - 0.0075, 0.25)
        own.paint(dot - 0.0055, heart.blood)


def _right_ventricle(own: Canvas, heart: Heart, rng: np.random.Generator) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """An ellipse beside the left ventricle, which is painted over it later.

    Returns the signed distance to its cavity, and coordinates that move with its muscle.
    """
    shift = rng.uniform(0.082, 0.10) - rng.uniform(0.008, 0.014) * heart.squeeze
    a = rng.uniform(0.09, 0.11) - rng.uniform(0.020, 0.028) * heart.squeeze
    b = rng.uniform(0.13, 0.155) - rng.uniform(0.016, 0.024) * heart.squeeze
    x, y = own.x - shift, own.y - rng.uniform(-0.02, 0.02)
    return ellipse(x, y, a, b, wobble(x, y, rng, (3,), 0.04)), (x * a[:1] / a, y * b[:1] / b)


def _paint_trabeculae(own: Canvas, heart: Heart, right: Tensor, rng: np.random.Generator) -> None:
    """Muscle ridges on the wall of the right ventricle, and its moderator band with a small muscle."""
    depth = 0.009 + 0.009 * texture(own, rng, 25, 50, 20)
    own.paint(torch.maximum(right, -right - depth), heart.muscle * 1.15, opacity=0.8)
    slope, offset = rng.uniform(-0.4, 0.4), rng.uniform(-0.05, 0.05)
    band = (own.y - slope * own.x - offset).abs() - 0.0035
    own.paint(torch.maximum(torch.maximum(band, right), 0.02 - own.x), heart.muscle, opacity=0.8)
    own.paint(torch.hypot(own.x - 0.04, own.y - offset - 0.045) - 0.008, heart.muscle)


def _paint_left_ventricle(own: Canvas, heart: Heart, epicardium: Tensor, rng: np.random.Generator) -> None:
    """Muscle whose texture moves with it, then blood with a rough border, then two papillary muscles."""
    angle = torch.atan2(own.y, own.x)
    radius = torch.hypot(own.x, own.y / heart.oval)
    # The texture moves with the muscle: it is drawn at the end-diastolic position of each point of the wall.
    depth = (radius - heart.cavity) / (heart.outside - heart.cavity)
    first = heart.cavity[:1] + depth * (heart.outside[:1] - heart.cavity[:1])
    fibres = texture(own.moved(first * torch.cos(angle), first * torch.sin(angle)), rng, 10, 40, 20)
    own.paint(epicardium, heart.muscle * (1 + 0.07 * fibres))

    rough = wobble(own.x, own.y, rng, (2, 3, 9, 11, 14), 0.018) * (1 + 0.8 * heart.squeeze)
    inside = ellipse(own.x, own.y, heart.cavity, heart.cavity * heart.oval, rough)
    swirl = texture(own.moved(own.x + 0.01 * torch.cos(2 * math.pi * heart.squeeze), own.y), rng, 6, 18, 10)
    own.paint(inside, heart.blood * (1 + 0.03 * swirl))
    for middle in (0.62 * math.pi, -0.70 * math.pi):
        bearing = middle + rng.uniform(-0.2, 0.2)
        thick = rng.uniform(0.013, 0.018)
        # Free in the full ventricle, pressed into the wall of the empty one.
        along = heart.cavity - thick * (1.35 - 1.1 * heart.squeeze)
        cos, sin = math.cos(bearing), math.sin(bearing)
        x, y = own.x - along * cos, own.y - along * heart.oval * sin
        muscle = ellipse(x * cos + y * sin, y * cos - x * sin, thick * 1.1, thick * 0.85)
        own.paint(muscle, heart.muscle * 1.05)
