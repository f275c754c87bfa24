"""NCSN++, the noise-conditional score network of Song et al. 2021 in the form GLDM publishes.

A U-Net of BigGAN residual blocks. The input, shrunk level by level, is joined to the features on the way
down (input pyramid); the output is read off every level and added up on the way up (output pyramid).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from models.layers import (
    AttentionBlock,
    Downsample,
    FourierFeatures,
    NoiseEmbedding,
    OutputHead,
    PositionalFeatures,
    PyramidInput,
    ResidualBlock,
    TemporalBlock,
    Upsample,
    activation,
    conv3x3,
)
from models.levels import DownLevel, Middle, UpLevel
from op.fused import divide_by_sigma
from utils.errors import InputError

Tensor = torch.Tensor

SUPPORTED = {
    "embedding_type": ("fourier", "positional"),
    "resblock_type": ("biggan",),
    "progressive": ("output_skip", "none"),
    "progressive_input": ("input_skip", "none"),
    "progressive_combine": ("sum", "cat"),
    "normalization": ("GroupNorm",),
}


class NCSNpp(nn.Module):
    """Score network s(x, σ).

    Fastest on a CPU in channels-last memory, by a sixth at nf 16 and 96×96:
    `model.to(memory_format=torch.channels_last)`, and x likewise.

    Parameters
    ----------
    image_size
        Height and width the network is designed for: decides which levels attend. Other sizes run too.
    num_channels
        Channels of the score.
    in_channels
        Channels of x when it carries context beside the image; None for `num_channels`.
    patch
        The network works on `patch`×`patch` pixels as channels of one: a quarter of the time at 2, for detail that
        a residual of an image does not need. 1 is the published network.
    temporal
        Every level, and the middle, also sees the frames before and after: x is then a whole scan, or several.
    centered
        False maps x to 2x − 1 first, as published weights need.
    nf
        Features at full resolution; `ch_mult` multiplies it per level, finest first.
    num_res_blocks
        Residual blocks per level on the way down; one more on the way up.
    attn_resolutions
        Levels whose `image_size // 2**level` is listed attend. The middle always does.
    sigma_min, sigma_max, num_scales
        Ladder of noise levels, geometric; read by the positional embedding alone.
    fir_kernel
        Resampling filter.
    fourier_scale
        Standard deviation of the Fourier frequencies.
    embedding_type
        `fourier`, of log σ, or `positional`, of the place of σ on the ladder, 0 for `sigma_max`.
    progressive, progressive_input
        `output_skip`, `input_skip`: with output, input pyramid; `none`: without.
    progressive_combine
        How the input pyramid is joined to the features: `sum` or `cat`.
    skip_rescale
        Divide sums of two paths by √2.
    scale_by_sigma
        Divide the output by σ.
    conditional
        False builds a network that is not told σ.
    nonlinearity
        One of `models.layers.NONLINEARITIES`.
    resblock_type, normalization
        `biggan` and `GroupNorm`.
    dropout
        Probability, in training.
    init_scale
        Scale of the initial variance of every block's last layer; 0 starts the blocks as the identity.

    Attributes
    ----------
    architecture
        All the above in plain JSON types: `NCSNpp(**model.architecture)` builds the same network.

    Raises
    ------
    InputError
        For a value that is not supported, naming those that are.
    """

    def __init__(
        self,
        *,
        image_size: int = 192,
        num_channels: int = 2,
        in_channels: int | None = None,
        patch: int = 1,
        temporal: bool = False,
        centered: bool = False,
        nf: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 2, 2, 2),
        num_res_blocks: int = 2,
        attn_resolutions: Sequence[int] = (16,),
        sigma_min: float = 0.01,
        sigma_max: float = 4.0,
        num_scales: int = 1000,
        fir_kernel: Sequence[float] = (1, 3, 3, 1),
        fourier_scale: float = 16,
        embedding_type: str = "fourier",
        resblock_type: str = "biggan",
        progressive: str = "output_skip",
        progressive_input: str = "input_skip",
        progressive_combine: str = "sum",
        skip_rescale: bool = True,
        scale_by_sigma: bool = True,
        conditional: bool = True,
        nonlinearity: str = "swish",
        normalization: str = "GroupNorm",
        dropout: float = 0.0,
        init_scale: float = 0.0,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.architecture: dict[str, Any] = {name: list(value) if isinstance(value, (list, tuple)) else value
                       for name, value in arguments.items()}
        _check_config(self.architecture)
        self.in_channels = in_channels or num_channels
        self.divisor = patch * 2 ** (len(ch_mult) - 1)
        channels_in, num_channels = self.in_channels * patch**2, num_channels * patch**2

        act = activation(nonlinearity)
        if embedding_type == "fourier":
            self.features = FourierFeatures(nf, fourier_scale)
        else:
            self.features = PositionalFeatures(nf)
        feature_size = 2 * nf if embedding_type == "fourier" else nf
        self.embedding = NoiseEmbedding(feature_size, 4 * nf, act) if conditional else None

        # Published networks keep the blocks' noise layers when they are not conditional, though unused.
        block = partial(ResidualBlock, noise_size=4 * nf, act=act, dropout=dropout,
                        rescale=skip_rescale, init_scale=init_scale)
        attention = partial(AttentionBlock, rescale=skip_rescale, init_scale=init_scale)

        def in_time(channels: int) -> TemporalBlock | None:
            return TemporalBlock(channels, act, init_scale) if temporal else None

        head = partial(OutputHead, channels_out=num_channels, act=act, init_scale=init_scale)

        self.conv_in = conv3x3(channels_in, nf)
        self.down, skip_channels = self._build_down(block, attention, in_time)
        channels = skip_channels[-1]
        self.middle = Middle(
            block(channels, channels), attention(channels), in_time(channels), block(channels, channels)
        )
        self.up = self._build_up(block, attention, in_time, head, skip_channels)
        self.head = head(nf * ch_mult[0]) if progressive == "none" else None

    def _build_down(
        self,
        block: Callable[..., ResidualBlock],
        attention: Callable[[int], AttentionBlock],
        in_time: Callable[[int], TemporalBlock | None],
    ) -> tuple[nn.ModuleList, list[int]]:
        """The levels on the way down, and the channels of every feature image kept for the way up."""
        config = self.architecture
        levels, kept, channels = nn.ModuleList(), [config["nf"]], config["nf"]
        for i, multiplier in enumerate(config["ch_mult"]):
            width = config["nf"] * multiplier
            widths = [width] * config["num_res_blocks"]
            blocks = [block(c_in, width) for c_in in [channels, *widths[1:]]]
            attend = [attention(width) for _ in blocks] if self._attends(i) else []
            kept += widths
            channels, down, pyramid_down, pyramid_input = width, None, None, None
            if i + 1 < len(config["ch_mult"]):
                down = block(width, width, resample=Downsample(config["fir_kernel"]))
                if config["progressive_input"] == "input_skip":
                    concatenate = config["progressive_combine"] == "cat"
                    pyramid_down = Downsample(config["fir_kernel"])
                    pyramid_input = PyramidInput(self.in_channels * config["patch"] ** 2, width, concatenate)
                    channels = 2 * width if concatenate else width
                kept.append(channels)
            levels.append(DownLevel(blocks, attend, in_time(width), down, pyramid_down, pyramid_input))
        return levels, kept

    def _build_up(
        self,
        block: Callable[..., ResidualBlock],
        attention: Callable[[int], AttentionBlock],
        in_time: Callable[[int], TemporalBlock | None],
        head: Callable[[int], OutputHead],
        kept: list[int],
    ) -> nn.ModuleList:
        """The levels on the way up, coarsest first; `kept` are the channels that the way down leaves."""
        config = self.architecture
        levels, channels, kept = nn.ModuleList(), kept[-1], list(kept)
        output_skip = config["progressive"] == "output_skip"
        coarsest = len(config["ch_mult"]) - 1
        for i in range(coarsest, -1, -1):
            width = config["nf"] * config["ch_mult"][i]
            blocks = []
            for _ in range(config["num_res_blocks"] + 1):
                blocks.append(block(channels + kept.pop(), width))
                channels = width
            levels.append(UpLevel(
                blocks,
                attention(width) if self._attends(i) else None,
                in_time(width),
                Upsample(config["fir_kernel"]) if output_skip and i < coarsest else None,
                head(width) if output_skip else None,
                block(width, width, resample=Upsample(config["fir_kernel"])) if i > 0 else None,
            ))
        return levels

    def _attends(self, level: int) -> bool:
        known = self.architecture
        return known["image_size"] // known["patch"] // 2**level in known["attn_resolutions"]

    def noise_value(self, sigma: Tensor) -> Tensor:
        """What the noise embedding is computed from, `(batch,)`: log σ, or the place of σ on the ladder."""
        if isinstance(self.features, FourierFeatures):
            return torch.log(sigma)
        top, bottom = self.architecture["sigma_max"], self.architecture["sigma_min"]
        # In double precision, because a thousand steps share a logarithm of about six.
        place = torch.log(top / sigma.double()) / math.log(top / bottom) * (self.architecture["num_scales"] - 1)
        return place.to(sigma.dtype)

    def forward(self, x: Tensor, sigma: Tensor, neighbours: Tensor | None = None) -> Tensor:
        """Score of noisy images.

        Parameters
        ----------
        x
            `(batch, in_channels, height, width)`. Height and width that `patch · 2**(levels - 1)` does not divide are
            mirrored at the edge for the pass.
        sigma
            `(batch,)`, the noise level σ itself.
        neighbours
            `(2, batch)`, index of the frame before and after each (see `models.context.neighbours`); a temporal
            network needs them, another does not look at them.

        Returns
        -------
        `(batch, num_channels, height, width)`.

        Raises
        ------
        InputError
            When a shape does not fit.
        """
        return self.score(x, self.noise_value(sigma), sigma, neighbours)

    def score(
        self, x: Tensor, noise_value: Tensor, sigma: Tensor, neighbours: Tensor | None = None
    ) -> Tensor:
        """`forward` with the embedded number and the divisor given apart, as discrete-time weights need."""
        self._check_input(x, sigma, neighbours)
        noise = None if self.embedding is None else self.embedding(self.features(noise_value))
        height, width = x.shape[-2:]
        bottom, right = -height % self.divisor, -width % self.divisor
        if bottom or right:
            x = pad(x, (0, right, 0, bottom), mode="reflect")
        if not self.architecture["centered"]:
            x = 2 * x - 1
        patch = self.architecture["patch"]
        if patch > 1:
            x = pixel_unshuffle(x, patch)
        h = self.conv_in(x)
        skips, pyramid = [h], x
        for level in self.down:
            h, pyramid, kept = level(h, pyramid, noise, neighbours)
            skips += kept
        h = self.middle(h, noise, neighbours)
        out = None
        for level in self.up:
            h, out = level(h, skips, out, noise, neighbours)
        if self.head is not None:
            out = self.head(h)
        if patch > 1:
            out = pixel_shuffle(out, patch)
        out = out[..., :height, :width]
        return divide_by_sigma(out, sigma) if self.architecture["scale_by_sigma"] else out

    def _check_input(self, x: Tensor, sigma: Tensor, neighbours: Tensor | None) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise InputError(
                f"The network takes (batch, {self.in_channels}, height, width), not {tuple(x.shape)}."
            )
        if sigma.shape != x.shape[:1]:
            raise InputError(
                f"The network takes one noise level an image, ({len(x)},), not {tuple(sigma.shape)}."
            )
        if self.architecture["temporal"] and (neighbours is None or neighbours.shape != (2, len(x))):
            raise InputError(
                f"A temporal network takes the neighbours of every frame, (2, {len(x)}), not "
                f"{None if neighbours is None else tuple(neighbours.shape)}."
            )
        if any(n <= -n % self.divisor for n in x.shape[2:]):
            raise InputError(
                f"A network of {len(self.architecture['ch_mult'])} levels needs height and width of at least "
                f"{self.divisor // 2 + 1}, not {x.shape[2]} × {x.shape[3]}: take a larger image."
            )


def _check_config(config: dict[str, Any]) -> None:
    """Raise `InputError` for a choice that is not supported or a number that makes no network."""
    for name, values in SUPPORTED.items():
        if config[name] not in values:
            raise InputError(f"{name} must be {' or '.join(values)}, not {config[name]!r}.")
    for name in ("image_size", "num_channels", "patch", "nf", "num_res_blocks", "num_scales"):
        if config[name] < 1:
            raise InputError(f"{name} must be at least 1, not {config[name]}.")
    if not config["ch_mult"]:
        raise InputError("ch_mult must name at least one level.")
    bottom, top = config["sigma_min"], config["sigma_max"]
    if not 0 < bottom < top:
        raise InputError(f"Noise levels need 0 < sigma_min < sigma_max, not {bottom} and {top}.")
