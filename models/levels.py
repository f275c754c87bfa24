"""The levels of NCSN++: one resolution on the way down, the middle, one resolution on the way up."""

import torch
from torch import nn

from models.layers import (
    AttentionBlock,
    Downsample,
    OutputHead,
    PyramidInput,
    ResidualBlock,
    TemporalBlock,
    Upsample,
)

Tensor = torch.Tensor


class DownLevel(nn.Module):
    """One resolution on the way down: residual blocks, each with attention or none, a look in time, then halving."""

    def __init__(
        self,
        blocks: list[ResidualBlock],
        attention: list[AttentionBlock],
        temporal: TemporalBlock | None,
        down: ResidualBlock | None,
        pyramid_down: Downsample | None,
        pyramid_input: PyramidInput | None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.ModuleList(attention)
        self.temporal = temporal
        self.down = down
        self.pyramid_down = pyramid_down
        self.pyramid_input = pyramid_input

    def forward(
        self, h: Tensor, pyramid: Tensor, noise: Tensor | None, neighbours: Tensor | None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Features and input pyramid of the next level, and the features to keep for the way up."""
        skips = []
        for i, block in enumerate(self.blocks):
            h = block(h, noise)
            if self.attention:
                h = self.attention[i](h)
            if self.temporal is not None and i + 1 == len(self.blocks):
                h = self.temporal(h, neighbours)
            skips.append(h)
        if self.down is not None:
            h = self.down(h, noise)
            if self.pyramid_input is not None:
                pyramid = self.pyramid_down(pyramid)
                h = self.pyramid_input(pyramid, h)
            skips.append(h)
        return h, pyramid, skips


class Middle(nn.Module):
    """Between the ways down and up: block, attention, a look in time, block."""

    def __init__(
        self,
        block_in: ResidualBlock,
        attention: AttentionBlock,
        temporal: TemporalBlock | None,
        block_out: ResidualBlock,
    ) -> None:
        super().__init__()
        self.block_in = block_in
        self.attention = attention
        self.temporal = temporal
        self.block_out = block_out

    def forward(self, h: Tensor, noise: Tensor | None, neighbours: Tensor | None) -> Tensor:
        h = self.attention(self.block_in(h, noise))
        if self.temporal is not None:
            h = self.temporal(h, neighbours)
        return self.block_out(h, noise)


class UpLevel(nn.Module):
    """One resolution on the way up: blocks on the kept features, attention, a look in time, output, doubling."""

    def __init__(
        self,
        blocks: list[ResidualBlock],
        attention: AttentionBlock | None,
        temporal: TemporalBlock | None,
        pyramid_up: Upsample | None,
        head: OutputHead | None,
        up: ResidualBlock | None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = attention
        self.temporal = temporal
        self.pyramid_up = pyramid_up
        self.head = head
        self.up = up

    def forward(
        self,
        h: Tensor,
        skips: list[Tensor],
        pyramid: Tensor | None,
        noise: Tensor | None,
        neighbours: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Features and output pyramid of the next level; takes its kept features off the end of `skips`."""
        for block in self.blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), noise)
        if self.attention is not None:
            h = self.attention(h)
        if self.temporal is not None:
            h = self.temporal(h, neighbours)
        if self.head is not None:
            out = self.head(h)
            pyramid = out if pyramid is None else self.pyramid_up(pyramid) + out
        if self.up is not None:
            h = self.up(h, noise)
        return h, pyramid
