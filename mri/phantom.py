"""A beating heart in a chest, drawn from a seed: a cine with a known truth and no file to download.

The view is short-axis-like, with contrasts as in balanced steady-state free precession: blood and fat are
bright, muscle is grey, lung is dark. All geometry is in units of the field of view, x to the right and y
downwards from the image centre, so that every image size shows the same object. Shapes are signed distances
(negative inside) turned into coverage by a sigmoid about one pixel wide; textures are sums of plane waves
below the Nyquist frequency of the image.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator

from mri.io import save_array
from mri.phase import smooth_phase
from utils.arguments import LARGEST_SEED, integer_between
from utils.errors import InputError, exit_on_input_error

Tensor = torch.Tensor
Length = float | Tensor  # units of the field of view; a tensor (frames, 1, 1) where it moves


def make_phantom(frames: int = 16, size: int = 192, seed: int = 0) -> Tensor:
    """One heartbeat.

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
    shading = _coil_shading(canvas, rng)
    chest = _breathing(canvas, rng)
    heart = Heart.draw_lots(frames, rng)
    thorax = _paint_body(chest, rng)
    _paint_lungs(chest, thorax, rng)
    _paint_back(chest, rng)
    _paint_liver(chest, thorax, rng)
    _paint_aorta(chest, heart, rng)
    _paint_heart(canvas, heart, rng)
    magnitude = canvas.image.clamp_min(0) * shading
    return torch.polar(magnitude / magnitude.max(), smooth_phase(frames, size, size, seed))


# ----------------------------------------------------------------------------------------------- drawing


@dataclass
class Canvas:
    """Pixels and the place of each in the object, `(frames, height, width)` or broadcast to it."""

    image: Tensor
    x: Tensor
    y: Tensor
    pixel: float  # units of the field of view

    @staticmethod
    def blank(frames: int, size: int) -> "Canvas":
        """Black, with the coordinate origin at pixel `size // 2`."""
        axis = (torch.arange(size, dtype=torch.float32) - size // 2) / size
        return Canvas(torch.zeros(frames, size, size), axis.view(1, 1, -1), axis.view(1, -1, 1), 1 / size)

    def paint(self, distance: Tensor, value: Length, opacity: Length = 1.0) -> None:
        """Lay `value` over the image where `distance` (signed, units of the field of view) is negative."""
        cover = torch.sigmoid(distance * (-4 / self.pixel)) * opacity
        self.image += cover * (value - self.image)

    def window(self, left: float, right: float, top: float, bottom: float) -> "Canvas":
        """The part between these coordinates (of the image, not of the object), sharing its memory."""
        size = self.image.shape[-1]

        def span(low: float, high: float) -> slice:
            return slice(max(0, math.floor((low + 0.5) * size)), max(0, math.ceil((high + 0.5) * size)))

        rows, columns = span(top, bottom), span(left, right)
        x = self.x if self.x.shape[-2] == 1 else self.x[:, rows]
        y = self.y if self.y.shape[-1] == 1 else self.y[..., columns]
        return Canvas(self.image[:, rows, columns], x[..., columns], y[:, rows], self.pixel)

    def around(self, x: float, y: float, reach: float) -> "Canvas":
        """The square window of half-width `reach` about a point."""
        return self.window(x - reach, x + reach, y - reach, y + reach)

    def layer(self) -> "Canvas":
        """A black one of the same place, to collect the opacity of something."""
        return Canvas(torch.zeros_like(self.image), self.x, self.y, self.pixel)

    def moved(self, x: Tensor, y: Tensor) -> "Canvas":
        """The same pixels, at other places of the object."""
        return Canvas(self.image, x, y, self.pixel)


def _ellipse(x: Tensor, y: Tensor, a: Length, b: Length, wobble: Tensor | float = 0.0) -> Tensor:
    """Approximate signed distance to an ellipse at the origin whose radii are scaled by `1 + wobble`."""
    scaled = torch.sqrt((x / a) ** 2 + (y / b) ** 2 + 1e-8)
    slope = torch.sqrt((x / a**2) ** 2 + (y / b**2) ** 2 + 1e-8)
    return (scaled - 1 - wobble) * scaled / slope


def _segment(x: Tensor, y: Tensor, start: Sequence[float], end: Sequence[float], radius: float) -> Tensor:
    """Signed distance to a straight vessel with round ends."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = (((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return torch.hypot(x - start[0] - along * dx, y - start[1] - along * dy) - radius


def _wobble(x: Tensor, y: Tensor, rng: np.random.Generator, orders: Sequence[int], size: float) -> Tensor:
    """Relative change of a radius with the angle: one random harmonic of at most `size` per order."""
    angle = torch.atan2(y, x)
    return sum(
        rng.uniform(0.3, 1) * size * torch.cos(n * angle + rng.uniform(0, 2 * math.pi)) for n in orders
    )


def _texture(canvas: Canvas, rng: np.random.Generator, low: float, high: float, waves: int = 40) -> Tensor:
    """Random field of unit standard deviation with frequencies from `low` to `high` cycles per field of view.

    Waves above 0.45 cycles per pixel are left out, so that a small image is not aliased.
    """
    field = torch.zeros(1)
    for frequency in np.exp(rng.uniform(math.log(low), math.log(high), waves)):
        direction, start = rng.uniform(0, 2 * math.pi, 2)
        if frequency * canvas.pixel < 0.45:
            k_x, k_y = 2 * math.pi * frequency * np.array([math.cos(direction), math.sin(direction)])
            field = field + torch.cos(float(k_x) * canvas.x + (float(k_y) * canvas.y + start))
    return field * math.sqrt(2 / waves)


def _around_once(frames: int) -> Tensor:
    """Angle of each frame in the cycle, `(frames, 1, 1)`, radians."""
    return (2 * math.pi * torch.arange(frames) / frames).view(-1, 1, 1)


# ------------------------------------------------------------------------------------------- still parts


def _coil_shading(canvas: Canvas, rng: np.random.Generator) -> Tensor:
    """Receive sensitivity left in the image: brighter towards the chest coil, `(1, height, width)`."""
    tilt, lift = rng.uniform(-0.25, 0.25), rng.uniform(0.15, 0.45)
    return 1 - tilt * canvas.x - lift * canvas.y - rng.uniform(0.2, 0.6) * (canvas.x**2 + canvas.y**2)


def _breathing(canvas: Canvas, rng: np.random.Generator) -> Canvas:
    """Front of the chest drifts by 0.5 to 2 pixels of 192 peak to peak, out of step with the heart."""
    angle = _around_once(canvas.image.shape[0])
    rise = rng.uniform(0.25, 1.0) / 192 * torch.cos(angle + rng.uniform(0, 2 * math.pi))
    return canvas.moved(canvas.x, canvas.y - rise * torch.sigmoid((0.05 - canvas.y) / 0.07))


def _paint_body(chest: Canvas, rng: np.random.Generator) -> Tensor:
    """Skin, fat, muscle with ribs, and soft tissue; returns the signed distance to the inside of the ribs."""
    x, y = chest.x, chest.y
    a, b = rng.uniform(0.44, 0.475), rng.uniform(0.36, 0.41)
    body = _ellipse(x, y, a, b, _wobble(x, y, rng, (2, 3, 4), 0.02))
    fat_depth = rng.uniform(0.014, 0.035) * (1 + 0.4 * torch.cos(2 * torch.atan2(y, x)))
    grain = _texture(chest, rng, 15, 70)
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
        lung = _ellipse(lean, y, a, b, _wobble(x, y, rng, (2, 3, 4), 0.03))
        lung = torch.maximum(lung, thorax + 0.004)
        chest.paint(lung, rng.uniform(0.04, 0.08) * (1 + 0.35 * _texture(chest, rng, 10, 60)))
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
    piece.paint(_segment(piece.x, piece.y, start.tolist(), end.tolist(), radius), min(1.0, 190 * radius))
    if radius > 0.003:
        for turn in (-1, 1):
            bend, shrink = heading + turn * rng.uniform(0.15, 0.8), rng.uniform(0.55, 0.8)
            _paint_vessel(tree, rng, end, bend, radius * shrink, length * rng.uniform(0.5, 0.85))


def _paint_back(chest: Canvas, rng: np.random.Generator) -> None:
    """Vertebra with its canal, and back muscles whose fat streaks are line pairs of growing fineness."""
    x0, y0 = rng.uniform(-0.02, 0.02), rng.uniform(0.225, 0.25)
    x, y = chest.x - x0, chest.y - y0
    for side in (-1, 1):
        muscle = _ellipse(x - side * 0.085, y - 0.065, 0.06, 0.04)
        period = (0.026 if side < 0 else 0.018) * rng.uniform(0.9, 1.1)
        cycles = (x - 0.4 * side * y) / period
        streaks = (0.5 + 0.5 * torch.cos(2 * math.pi * (cycles + 2.0 * cycles.abs() * y))) ** 2
        chest.paint(muscle, 0.26 + rng.uniform(0.25, 0.4) * streaks)
    bone = _ellipse(x, y, 0.066, 0.05, _wobble(x, y, rng, (2, 3), 0.04))
    chest.paint(bone, 0.12)
    chest.paint(bone + 0.006, rng.uniform(0.4, 0.55) * (1 + 0.15 * _texture(chest, rng, 25, 80)))
    chest.paint(_ellipse(x, y - 0.068, 0.026, 0.02), 0.15)
    chest.paint(_ellipse(x, y - 0.068, 0.022, 0.016), rng.uniform(0.8, 0.95))
    chest.paint(_ellipse(x, y - 0.068, 0.010, 0.007), 0.45)


def _paint_liver(chest: Canvas, thorax: Tensor, rng: np.random.Generator) -> None:
    """Dome of the liver at the lower left of the picture, with veins."""
    x0, y0 = rng.uniform(-0.25, -0.22), rng.uniform(0.14, 0.18)
    x, y = chest.x - x0, chest.y - y0
    liver = _ellipse(x, y, rng.uniform(0.13, 0.16), rng.uniform(0.09, 0.12), _wobble(x, y, rng, (2, 3), 0.05))
    liver = torch.maximum(liver, thorax + 0.004)
    chest.paint(liver, rng.uniform(0.42, 0.55) * (1 + 0.05 * _texture(chest, rng, 20, 80)))
    tree = chest.layer()
    for _ in range(int(rng.integers(2, 5))):
        root = np.array([x0 + rng.uniform(0.02, 0.08), y0 + rng.uniform(-0.04, 0.05)])
        _paint_vessel(tree, rng, root, rng.normal(math.pi, 0.8), 0.0055, 0.05)
    chest.paint(liver + 0.006, rng.uniform(0.65, 0.85), opacity=tree.image)


# ------------------------------------------------------------------------------------------ moving parts


@dataclass
class Heart:
    """Shape and motion of one heart; lengths in units of the field of view, `(frames, 1, 1)` if moving."""

    squeeze: Tensor  # 0 at end-diastole, 1 at end-systole
    blood: Tensor  # brightness of the blood: inflow refreshes it
    x: Tensor  # centre of the left ventricle
    y: Tensor
    turn: Tensor  # radians; septum and right ventricle lie in this direction
    cavity: Tensor  # radius of the endocardium
    outside: Tensor  # radius of the epicardium
    oval: float  # ratio of the ventricle's axes
    muscle: float  # brightness

    @staticmethod
    def draw_lots(frames: int, rng: np.random.Generator) -> "Heart":
        """Every quantity that sets a patient's heart apart."""
        angle, squeeze = _around_once(frames), _volume_curve(frames, rng)
        cavity, wall = rng.uniform(0.086, 0.104), rng.uniform(0.027, 0.038)
        ejected = rng.uniform(0.038, 0.046)  # travel of the endocardium
        epicardium = cavity + wall - rng.uniform(0.006, 0.011) * squeeze
        inflow = rng.uniform(0.03, 0.08) * torch.cos(angle + rng.uniform(-0.6, 0.6))
        swing = rng.uniform(0.004, 0.009, 2) * rng.choice([-1, 1], 2)
        return Heart(
            squeeze=squeeze,
            blood=rng.uniform(0.82, 0.92) * (1 - inflow),
            x=rng.uniform(0.035, 0.085) + float(swing[0]) * squeeze,
            y=rng.uniform(-0.08, -0.03) + float(swing[1]) * squeeze,
            turn=math.pi + rng.uniform(-0.35, 0.6) + rng.uniform(0.08, 0.2) * squeeze,
            cavity=cavity - ejected * squeeze,
            outside=epicardium,
            oval=rng.uniform(0.92, 1.08),
            muscle=rng.uniform(0.28, 0.38),
        )


def _volume_curve(frames: int, rng: np.random.Generator) -> Tensor:
    """Contraction over the cycle, `(frames, 1, 1)`: fast systole, early filling, pause, atrial kick."""
    systole = rng.uniform(0.30, 0.42)
    filled = systole + rng.uniform(0.22, 0.30)
    kick = rng.uniform(0.84, 0.90)
    rest = rng.uniform(0.12, 0.25)
    phase = np.array([0, 0.04, systole * 0.55, systole, systole + 0.06, filled, kick, 0.97])
    value = np.array([0, 0.02, 0.62, 1.0, 0.97, rest + 0.04, rest, 0.01])
    curve = PchipInterpolator(
        np.concatenate([phase - 1, phase, phase + 1]), np.concatenate([value, value, value])
    )
    return torch.from_numpy(curve(np.arange(frames) / frames).astype(np.float32)).view(-1, 1, 1)


def _paint_aorta(chest: Canvas, heart: Heart, rng: np.random.Generator) -> None:
    """Descending aorta beside the spine, widest just after the ventricle has emptied; and a vein."""
    x0, y0 = rng.uniform(0.07, 0.095), rng.uniform(0.15, 0.175)
    piece = chest.around(x0, y0, 0.07)
    x, y = piece.x - x0, piece.y - y0
    radius = rng.uniform(0.024, 0.031) * (1 + 0.09 * torch.roll(heart.squeeze, 1, 0))
    piece.paint(torch.hypot(x, y) - radius - 0.006, 0.22)
    piece.paint(torch.hypot(x, y) - radius, heart.blood * rng.uniform(0.95, 1.1))
    x1, y1 = rng.uniform(-0.085, -0.06), rng.uniform(0.12, 0.15)
    piece = chest.around(x1, y1, 0.06)
    x, y = piece.x - x1, piece.y - y1
    piece.paint(_ellipse(x, y, rng.uniform(0.02, 0.03), rng.uniform(0.014, 0.02)), rng.uniform(0.65, 0.8))


def _paint_heart(canvas: Canvas, heart: Heart, rng: np.random.Generator) -> None:
    """Fat and pericardium, right ventricle, left ventricle, papillary muscles, coronary vessels."""
    piece = canvas.around(float(heart.x.mean()), float(heart.y.mean()), 0.32)
    x, y = piece.x - heart.x, piece.y - heart.y
    cos, sin = torch.cos(heart.turn), torch.sin(heart.turn)
    own = piece.moved(cos * x + sin * y, cos * y - sin * x)  # first axis points to the right ventricle
    epicardium = _ellipse(
        own.x, own.y, heart.outside, heart.outside * heart.oval, _wobble(own.x, own.y, rng, (3, 4), 0.015)
    )
    right, right_muscle = _right_ventricle(own, heart, rng)
    wall = rng.uniform(0.009, 0.013) + 0.004 * heart.squeeze

    sac = torch.minimum(epicardium, right - wall)
    fat = rng.uniform(0.006, 0.014) * (1 + _wobble(own.x, own.y, rng, (2, 3, 5), 0.45)).clamp_min(0.1)
    own.paint(sac - fat - 0.005, 0.12)
    own.paint(sac - fat, rng.uniform(0.62, 0.78) * (1 + 0.05 * _texture(own, rng, 20, 60, 12)))
    own.paint(right - wall, heart.muscle)
    own.paint(right, heart.blood * rng.uniform(0.88, 1.0) * (1 + 0.04 * _texture(own, rng, 6, 20, 10)))
    _paint_trabeculae(own.moved(*right_muscle), heart, right, rng)
    _paint_left_ventricle(own, heart, epicardium, rng)
    for side in (-1, 1):  # coronary vessels in the grooves between the ventricles
        groove = heart.outside + 0.011
        bend = side * rng.uniform(1.15, 1.4)
        dot = torch.hypot(own.x - groove * math.cos(bend), own.y - groove * heart.oval * math.sin(bend))
        own.paint(dot - 0.0075, 0.25)
        own.paint(dot - 0.0055, heart.blood)


def _right_ventricle(
    own: Canvas, heart: Heart, rng: np.random.Generator
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """An ellipse beside the left ventricle, which will be laid over it.

    Returns the signed distance to its cavity, and coordinates that move with its muscle.
    """
    shift = rng.uniform(0.082, 0.10) - rng.uniform(0.008, 0.014) * heart.squeeze
    a = rng.uniform(0.09, 0.11) - rng.uniform(0.020, 0.028) * heart.squeeze
    b = rng.uniform(0.13, 0.155) - rng.uniform(0.016, 0.024) * heart.squeeze
    x, y = own.x - shift, own.y - rng.uniform(-0.02, 0.02)
    return _ellipse(x, y, a, b, _wobble(x, y, rng, (3,), 0.04)), (x * a[:1] / a, y * b[:1] / b)


def _paint_trabeculae(own: Canvas, heart: Heart, right: Tensor, rng: np.random.Generator) -> None:
    """Muscle ridges on the wall of the right ventricle, and its moderator band with a small muscle."""
    depth = 0.009 + 0.009 * _texture(own, rng, 25, 50, 20)
    own.paint(torch.maximum(right, -right - depth), heart.muscle * 1.15, opacity=0.8)
    slope, offset = rng.uniform(-0.4, 0.4), rng.uniform(-0.05, 0.05)
    band = (own.y - slope * own.x - offset).abs() - 0.0035
    own.paint(torch.maximum(torch.maximum(band, right), 0.02 - own.x), heart.muscle, opacity=0.8)
    own.paint(torch.hypot(own.x - 0.04, own.y - offset - 0.045) - 0.008, heart.muscle)


def _paint_left_ventricle(own: Canvas, heart: Heart, epicardium: Tensor, rng: np.random.Generator) -> None:
    """Muscle whose texture moves with it, then blood with a rough border, then two papillary muscles."""
    angle = torch.atan2(own.y, own.x)
    radius = torch.hypot(own.x, own.y / heart.oval)
    # Where each piece of wall was at end-diastole: the texture is stuck to the muscle.
    depth = (radius - heart.cavity) / (heart.outside - heart.cavity)
    first = heart.cavity[:1] + depth * (heart.outside[:1] - heart.cavity[:1])
    fibres = _texture(own.moved(first * torch.cos(angle), first * torch.sin(angle)), rng, 10, 40, 20)
    own.paint(epicardium, heart.muscle * (1 + 0.07 * fibres))

    rough = _wobble(own.x, own.y, rng, (2, 3, 9, 11, 14), 0.018) * (1 + 0.8 * heart.squeeze)
    inside = _ellipse(own.x, own.y, heart.cavity, heart.cavity * heart.oval, rough)
    swirl = _texture(own.moved(own.x + 0.01 * torch.cos(2 * math.pi * heart.squeeze), own.y), rng, 6, 18, 10)
    own.paint(inside, heart.blood * (1 + 0.03 * swirl))
    for middle in (0.62 * math.pi, -0.70 * math.pi):
        bearing = middle + rng.uniform(-0.2, 0.2)
        thick = rng.uniform(0.013, 0.018)
        # They stand free in the full ventricle and are pressed into the wall of the empty one.
        along = heart.cavity - thick * (1.35 - 1.1 * heart.squeeze)
        cos, sin = math.cos(bearing), math.sin(bearing)
        x, y = own.x - along * cos, own.y - along * heart.oval * sin
        muscle = _ellipse(x * cos + y * sin, y * cos - x * sin, thick * 1.1, thick * 0.85)
        own.paint(muscle, heart.muscle * 1.05)


# ------------------------------------------------------------------------------------------ command line


def main() -> None:
    """Write one phantom to a file."""
    parser = argparse.ArgumentParser(description="Draw a beating-heart phantom and write it to a file.")
    frames, size, seed = integer_between(2, 1024), integer_between(64, 4096), integer_between(0, LARGEST_SEED)
    parser.add_argument("--frames", type=frames, default=16, help="frames of one heartbeat, at least 2")
    parser.add_argument("--size", type=size, default=192, help="height and width in pixels, even, at least 64")
    parser.add_argument("--seed", type=seed, default=0, help="the patient")
    parser.add_argument("--out", required=True, help="file to write: .mat, .npy, .npz or .h5")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    flags = parser.parse_args()
    image = make_phantom(flags.frames, flags.size, flags.seed).permute(1, 2, 0).numpy()
    save_array(flags.out, image, key="image", overwrite=flags.overwrite)
    print(f"wrote {flags.out}: image {image.shape} (row, column, frame) {image.dtype}")


if __name__ == "__main__":
    exit_on_input_error(main)
