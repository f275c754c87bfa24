"""Photographs as tissue of moving scenes: edges and textures of real things, and no MR image among them.

They are the free images that come with scikit-image (https://scikit-image.org/docs/stable/api/skimage.data.html).
"""

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from mri.scenes import Draw

Tensor = torch.Tensor

NAMES = ("astronaut", "brick", "camera", "cat", "coffee", "coins", "grass", "gravel", "hubble_deep_field",
         "immunohistochemistry", "moon", "retina", "rocket", "clock", "cell", "stereo_motorcycle")  # fmt: skip
SMALLEST_PART = 0.25  # of the side of a photograph
OUTLIERS = 0.5  # percent of the pixels that are clipped at either end


@cache
def photograph(name: str) -> Tensor:
    """Grey values 0 … 1 of one of NAMES: float32 `(height, width)`."""
    from skimage import data

    found = getattr(data, name)()
    image = np.asarray(found[0] if isinstance(found, tuple) else found, dtype=np.float32)
    grey = image.mean(axis=-1) if image.ndim == 3 else image
    low, high = np.percentile(grey, (OUTLIERS, 100 - OUTLIERS))
    return torch.from_numpy(((grey - low) / (high - low)).clip(0, 1).astype(np.float32))


def part_of_a_photograph(draw: "Draw", shape: tuple[int, int]) -> Tensor:
    """A part of any photograph, of any place, size, contrast and polarity, resampled to `shape`: values 0 … 1."""
    image = photograph(draw.choice(NAMES))
    most = min(whole / wanted for whole, wanted in zip(image.shape, shape, strict=True))  # its pixels per pixel
    scale = most * draw.log_uniform(SMALLEST_PART, 1)
    rows, columns = (max(2, int(wanted * scale)) for wanted in shape)
    top, left = draw.integer(0, image.shape[0] - rows), draw.integer(0, image.shape[1] - columns)
    part = image[top : top + rows, left : left + columns]
    part = interpolate(part[None, None], shape, mode="bilinear", antialias=True, align_corners=False)[0, 0]
    flips = [axis for axis in range(2) if draw.coin(0.5)]
    part = (part.flip(flips) if flips else part).clamp(0, 1)
    return ((1 - part if draw.coin(0.3) else part) ** draw.uniform(0.6, 2)).to(draw.device)
