"""Drawing: pixels, shapes as signed distances, and textures.

Lengths are in units of the field of view, x to the right and y downwards from the image centre, so that every image
size shows the same object. A shape is a signed distance (negative inside) that a sigmoid about one pixel wide turns
into coverage. A texture is a sum of plane waves below the Nyquist frequency of the image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

Tensor = torch.Tensor
Length = float | Tensor  # units of the field of view; a tensor (frames, 1, 1) where it changes with time


@dataclass
class Canvas:
    """Pixels and the position of each in the object, `(frames, height, width)` or broadcast to it."""

    image: Tensor
    x: Tensor
    y: Tensor
    pixel: float  # units of the field of view

    @staticmethod
    def blank(frames: int, size: int) -> "Canvas":
        """A black square canvas with the coordinate origin at pixel `size // 2`."""
        axis = (torch.arange(size, dtype=torch.float32) - size // 2) / size
        return Canvas(torch.zeros(frames, size, size), axis.view(1, 1, -1), axis.view(1, -1, 1), 1 / size)

    def paint(self, distance: Tensor, value: Length, opacity: Length = 1.0) -> None:
        """Paint `value` where `distance` (signed, units of the field of view) is negative."""
        cover = torch.sigmoid(distance * (-4 / self.pixel)) * opacity
        self.image += cover * (value - self.image)

    def window(self, left: float, right: float, top: float, bottom: float) -> "Canvas":
        """The part between these image coordinates. It shares the memory of the whole."""
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
        """A black canvas with the same coordinates, to collect an opacity."""
        return Canvas(torch.zeros_like(self.image), self.x, self.y, self.pixel)

    def moved(self, x: Tensor, y: Tensor) -> "Canvas":
        """The same pixels with other object coordinates."""
        return Canvas(self.image, x, y, self.pixel)


def ellipse(x: Tensor, y: Tensor, a: Length, b: Length, wobble: Tensor | float = 0.0) -> Tensor:
    """Approximate signed distance to an ellipse at the origin whose radii are scaled by `1 + wobble`."""
    scaled = torch.sqrt((x / a) ** 2 + (y / b) ** 2 + 1e-8)
    slope = torch.sqrt((x / a**2) ** 2 + (y / b**2) ** 2 + 1e-8)
    return (scaled - 1 - wobble) * scaled / slope


def segment(x: Tensor, y: Tensor, start: Sequence[float], end: Sequence[float], radius: float) -> Tensor:
    """Signed distance to a straight vessel with round ends."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = (((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return torch.hypot(x - start[0] - along * dx, y - start[1] - along * dy) - radius


def wobble(x: Tensor, y: Tensor, rng: np.random.Generator, orders: Sequence[int], size: float) -> Tensor:
    """Relative change of a radius with the angle: one random harmonic of at most `size` per order."""
    angle, total = torch.atan2(y, x), torch.zeros(())
    for n in orders:
        total = total + rng.uniform(0.3, 1) * size * torch.cos(n * angle + rng.uniform(0, 2 * math.pi))
    return total


def texture(canvas: Canvas, rng: np.random.Generator, low: float, high: float, waves: int = 40) -> Tensor:
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


def solid_texture(
    canvas: Canvas, depth: Tensor, rng: np.random.Generator, low: float, high: float, waves: int = 40
) -> Tensor:
    """The cut of a slice through a three-dimensional `texture`.

    `depth` is the third object coordinate of each pixel, `(frames, 1, 1)`. Tissue that moves through the slice changes
    its depth, and with it the pattern.
    """
    field = torch.zeros(1)
    for frequency in np.exp(rng.uniform(math.log(low), math.log(high), waves)):
        direction, start = rng.uniform(0, 2 * math.pi, 2)
        out = rng.uniform(-1, 1)  # cosine of the angle to the slice's normal, uniform on the sphere
        if frequency * canvas.pixel < 0.45:
            k = 2 * math.pi * frequency
            k_x, k_y = k * math.sqrt(1 - out**2) * np.array([math.cos(direction), math.sin(direction)])
            field = field + torch.cos(float(k_x) * canvas.x + (float(k_y) * canvas.y + (k * out * depth + start)))
    return field * math.sqrt(2 / waves)


def around_once(frames: int) -> Tensor:
    """Angle of each frame in the cardiac cycle, `(frames, 1, 1)`, radians."""
    return (2 * math.pi * torch.arange(frames) / frames).view(-1, 1, 1)
