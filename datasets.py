"""Torch datasets of the training: weighted pseudo-reference frames, and moving scenes with noise."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from mri.draw import Draw
from mri.fourier import fft2c, ifft2c
from mri.phantom import make_phantom
from mri.scenes import SMALLEST, make_scene
from mri.weighting import KspaceWeight, to_channels

Tensor = torch.Tensor

MAX_GAIN = 1.25  # augmentation: image gain between 1/MAX_GAIN and MAX_GAIN
MAX_SHIFT = 8  # augmentation: circular image shift, pixels
SMALLEST_HEART = 64  # pixels
GAINS = (0.5, 1.25)  # of clean scenes: the scale of a scan is a percentile of its temporal mean, not its maximum


class PseudoReferenceFrames:
    """Pseudo-reference frames of all scans, augmented by what k-space allows exactly.

    Parameters
    ----------
    frames
        complex k-space of unit-scale scans, `(N, height, width)`; an array, which may be memory-mapped.
    weight
        of k-space, as the networks see it.
    """

    def __init__(self, frames: np.ndarray, weight: KspaceWeight) -> None:
        self.frames, self.weight = frames, weight

    def draw(self, generator: torch.Generator) -> Tensor:
        """One weighted frame as channels: float32 `(1, 2, height, width)`."""
        number = int(torch.randint(len(self.frames), (), generator=generator))
        kspace = torch.from_numpy(np.array(self.frames[number : number + 1]))
        return to_channels(self.weight(augment(kspace, MAX_GAIN, MAX_SHIFT, generator)))


def augment(kspace: Tensor, max_gain: float, max_shift: int, generator: torch.Generator) -> Tensor:
    """Per frame: global phase, gain, circular image shift, flips, transposition. Shape `(batch, height, width)`.

    All are exact in k-space: a shift is a linear phase, an image flip is a k-space flip about DC. Frames
    that are not square are not transposed.
    """
    batch, height, width = kspace.shape
    uniform = torch.rand(batch, 2, generator=generator)
    gain = max_gain ** (2 * uniform[:, 0] - 1)
    kspace = kspace * torch.polar(gain, 2 * torch.pi * uniform[:, 1])[:, None, None]
    shift = torch.randint(-max_shift, max_shift + 1, (batch, 2), generator=generator)
    for axis, size in ((0, height), (1, width)):
        frequency = torch.arange(size) - size // 2
        angle = -2 * torch.pi * shift[:, axis, None] * frequency / size
        ramp = torch.polar(torch.ones_like(angle), angle)
        kspace = kspace * (ramp[:, :, None] if axis == 0 else ramp[:, None, :])
    coins = torch.rand(batch, 3, generator=generator) < 0.5
    for column, axis in ((0, 1), (1, 2)):
        # index i → n − i of an even size, n − 1 − i of an odd one: DC stays at n//2
        flipped = torch.roll(kspace.flip(axis), 1 - kspace.shape[axis] % 2, axis)
        kspace = torch.where(coins[:, column, None, None], flipped, kspace)
    if height == width:
        kspace = torch.where(coins[:, 2, None, None], kspace.transpose(1, 2), kspace)
    return kspace


class NoisyScenes(NamedTuple):
    """Whole scenes, one after the other, and what they are with noise."""

    noisy: Tensor  # complex (frames, height, width)
    clean: Tensor  # same shape
    sigma: Tensor  # (frames,): of the noise, per real channel
    place: Tensor  # int64 (frames,): of a frame in its scene; 0 begins a scene
    periodic: Tensor  # bool (frames,)

    def scenes(self) -> list["NoisyScenes"]:
        """Each scene of the batch."""
        return parts_of(self, self.place)


def parts_of(batch, place: Tensor) -> list:
    """The parts of a named tuple of tensors, frames first; `place` of a frame in its part, 0 begins one."""
    firsts = (place == 0).nonzero().flatten().tolist()
    bounds = zip(firsts, [*firsts[1:], len(place)], strict=True)
    return [type(batch)(*(tensor[first:end] for tensor in batch)) for first, end in bounds]


class CleanScenes:
    """Clean moving scenes of unit scale with noise on top: drawn anew each time, or cut from a user's own images.

    The noise of a scene is white, or, half of the time, it is on some lines of k-space alone, others in every frame, as
    the errors of an under-sampled scan are. σ is drawn log-uniformly.

    Parameters
    ----------
    images
        complex `(frames, height, width)` of unit scale, and whether they are periodic; empty: scenes of `mri.scenes`.
    frames, crop
        most frames, and pixels of a side, of what is drawn.
    sigmas
        smallest and largest σ, per real channel.
    """

    def __init__(
        self, images: Sequence[tuple[Tensor, bool]], frames: int, crop: int, sigmas: tuple[float, float]
    ) -> None:
        self.images, self.frames, self.crop, self.sigmas = images, frames, crop, sigmas

    def draw(self, generator: torch.Generator) -> NoisyScenes:
        """One scene."""
        number, own = torch.randint(2**31, (2,), generator=generator).tolist()  # the scene draws from its own number
        draw = Draw(own)
        image, periodic = self.clean(draw, number)
        image = image * torch.polar(torch.tensor(draw.log_uniform(*GAINS)), torch.tensor(draw.uniform(0, 2 * torch.pi)))
        sigma = draw.log_uniform(*self.sigmas)
        noise = torch.view_as_complex(draw.normal(*image.shape, 2))
        if draw.coin(0.5):
            share = draw.log_uniform(0.15, 0.9)
            height, width = image.shape[1:]
            lines = torch.rand(len(image), max(height, width), 1, generator=draw.generator) < share
            lines = lines[:, :height] if draw.coin(0.5) else lines[:, :width].mT
            noise = ifft2c(torch.where(lines, fft2c(noise), 0)) / share**0.5
        count = len(image)
        return NoisyScenes(
            image + sigma * noise, image, torch.full((count,), sigma), torch.arange(count),
            torch.full((count,), periodic),
        )  # fmt: skip

    def clean(self, draw: Draw, number: int) -> tuple[Tensor, bool]:
        """A part of a scene, flipped and turned at random: `(frames, height, width)`, and whether it is periodic."""
        if self.images:
            image, periodic = draw.choice(self.images)
        else:
            frames = draw.choice([n for n in (6, 8, 12, 16, 16, 16) if n <= self.frames] or [self.frames])
            size = 2 * draw.integer(max(self.crop, SMALLEST) // 2, 80)
            if draw.coin(0.125) and size >= SMALLEST_HEART:  # a heart; no test uses seeds from 1000
                image, periodic = make_phantom(frames, size, 1000 + number).to(torch.complex64), True
                image = image / image.abs().max()
            else:
                image, periodic = make_scene(frames, size, size, number)
        count, height, width = (min(n, most) for n, most in zip(image.shape, (self.frames, self.crop, self.crop),
                                                                strict=True))  # fmt: skip
        first = draw.integer(0, image.shape[0] - count)
        top, left = draw.integer(0, image.shape[1] - height), draw.integer(0, image.shape[2] - width)
        part = image[first : first + count, top : top + height, left : left + width]
        flips = [axis for axis in range(3) if draw.coin(0.5)]
        part = part.flip(flips) if flips else part
        return (part.mT if height == width and draw.coin(0.5) else part).contiguous(), periodic and count == len(image)
