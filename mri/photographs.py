"""Photographs used as tissue in moving scenes: edges and textures of real objects, but no MR images.

They come with scikit-image, which names their sources (https://scikit-image.org/docs/stable/api/skimage.data.html).
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from mri.draw import Draw
from utils.errors import InputError

Tensor = torch.Tensor

FILES = ("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
         "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "retina.jpg", "rocket.jpg",
         "clock_motion.png", "cell.png", "motorcycle_left.png")  # fmt: skip
SMALLEST_PART = 0.25  # side of the smallest part, over that of the largest with the same aspect ratio
OUTLIERS = 0.5  # percent of the pixels that are clipped at either end


@cache
def photograph(file: str) -> Tensor:
    """Grey values 0 … 1 of one of FILES: float32 `(height, width)`.

    Raises
    ------
    InputError
        if scikit-image is installed without its images.
    """
    import skimage.data

    path = Path(skimage.data.__file__).with_name(file)
    if not path.is_file():
        raise InputError(f"{path} is missing: scikit-image was installed without its images; reinstall its wheel.")
    with Image.open(path) as opened:
        image = np.asarray(opened, dtype=np.float32)
    grey = image.mean(axis=-1) if image.ndim == 3 else image
    low, high = np.percentile(grey, (OUTLIERS, 100 - OUTLIERS))
    return torch.from_numpy(((grey - low) / (high - low)).clip(0, 1).astype(np.float32))


def part_of_a_photograph(draw: Draw, shape: tuple[int, int]) -> Tensor:
    """A random part of a random photograph, with random contrast and polarity, resampled to `shape`: values 0 … 1."""
    image = photograph(draw.choice(FILES))
    most = min(whole / wanted for whole, wanted in zip(image.shape, shape, strict=True))  # its pixels per output pixel
    scale = most * draw.log_uniform(SMALLEST_PART, 1)
    rows, columns = (max(2, int(wanted * scale)) for wanted in shape)
    top, left = draw.integer(0, image.shape[0] - rows), draw.integer(0, image.shape[1] - columns)
    part = image[top : top + rows, left : left + columns]
    part = interpolate(part[None, None], shape, mode="bilinear", antialias=True, align_corners=False)[0, 0]
    flips = [axis for axis in range(2) if draw.coin(0.5)]
    part = (part.flip(flips) if flips else part).clamp(0, 1)
    return ((1 - part if draw.coin(0.3) else part) ** draw.uniform(0.6, 2)).to(draw.device)
