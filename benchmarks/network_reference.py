"""FIR resampling without our kernels: the form with which NCSN++ is compared."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

import models.layers
from op.upfirdn2d import Padding

Tensor = torch.Tensor


def plain_upfirdn2d(x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: Padding = (0, 0)) -> Tensor:
    """`op.upfirdn2d.upfirdn2d` by reshape and pad: every zero is written and filtered, and every sample computed.

    So does the native fallback of StyleGAN2's operator, which the published code runs where its CUDA extension does not
    build: each channel of each image is convolved on its own at the full rate, then decimated.
    """
    batch, channels, height, width = x.shape
    x = x.reshape(batch * channels, height, 1, width, 1)
    x = F.pad(x, (0, up - 1, 0, 0, 0, up - 1)).reshape(batch * channels, 1, height * up, width * up)
    x = F.pad(x, (*pad, *pad))
    x = F.conv2d(x, kernel.flip(0, 1)[None, None].to(x))
    return x[:, :, ::down, ::down].reshape(batch, channels, *x[0, 0, ::down, ::down].shape)


@contextmanager
def plain_resampling() -> Iterator[None]:
    """Networks resample with `plain_upfirdn2d` inside the block."""
    ours = models.layers.upfirdn2d
    models.layers.upfirdn2d = plain_upfirdn2d
    try:
        yield
    finally:
        models.layers.upfirdn2d = ours
