"""Torch datasets of the training: weighted pseudo-reference frames, and prepared scenes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from losses import PreparedScene
from mri.fourier import fft2c, ifft2c
from mri.phantom import make_phantom
from mri.scenes import SMALLEST, Draw, make_scene
from mri.weighting import KspaceWeight, to_channels

Tensor = torch.Tensor

MAX_GAIN = 1.25  # augmentation: image gain between 1/MAX_GAIN and MAX_GAIN
MAX_SHIFT = 8  # augmentation: circular image shift, pixels
SIGMA_JITTER = 0.25  # standard deviation of log σ as the network is given it
ERROR_GAIN = 1.25  # σ given to the network in units of an error that is estimated, as in `reconstruction.calibration`
SMALLEST_HEART = 64  # pixels
GAINS = (0.5, 1.25)  # of clean scenes: the scale of a scan is a percentile of its temporal mean, not its maximum
PARTIAL_SHARE = 0.25  # of the synthetic scenes that have part of the error
NOISY_SHARE = 0.15  # of the synthetic scenes that have Gaussian noise in place of part of the error


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

    All are exact in k-space of even size: a shift is a linear phase, an image flip is a k-space flip about
    DC. Frames that are not square are not transposed.
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
        flipped = torch.roll(kspace.flip(axis), 1, axis)  # index i → n − i: DC stays at n/2
        kspace = torch.where(coins[:, column, None, None], flipped, kspace)
    if height == width:
        kspace = torch.where(coins[:, 2, None, None], kspace.transpose(1, 2), kspace)
    return kspace


class SceneBatch(NamedTuple):
    """Whole scans, one after the other, whose missing samples are wrong by about σ, and the truth."""

    start: Tensor  # complex (frames, height, width): what a prior starts from
    truth: Tensor  # complex (frames, coils, height, width); 0 in k-space where it is not known
    mask: Tensor  # bool (frames, ky, kx)
    known: Tensor  # bool, same shape: samples whose truth is known
    maps: Tensor  # complex (frames, coils, height, width): of its scan, for every frame
    place: Tensor  # int64 (frames,): of a frame in its scan; 0 begins a scan
    periodic: Tensor  # bool (frames,)
    sigma_scale: Tensor  # (frames,): factor between σ and what the network is given
    columns: Tensor  # int64 (frames, 2): the first column that counts, and one past the last

    def scans(self) -> list["PreparedScene"]:
        """Each scan of the batch, its columns that count."""
        firsts = (self.place == 0).nonzero().flatten().tolist()
        found = []
        for first, end in zip(firsts, [*firsts[1:], len(self.place)], strict=True):
            columns = slice(*self.columns[first].tolist())
            truth, start, mask, known = (
                tensor[first:end, ..., columns] for tensor in (self.truth, self.start, self.mask, self.known)
            )
            maps = self.maps[first, ..., columns]
            found.append(PreparedScene(truth, start, mask, known, maps, bool(self.periodic[first])))
        return found


class SceneFrames:
    """Training scans from prepared scenes: the OU's result at part of its error.

    The cascade's noise is what the OU left: a scan is truth + a (start − truth), 0 < a ≤ 1, sometimes with
    Gaussian noise on the missing samples in place of part of it. The network is given σ with an error, as it must be
    estimated in use. Augmentation: global phase, flips, time reversal, gain, shift of the rows of k-space (a
    linear phase of the image, so that the missing rows take every place). A scan longer than `frames` or, where its
    samples are lines, wider than `columns` gives a part: of lines every column is a scan of its own.

    Parameters
    ----------
    scenes
        prepared ones, such as a `SceneFile`.
    count
        how many of them to draw from, the first ones.
    frames
        most of one scan.
    columns
        of a scan in a batch, for masks of lines; 0: all.
    """

    def __init__(self, scenes: Sequence[PreparedScene], count: int, frames: int, columns: int) -> None:
        self.scenes, self.count, self.frames, self.columns = scenes, count, frames, columns

    def draw(self, generator: torch.Generator) -> SceneBatch:
        """One scan."""
        scene = self.scenes[int(torch.randint(self.count, (), generator=generator))]
        scene = augment_scene(scene, generator)
        scene, columns = cut_scene(scene, self.frames, self.columns, generator)
        numbers = torch.rand(3, generator=generator).tolist()
        synthetic = bool(scene.known.all())
        if synthetic:
            scene = self._part_of_the_error(scene, *numbers, generator)
        sigma_scale = torch.exp(SIGMA_JITTER * torch.randn((), generator=generator))
        if not synthetic:  # estimates fall short
            sigma_scale = sigma_scale * ERROR_GAIN
        count = len(scene.start)
        place, periodic = torch.arange(count), torch.full((count,), scene.periodic)
        maps = scene.maps.expand(count, *scene.maps.shape)
        images = (scene.start, scene.truth, scene.mask, scene.known, maps)
        return SceneBatch(*images, place, periodic, sigma_scale.expand(count), torch.tensor([columns] * count))

    def _part_of_the_error(
        self, scene: PreparedScene, share: float, spread: float, coin: float, generator: torch.Generator
    ) -> PreparedScene:
        """A start with part of the error of the scene's, or with noise in place of some of it."""
        truth = scene.truth[:, 0]  # synthetic scenes have one coil
        error = (0.2 + 0.8 * share if coin < PARTIAL_SHARE else 1.0) * (scene.start - truth)
        if spread < NOISY_SHARE:
            noise = torch.view_as_complex(torch.randn(*truth.shape, 2, generator=generator))
            noise = ifft2c(torch.where(scene.mask, 0, fft2c(noise)))
            part = spread / NOISY_SHARE
            noise = noise * error.norm() / noise.norm().clamp(min=1e-12)
            error = (1 - part) ** 0.5 * error + part**0.5 * noise
        return replace(scene, start=truth + error)


def cut_scene(
    scene: PreparedScene, frames: int, columns: int, generator: torch.Generator
) -> tuple[PreparedScene, tuple[int, int]]:
    """At most `frames` frames of a scene, and which columns count: `columns` of sampled lines (0: all), else all."""
    numbers = torch.rand(2, generator=generator).tolist()
    held, _, width = scene.start.shape
    count = min(frames, held)
    # of a partial echo, or of samples that are no lines, the columns of the image are no scans of their own
    lines = torch.equal(scene.mask, scene.mask[..., :1].expand_as(scene.mask))
    if not columns or columns > width or not lines:
        columns = width
    first, left = int(numbers[0] * (held - count + 1)), int(numbers[1] * (width - columns + 1))
    part = slice(first, first + count)
    tensors = {name: getattr(scene, name)[part] for name in ("truth", "start", "mask", "known")}
    return replace(scene, **tensors, periodic=scene.periodic and count == held), (left, left + columns)


def augment_scene(scene: PreparedScene, generator: torch.Generator) -> PreparedScene:
    """A scene changed by what is exact for truth, start and masks alike."""
    names = ("truth", "start", "mask", "known")
    tensors, maps = [getattr(scene, name) for name in names], scene.maps
    numbers = torch.rand(6, generator=generator).tolist()
    if numbers[0] < 0.5:
        tensors = [tensor.flip(0) for tensor in tensors]
    for axis, number in ((-2, numbers[1]), (-1, numbers[2])):
        if number < 0.5:  # about the pixel of index 0, in image and k-space alike
            tensors = [torch.roll(tensor.flip(axis), 1, axis) for tensor in tensors]
            maps = torch.roll(maps.flip(axis), 1, axis)
    height = scene.start.shape[1]
    # held-out samples are weighted by their distance to DC, which a shift would change
    rows = round((2 * numbers[3] - 1) * 4) if scene.known.all() else 0
    angle = 2 * torch.pi * (rows * torch.arange(height) / height + numbers[4])
    factor = torch.polar(torch.full((height,), MAX_GAIN ** (2 * numbers[5] - 1)), angle)[:, None]
    moved = [tensor * factor if tensor.is_complex() else torch.roll(tensor, rows, -2) for tensor in tensors]
    return replace(scene, **dict(zip(names, moved, strict=True)), maps=maps)


class NoisyScenes(NamedTuple):
    """Whole scenes, one after the other, and what they are with noise."""

    noisy: Tensor  # complex (frames, height, width)
    clean: Tensor  # same shape
    sigma: Tensor  # (frames,): of the noise, per real channel
    place: Tensor  # int64 (frames,): of a frame in its scene; 0 begins a scene
    periodic: Tensor  # bool (frames,)

    def scenes(self) -> list["NoisyScenes"]:
        """Each scene of the batch."""
        firsts = (self.place == 0).nonzero().flatten().tolist()
        bounds = zip(firsts, [*firsts[1:], len(self.place)], strict=True)
        return [NoisyScenes(*(tensor[first:end] for tensor in self)) for first, end in bounds]


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
        number = int(torch.randint(2**31, (), generator=generator))
        draw = Draw(number)
        image, periodic = self._clean(draw, number)
        image = image * torch.polar(torch.tensor(draw.log_uniform(*GAINS)), torch.tensor(draw.uniform(0, 2 * torch.pi)))
        sigma = draw.log_uniform(*self.sigmas)
        noise = torch.view_as_complex(draw.normal(*image.shape, 2))
        if draw.coin(0.5):
            share = draw.log_uniform(0.15, 0.9)
            lines = torch.rand(len(image), image.shape[1], 1, generator=draw.generator) < share
            lines = lines if draw.coin(0.5) else lines.mT
            noise = ifft2c(torch.where(lines, fft2c(noise), 0)) / share**0.5
        count = len(image)
        return NoisyScenes(
            image + sigma * noise, image, torch.full((count,), sigma), torch.arange(count),
            torch.full((count,), periodic),
        )  # fmt: skip

    def _clean(self, draw: Draw, number: int) -> tuple[Tensor, bool]:
        """A part of a scene, flipped and turned at random: `(frames, height, width)`."""
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
