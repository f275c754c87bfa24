"""The heart phantom: a cine as hard as a real one, because tissue moves through the slice and the blood flows.

The heart shortens along its long axis, so that a slice that stands still in space cuts tissue nearer to the base during
systole. `Motion.depth` is the position of the cut within the tissue; whatever depends on it changes its cross-section
or comes and goes: papillary muscles, chordae, mitral leaflets, trabeculae, fat, and the texture of the muscle. The
brightness of the blood follows inflow, jets and eddies. The chest breathes more slowly than the heart beats.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch

from mri.phantom.anatomy import coil_shading, paint_aorta, paint_chest
from mri.phantom.canvas import Canvas, ellipse, solid_texture
from mri.phantom.simple import Heart
from mri.phase import smooth_phase
from utils.errors import InputError

Tensor = torch.Tensor

SLICE = 0.022  # thickness of the slice: 8 mm of a field of view of 360 mm
BEARINGS = (0.62 * math.pi, -0.70 * math.pi)  # of the papillary muscles; the septum is at 0


def make_heart(frames: int = 16, size: int = 192, seed: int = 0) -> Tensor:
    """One heartbeat of the heart phantom.

    Parameters
    ----------
    frames
        Frames per heartbeat, at least 2. The heart would come back to frame 0 in frame `frames`; the chest, which
        breathes, and the blood's eddies would not.
    size
        Height and width in pixels, at least 64, odd or even.
    seed
        Chooses the patient: anatomy, contrasts, texture, volume curve, flow, breathing and image phase.

    Returns
    -------
    complex64 `(frames, size, size)`; the largest magnitude is 1. The same arguments give the same bits.

    Raises
    ------
    InputError
        For fewer than 2 frames, or a too small size.
    """
    if frames < 2:
        raise InputError(f"a phantom of {frames} frame(s) cannot beat; ask for at least 2 frames.")
    if size < 64:
        raise InputError(f"a heart of {size} pixels cannot be drawn; ask for a size of at least 64.")
    rng = np.random.default_rng(seed)
    canvas = Canvas.blank(frames, size)
    shading = coil_shading(canvas, rng)
    breath = _breathing(frames, rng)
    chest = _breathing_chest(canvas, breath)
    motion = Motion.random(frames, breath, rng)
    paint_chest(chest, rng)
    paint_aorta(chest, motion.heart.squeeze, motion.blood(0.25, rng), rng)
    _paint_heart(canvas, motion, rng)
    magnitude = canvas.image.clamp_min(0) * shading
    drift = motion.time * smooth_phase(1, size, size, seed + 1, peak=0.3)
    return torch.polar(magnitude / magnitude.max(), smooth_phase(frames, size, size, seed, motion=0.02) + drift)


def _breathing(frames: int, rng: np.random.Generator) -> Tensor:
    """Displacement of the chest wall, `(frames, 1, 1)`: about a third of a breath of 3 to 5 pixels of 192."""
    period = rng.uniform(2.6, 3.4)  # heartbeats per breath
    part = torch.arange(frames) / frames / period + rng.uniform(0.06, 0.14)
    rise = rng.uniform(3, 5) / 192 * 0.5 * torch.cos(2 * math.pi * part)
    return (rise - rise.mean()).view(-1, 1, 1)


def _breathing_chest(canvas: Canvas, breath: Tensor) -> Canvas:
    """The front of the chest and the liver move with the breath; the spine stands still."""
    front = torch.sigmoid((0.05 - canvas.y) / 0.07)
    liver = torch.exp(-((canvas.x + 0.24) ** 2 + (canvas.y - 0.16) ** 2) / (2 * 0.1**2))
    return canvas.moved(canvas.x - 0.3 * breath * canvas.x, canvas.y - breath * (front + 0.8 * liver).clamp_max(1))


@dataclasses.dataclass
class Motion:
    """What moves, flows and passes through the slice; tensors `(frames, 1, 1)`."""

    heart: Heart
    depth: Tensor  # long-axis position of the cut within the tissue: 0 at end-diastole, positive towards the base
    time: Tensor  # heartbeats
    filling: Tensor  # inflow relative to its largest value over the cycle; negative during ejection

    @staticmethod
    def random(frames: int, breath: Tensor, rng: np.random.Generator) -> "Motion":
        """The motion of a random patient, whose heart follows the breath a little."""
        heart = Heart.random(frames, rng)
        heart = dataclasses.replace(heart, x=heart.x + 0.15 * breath, y=heart.y + 0.4 * breath)
        depth = rng.uniform(0.028, 0.038) * heart.squeeze
        # The peak of a coarse series would depend on where its frames fall; that of the curve is near 4 per beat.
        return Motion(heart, depth, torch.arange(frames).view(-1, 1, 1) / frames, (heart.filling / 4).clamp(-1, 1))

    def blood(self, delay: float, rng: np.random.Generator) -> Tensor:
        """Mean brightness of the blood in a vessel that the inflow reaches after `delay` heartbeats."""
        steps = round(delay * len(self.filling))
        inflow = rng.uniform(0.05, 0.09) * self.filling.roll(steps, 0)
        slow = rng.uniform(0.02, 0.04) * torch.cos(2 * math.pi * (self.time - delay) + rng.uniform(-0.6, 0.6))
        return self.heart.blood[:1] * (1 + inflow - slow)

    def inside(self, tip: float | Tensor) -> Tensor:
        """Part of the slice's thickness, 0 to 1, taken by a structure that reaches from the apex up to `tip`."""
        return ((tip - self.depth) / SLICE + 0.5).clamp(0, 1)


def _twisted_wobble(
    own: Canvas, depth: Tensor, rng: np.random.Generator, orders: Sequence[int], size: float, pitch: float
) -> Tensor:
    """`wobble` whose harmonics turn with the depth by up to `pitch` radians per unit length."""
    angle, total = torch.atan2(own.y, own.x), torch.zeros(1)
    for n in orders:
        amplitude, start, twist = rng.uniform(0.3, 1) * size, rng.uniform(0, 2 * math.pi), rng.uniform(-pitch, pitch)
        total = total + amplitude * torch.cos(n * angle + (start + twist * depth))
    return total


def _paint_heart(canvas: Canvas, motion: Motion, rng: np.random.Generator) -> None:
    """Vessels of the lung, fat and pericardium, right ventricle, left ventricle, coronary vessels."""
    heart, depth = motion.heart, motion.depth
    piece = canvas.around(float(heart.x.mean()), float(heart.y.mean()), 0.32)
    x, y = piece.x - heart.x, piece.y - heart.y
    _paint_lung_vessels(piece.moved(x, y), motion, rng)
    cos, sin = torch.cos(heart.turn), torch.sin(heart.turn)
    own = piece.moved(cos * x + sin * y, cos * y - sin * x)  # first axis points to the right ventricle
    uneven = _twisted_wobble(own, depth, rng, (2, 3, 4), 0.014, 60)
    epicardium = ellipse(own.x, own.y, heart.outside, heart.outside * heart.oval, uneven)
    right, right_muscle = _right_ventricle(own, motion, rng)
    wall = rng.uniform(0.009, 0.013) + 0.004 * heart.squeeze

    sac = torch.minimum(epicardium, right - wall)
    uneven = _twisted_wobble(own, depth, rng, (2, 3, 5, 8), 0.45, 80)
    fat = rng.uniform(0.006, 0.014) * (1 + uneven).clamp_min(0.1)
    own.paint(sac - fat - 0.005, 0.12)
    own.paint(sac - fat, rng.uniform(0.62, 0.78) * (1 + 0.08 * solid_texture(own, depth, rng, 20, 60, 12)))
    own.paint(right - wall, heart.muscle)
    flow = 1 + _eddies(own, motion, rng) + _jet(own, motion, (0.11, rng.uniform(-0.04, 0.04)), 0.035, rng)
    own.paint(right, motion.blood(0.0, rng) * rng.uniform(0.88, 1.0) * flow)
    _paint_right_muscles(own.moved(*right_muscle), motion, right, rng)
    _paint_left_ventricle(own, motion, epicardium, rng)
    for side in (-1, 1):  # coronary vessels run obliquely along the grooves between the ventricles
        groove, bend = heart.outside + 0.011, side * rng.uniform(1.15, 1.4) + rng.uniform(-7, 7) * depth
        dot = torch.hypot(own.x - groove * torch.cos(bend), own.y - groove * heart.oval * torch.sin(bend))
        own.paint(dot - 0.0075, 0.25)
        own.paint(dot - 0.0055, motion.heart.blood[:1])


def _paint_lung_vessels(around: Canvas, motion: Motion, rng: np.random.Generator) -> None:
    """Small vessels beside the heart, which pushes them into the slice and out of it."""
    for _ in range(14):
        bearing, reach = rng.uniform(-0.85, 0.1) * math.pi, rng.uniform(0.14, 0.2)
        slide = rng.normal(0, 0.4, 2)
        x = around.x - reach * math.cos(bearing) - float(slide[0]) * motion.depth
        y = around.y - reach * math.sin(bearing) - float(slide[1]) * motion.depth
        tip, radius = rng.uniform(-0.01, 0.05), rng.uniform(0.0025, 0.005)
        here = motion.inside(tip) if rng.random() < 0.5 else 1 - motion.inside(tip)
        around.paint(ellipse(x, y, radius * rng.uniform(1, 2), radius), rng.uniform(0.3, 0.5), 0.9 * here)


# ------------------------------------------------------------------------------------------------- blood


def _eddies(own: Canvas, motion: Motion, rng: np.random.Generator, waves: int = 24) -> Tensor:
    """Relative brightness of swirling blood: it deforms and renews itself, and is strongest during filling.

    Each wave has its own rate, and finer waves change faster, so that no frame is a moved copy of another. A vortex
    that builds up with each inflow and dies away turns the coordinates, most in its centre.
    """
    radius = torch.hypot(own.x, own.y)
    rise = torch.sin(2 * math.pi * (rng.uniform(0.8, 1.6) * motion.time + rng.uniform()))
    turn = rng.uniform(0.8, 1.4) * rise * torch.exp(-((radius / 0.06) ** 2))
    x, y = torch.cos(turn) * own.x - torch.sin(turn) * own.y, torch.sin(turn) * own.x + torch.cos(turn) * own.y
    field = torch.zeros(1)
    for frequency in np.exp(rng.uniform(math.log(4), math.log(24), waves)):
        direction, start = rng.uniform(0, 2 * math.pi, 2)
        rate = rng.normal() * (1 + frequency / 8)  # cycles per heartbeat
        if frequency * own.pixel < 0.45:
            k = 2 * math.pi * frequency
            phase = start + 2 * math.pi * rate * motion.time
            field = field + torch.cos(k * math.cos(direction) * x + k * math.sin(direction) * y + phase)
    strength = rng.uniform(0.035, 0.05) * (0.8 + 0.7 * motion.filling.abs())
    return strength * field * math.sqrt(2 / waves)


def _jet(
    own: Canvas, motion: Motion, centre: tuple[float, float], width: float, rng: np.random.Generator
) -> Tensor:
    """Relative brightness of the inflow jet: a bright core of fresh spins, and a dark rim where it shears."""
    bend = 2 * math.pi * (motion.time + rng.uniform())
    x = own.x - centre[0] - 0.015 * torch.cos(bend)
    y = own.y - centre[1] - 0.015 * torch.sin(bend)
    square = (x**2 + (y * rng.uniform(0.7, 1.4)) ** 2) / (2 * width**2)
    return rng.uniform(0.12, 0.18) * motion.filling.clamp_min(0) * (1 - 0.8 * square) * torch.exp(-square)


# ------------------------------------------------------------------------------------------- ventricles


def _right_ventricle(own: Canvas, motion: Motion, rng: np.random.Generator) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A cavity beside the left ventricle, which is painted over it later; its shape depends on the depth.

    Returns the signed distance to the cavity, and coordinates that move with its muscle.
    """
    squeeze = motion.heart.squeeze
    shift = rng.uniform(0.082, 0.10) - rng.uniform(0.008, 0.014) * squeeze
    a = rng.uniform(0.09, 0.11) - rng.uniform(0.020, 0.028) * squeeze
    b = rng.uniform(0.13, 0.155) - rng.uniform(0.016, 0.024) * squeeze
    x, y = own.x - shift, own.y - rng.uniform(-0.02, 0.02)
    uneven = _twisted_wobble(own.moved(x, y), motion.depth, rng, (3, 4, 6), 0.03, 60)
    return ellipse(x, y, a, b, uneven), (x * a[:1] / a, y * b[:1] / b)


def _paint_right_muscles(own: Canvas, motion: Motion, right: Tensor, rng: np.random.Generator) -> None:
    """Trabeculae on the wall, the moderator band, which lies near the apex, and small papillary muscles."""
    muscle, depth = motion.heart.muscle, 1.5 * motion.depth  # the right ventricle shortens more
    ridges = 0.009 + 0.010 * solid_texture(own, depth, rng, 12, 45, 24)
    own.paint(torch.maximum(right, -right - ridges), muscle * 1.15, opacity=0.8)
    slope, offset = rng.uniform(-0.4, 0.4), rng.uniform(-0.05, 0.05)
    band = (own.y - slope * own.x - offset - 0.5 * depth).abs() - 0.0045
    band = torch.maximum(torch.maximum(band, right), 0.02 - own.x)
    own.paint(band, muscle, 0.8 * motion.inside(rng.uniform(0.004, 0.016)))
    for tip in (rng.uniform(0.005, 0.015), rng.uniform(0.02, 0.04)):
        x, y = own.x - rng.uniform(0.02, 0.05), own.y - offset - rng.choice([-1, 1]) * rng.uniform(0.03, 0.06)
        radius = rng.uniform(0.008, 0.012) * _taper(motion, tip)
        own.paint(torch.maximum(ellipse(x, y, radius * 1.2, radius), right), muscle, motion.inside(tip))


def _paint_left_ventricle(own: Canvas, motion: Motion, epicardium: Tensor, rng: np.random.Generator) -> None:
    """Muscle, blood with a rough border, papillary muscles with chordae, and the mitral leaflets."""
    heart, depth = motion.heart, motion.depth
    angle = torch.atan2(own.y, own.x)
    radius = torch.hypot(own.x, own.y / heart.oval)
    # The texture moves with the muscle: it is drawn at the end-diastolic position of each point of the wall.
    layer = (radius - heart.cavity) / (heart.outside - heart.cavity)
    first = heart.cavity[:1] + layer * (heart.outside[:1] - heart.cavity[:1])
    tissue = own.moved(first * torch.cos(angle), first * torch.sin(angle))
    own.paint(epicardium, heart.muscle * (1 + 0.08 * solid_texture(tissue, depth, rng, 14, 55, 24)))

    lateral = 0.3 + 0.35 * (1 - torch.cos(angle))  # the septum is smooth, the free wall is not
    rough = _twisted_wobble(own, depth, rng, (2, 3), 0.02, 40)
    rough = rough + _twisted_wobble(own, depth, rng, (7, 9, 11, 14, 17), 0.028, 150) * lateral
    inside = ellipse(own.x, own.y, heart.cavity, heart.cavity * heart.oval, rough * (1 + 0.8 * heart.squeeze))
    orifice = (-rng.uniform(0.005, 0.025), rng.uniform(-0.02, 0.02))
    flow = 1 + _eddies(own, motion, rng) + _jet(own, motion, orifice, 0.03, rng)
    own.paint(inside, motion.blood(0.0, rng) * flow)
    ridges = lateral * (0.006 + 0.009 * solid_texture(tissue, depth, rng, 20, 45, 24))
    own.paint(torch.maximum(inside, -inside - ridges), heart.muscle * 1.2, opacity=0.75)
    for bearing in BEARINGS:
        _paint_papillary(own, motion, bearing + rng.uniform(-0.2, 0.2), rng)
    _paint_leaflets(own, motion, inside, orifice, rng)


def _taper(motion: Motion, tip: float) -> Tensor:
    """Relative radius of a muscle that ends in a rounded tip."""
    return ((tip - motion.depth) / 0.03 + 0.3).clamp(0.02, 1.3).sqrt()


def _paint_papillary(own: Canvas, motion: Motion, bearing: float, rng: np.random.Generator) -> None:
    """A muscle of one long head, which becomes thinner towards the base, and two that end near the slice.

    Where a head has ended, the slice cuts the chorda that leads from it to the leaflets.
    """
    heart, muscle = motion.heart, motion.heart.muscle * 1.05
    tips = (rng.uniform(0.028, 0.045), rng.uniform(0.008, 0.022), rng.uniform(-0.004, 0.016))
    for tip, aside, thick in zip(tips, (0.0, 0.017, -0.015), (0.016, 0.011, 0.009), strict=True):
        thick = thick * rng.uniform(0.85, 1.15)
        # Free in the full ventricle, pressed into the wall of the empty one.
        along = heart.cavity - thick * (1.5 - 1.2 * heart.squeeze)
        turned = bearing + (aside * rng.uniform(0.8, 1.3)) / along
        x = own.x - along * torch.cos(turned)
        y = own.y - along * heart.oval * torch.sin(turned)
        cos, sin = math.cos(bearing), math.sin(bearing)
        radius = thick * _taper(motion, tip) * (1 + 0.12 * heart.squeeze)
        shape = ellipse(x * cos + y * sin, y * cos - x * sin, radius * rng.uniform(1.05, 1.35), radius * 0.85)
        own.paint(shape, muscle, motion.inside(tip))
        inward = 0.02 + 0.5 * (motion.depth - tip)
        own.paint(torch.hypot(x + inward * cos, y + inward * sin) - 0.0028, muscle, 0.45 * (1 - motion.inside(tip)))


def _paint_leaflets(
    own: Canvas, motion: Motion, inside: Tensor, centre: tuple[float, float], rng: np.random.Generator
) -> None:
    """The mitral leaflets: open, they reach down into the slice; closed, they leave it with the base.

    `inside` is the signed distance to the cavity, beyond which they do not reach.
    """
    opening = motion.filling.clamp_min(0).sqrt()
    edge = rng.uniform(0.030, 0.036) - rng.uniform(0.024, 0.034) * opening  # where their free edge is
    here = 1 - motion.inside(edge)
    tilt = rng.uniform(0, math.pi)
    cos, sin = math.cos(tilt), math.sin(tilt)
    x, y = own.x - centre[0], own.y - centre[1]
    along, across = cos * x + sin * y, cos * y - sin * x
    half = motion.heart.cavity * (0.25 + 0.35 * here)  # the free edge is round: a deeper cut shows more of it
    for side, share in ((1, 1.0), (-1, 0.6)):  # anterior and posterior leaflet
        bow = side * share * (0.004 + 0.026 * opening) * (1 - (along / half) ** 2)
        leaflet = torch.maximum((across - bow).abs() - 0.0028, along.abs() - half)
        own.paint(torch.maximum(leaflet, inside), motion.heart.muscle * 1.1, 0.6 * here)
