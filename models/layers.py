"""The parts of NCSN++: noise embeddings, residual and attention blocks, resampling, pyramids.

Source: Song et al. 2021 (score SDEs), appendix H; initialisation as in DDPM (Ho et al. 2020).
Images are `(batch, channels, height, width)`; every part keeps the memory format it is given.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from op.fused import group_norm as fused_group_norm
from op.fused import residual_add
from op.upfirdn2d import downsample_padding, fir_kernel, upfirdn2d, upsample_padding
from utils.errors import InputError

Tensor = torch.Tensor
Activation = Callable[[Tensor], Tensor]
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)

NONLINEARITIES = ("elu", "relu", "lrelu", "swish")


def activation(name: str) -> Activation:
    """The pointwise nonlinearity called `name` (one of `NONLINEARITIES`) upstream; `lrelu` has slope 0.2."""
    match name:
        case "elu":
            return F.elu
        case "relu":
            return F.relu
        case "lrelu":
            return _leaky_relu
        case "swish":
            return F.silu
    raise InputError(f"nonlinearity must be one of {', '.join(NONLINEARITIES)}, not {name!r}.")


def _leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, negative_slope=0.2)


def _initialise(layer: Layer, scale: float = 1.0) -> Layer:
    """Uniform weights of variance scale / mean(fan in, fan out), zero biases.

    A scale of 0, given to a block's last layer to start it as the identity, becomes 1e-10: the published
    value, which leaves weights of about 1e-6.
    """
    taps = layer.weight[0, 0].numel()
    fan_mean = taps * (layer.weight.shape[0] + layer.weight.shape[1]) / 2
    bound = math.sqrt(3 * (scale or 1e-10) / fan_mean)
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)
    return layer


def conv3x3(channels_in: int, channels_out: int, scale: float = 1.0) -> nn.Conv2d:
    """3×3 convolution that keeps height and width."""
    return _initialise(nn.Conv2d(channels_in, channels_out, 3, padding=1), scale)


def conv1x1(channels_in: int, channels_out: int, scale: float = 1.0) -> nn.Conv2d:
    """1×1 convolution."""
    return _initialise(nn.Conv2d(channels_in, channels_out, 1), scale)


def linear(features_in: int, features_out: int, scale: float = 1.0) -> nn.Linear:
    """Linear layer on the last axis."""
    return _initialise(nn.Linear(features_in, features_out), scale)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with the published number of groups, which must divide `channels`."""
    groups = min(channels // 4, 32)
    if groups < 1 or channels % groups:
        raise InputError(
            f"{channels} channels cannot be normalised in min(channels // 4, 32) = {groups} groups; "
            f"choose nf and ch_mult that give multiples of 4 up to 128 and of 32 beyond, skips included."
        )
    return nn.GroupNorm(groups, channels, eps=1e-6)


def normalised(norm: nn.GroupNorm, x: Tensor, act: Activation | None = None, shift: Tensor | None = None) -> Tensor:
    """`act(norm(x + shift))`, as one operation where there is one; x `(batch, channels, H, W)`."""
    silu = act is F.silu
    x = fused_group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps, silu, shift)
    return x if silu or act is None else act(x)


class FourierFeatures(nn.Module):
    """Sine and cosine of a number at fixed random frequencies: `(batch,)` → `(batch, 2·size)`."""

    def __init__(self, size: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(size) * scale)

    def forward(self, value: Tensor) -> Tensor:
        # The argument reaches hundreds of radians, where float32 rounding shows: published weights need
        # the products taken in this order.
        angle = value[:, None] * self.frequencies * (2 * math.pi)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class PositionalFeatures(nn.Module):
    """Sine and cosine at frequencies 1 … 1e-4 (Vaswani et al. 2017): `(batch,)` → `(batch, size)`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, value: Tensor) -> Tensor:
        half = self.size // 2
        steps = torch.arange(half, dtype=value.dtype, device=value.device)
        angle = value[:, None] * torch.exp(steps * (-math.log(10000) / (half - 1)))
        return F.pad(torch.cat([angle.sin(), angle.cos()], dim=-1), (0, self.size % 2))


class NoiseEmbedding(nn.Module):
    """Two linear layers on features of the noise level: `(batch, feature_size)` → `(batch, size)`."""

    def __init__(self, feature_size: int, size: int, act: Activation) -> None:
        super().__init__()
        self.hidden = linear(feature_size, size)
        self.out = linear(size, size)
        self.act = act

    def forward(self, features: Tensor) -> Tensor:
        # the noise level spans orders of magnitude: never in the short floats of autocast
        with torch.autocast(features.device.type, enabled=False):
            return self.out(self.act(self.hidden(features.to(self.hidden.weight.dtype))))


class Upsample(nn.Module):
    """Twice the height and width, by FIR filtering."""

    def __init__(self, fir: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("kernel", fir_kernel(fir, gain=4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return upfirdn2d(x, self.kernel, up=2, pad=upsample_padding(len(self.kernel), 2))


class Downsample(nn.Module):
    """Half the height and width, by FIR filtering."""

    def __init__(self, fir: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("kernel", fir_kernel(fir), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return upfirdn2d(x, self.kernel, down=2, pad=downsample_padding(len(self.kernel), 2))


class ResidualBlock(nn.Module):
    """BigGAN residual block: norm, act, resample, conv, + noise shift, norm, act, dropout, conv, + shortcut.

    Parameters
    ----------
    channels_in, channels_out
        Of the input and of the output.
    noise_size
        Length of the noise embedding.
    act
        Nonlinearity.
    dropout
        Probability of dropping a value before the last convolution, in training.
    rescale
        Divide the sum with the shortcut by √2, which keeps its variance.
    init_scale
        Scale of the last convolution's initial variance.
    resample
        `Upsample`, `Downsample` or None; applied to the main path and to the shortcut alike.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        noise_size: int,
        act: Activation,
        dropout: float,
        rescale: bool,
        init_scale: float,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm_in = group_norm(channels_in)
        self.conv_in = conv3x3(channels_in, channels_out)
        self.shift = linear(noise_size, channels_out)
        self.norm_out = group_norm(channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = conv3x3(channels_out, channels_out, init_scale)
        resized = channels_in != channels_out or resample is not None
        self.shortcut = conv1x1(channels_in, channels_out) if resized else None
        self.resample = resample
        self.act = act
        self.rescale = rescale

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """`(batch, channels_in, H, W)` and `(batch, noise_size)` → `(batch, channels_out, H', W')`."""
        h = normalised(self.norm_in, x, self.act)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv_in(h)
        shift = None if noise is None else self.shift(self.act(noise))
        h = self.conv_out(self.dropout(normalised(self.norm_out, h, self.act, shift)))
        if self.shortcut is not None:
            x = self.shortcut(x)
        return residual_add(x, h, self.rescale)


class AttentionBlock(nn.Module):
    """Single-head self-attention over the pixels of an image, added to it."""

    def __init__(self, channels: int, rescale: bool, init_scale: float) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.query = linear(channels, channels, scale=0.1)
        self.key = linear(channels, channels, scale=0.1)
        self.value = linear(channels, channels, scale=0.1)
        self.out = linear(channels, channels, init_scale)
        self.rescale = rescale

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, channels, H, W)` → the same."""
        pixels = normalised(self.norm, x).flatten(2).transpose(1, 2)[:, None]  # (batch, 1 head, H·W, channels)
        h = F.scaled_dot_product_attention(self.query(pixels), self.key(pixels), self.value(pixels))
        h = self.out(h)[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])
        return residual_add(x, h, self.rescale)


class TemporalBlock(nn.Module):
    """Adds to every frame what its own features and those of the frames before and after it tell, pixel by pixel."""

    def __init__(self, channels: int, act: Activation, init_scale: float) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.conv = conv1x1(3 * channels, channels, init_scale)
        self.act = act

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """`(frames, channels, H, W)` → the same; `neighbours` `(2, frames)`: index of the frame before and after."""
        h = normalised(self.norm, x, self.act)
        # not divided by √2: added to a network that was trained without it, it begins as the identity
        return x + self.conv(torch.cat([h[neighbours[0]], h, h[neighbours[1]]], dim=1))


class PyramidInput(nn.Module):
    """Joins the resized network input to the features, through a 1×1 convolution."""

    def __init__(self, channels_in: int, channels: int, concatenate: bool) -> None:
        super().__init__()
        self.conv = conv1x1(channels_in, channels)
        self.concatenate = concatenate

    def forward(self, pyramid: Tensor, h: Tensor) -> Tensor:
        """`(batch, channels_in, H, W)` and `(batch, channels, H, W)` → the sum, or both along channels."""
        joined = self.conv(pyramid)
        return torch.cat([joined, h], dim=1) if self.concatenate else joined + h


class OutputHead(nn.Module):
    """Reads an image off the features: norm, act, 3×3 convolution."""

    def __init__(self, channels: int, channels_out: int, act: Activation, init_scale: float) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.conv = conv3x3(channels, channels_out, init_scale)
        self.act = act

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(normalised(self.norm, h, self.act))

