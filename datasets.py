"""From scans to what the method needs: acquisitions to reconstruct, weighted frames to learn from."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from mri.consistency import scan_scale
from mri.fourier import fft2c, ifft2c
from mri.interleave import pseudo_reference
from mri.io import SUFFIXES, Scan, load_mask, load_scan
from mri.masks import fit_mask, make_mask, net_acceleration
from mri.phantom import make_phantom
from mri.phase import smooth_phase
from mri.weighting import KspaceWeight, to_channels
from utils.errors import InputError

Tensor = torch.Tensor


@dataclass(frozen=True)
class Acquisition:
    """What the scanner gives, and the truth when there is one (used only to score)."""

    name: str
    kspace: Tensor  # measured samples, 0 elsewhere: complex64 (frames, height, width)
    mask: Tensor  # bool, same shape
    reference: Tensor | None  # fully sampled image, same shape, same units
    found: str  # what was read, in a sentence
    sha256: str  # of the file; empty for an embedded phantom

    def __str__(self) -> str:
        return f"{self.found}\nmask: net acceleration {net_acceleration(self.mask):.2f}"


def scan_files(path: str | os.PathLike) -> list[Path]:
    """The scan file, or the sorted scan files of a folder."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"{path} holds no scan; put {', '.join(SUFFIXES)} files there.")
    twins = [f.name for f in files if sum(f.stem == other.stem for other in files) > 1]
    if twins:
        raise InputError(f"{path}: {' and '.join(twins)} would share one folder of results; rename all but one.")
    return files


def acquisitions(config, path: str, phantoms: range) -> Iterator[Acquisition]:
    """The scans of `path` (a file or folder), or, when it is empty, the embedded phantoms of these seeds."""
    if path:
        for file in scan_files(path):
            yield acquisition_from_file(config, file)
    else:
        for seed in phantoms:
            yield embedded_acquisition(config, seed)


def embedded_acquisition(config, seed: int) -> Acquisition:
    """A beating-heart phantom, under-sampled as `config.mask` says."""
    data = config.data
    image = make_phantom(data.frames, data.image_size, seed)
    found = f"embedded phantom {seed}: {data.frames} frames of {data.image_size}×{data.image_size}, complex"
    return _undersample(config, f"phantom{seed}", image, found, "")


def acquisition_from_file(config, path: str | os.PathLike) -> Acquisition:
    """Read a scan; simulate its acquisition when it is fully sampled.

    Images become k-space (magnitude images get a smooth phase first, `config.data.phase`) and are
    under-sampled; so is fully sampled k-space. Of under-sampled k-space the mask is read from
    `config.mask.path`, or from its zeros.
    """
    data = config.data
    scan = load_scan(path, data.key or None, data.kind or None, data.frames_axis, data.dc)
    name = Path(path).stem
    if scan.kind == "kspace":
        kspace, found = _resize_kspace(config, scan)
        sampled = _sampled_locations(kspace)
        if not sampled.all():
            return _already_undersampled(config, name, kspace, sampled, found, scan)
        return _undersample(config, name, ifft2c(kspace), found, scan.sha256)
    image, found = _resize_image(config, scan)
    if scan.kind == "magnitude" and data.phase == "smooth":
        phase = smooth_phase(*image.shape, seed=config.seed)
        image = torch.polar(image.abs(), phase)
    return _undersample(config, name, image, found, scan.sha256)


def measurement_mask(config, shape: tuple[int, int, int]) -> Tensor:
    """The mask of `config.mask`, read or generated, for a scan of `shape` (frames, height, width)."""
    if config.mask.path:
        return fit_mask(load_mask(config.mask.path), shape, config.mask.path)
    generated = make_mask(
        config.mask.pattern, shape, config.mask.acceleration, config.mask.acs, config.mask.seed
    )
    return fit_mask(generated, shape)


def _undersample(config, name: str, image: Tensor, found: str, sha256: str) -> Acquisition:
    kspace = fft2c(image.to(torch.complex64))
    mask = measurement_mask(config, tuple(kspace.shape))
    return Acquisition(name, torch.where(mask, kspace, 0), mask, image, found, sha256)


def _already_undersampled(
    config, name: str, kspace: Tensor, sampled: Tensor, found: str, scan: Scan
) -> Acquisition:
    mask = sampled
    if config.mask.path:
        mask = measurement_mask(config, tuple(kspace.shape))
        missing = (mask & ~sampled).double().sum() / mask.double().sum()
        if missing > 0.01:
            raise InputError(
                f"{config.mask.path} does not match {scan.path}: {missing:.0%} of its samples are zero in the "
                "k-space; give the mask the scan was made with, or none, to find it from the zeros."
            )
    else:
        fit_mask(mask, tuple(kspace.shape), f"{scan.path}: the mask found from its zeros")
        found += "; mask found from its zeros"
    return Acquisition(name, torch.where(mask, kspace, 0), mask, None, found, scan.sha256)


def _sampled_locations(kspace: Tensor) -> Tensor:
    """Where k-space was measured: its non-zero samples, whole lines where lines were measured."""
    sampled = kspace != 0
    for axis in (-1, -2):
        line_fraction = sampled.double().mean(dim=axis, keepdim=True)
        # a stray exact zero inside a measured line is a value, not a gap
        if ((line_fraction == 0) | (line_fraction > 0.9)).all():
            sampled = (line_fraction > 0).expand_as(sampled)
    return sampled


def _take_frames(config, frames: int) -> Tensor | None:
    """Indices of the frames to use, or None for all as they are."""
    wanted = config.data.scan_frames
    return torch.arange(wanted) % frames if wanted and wanted != frames else None


def _crop(kspace: Tensor, size: int) -> Tensor:
    """The central size×size of k-space, scaled so that image intensities stay."""
    height, width = kspace.shape[-2:]
    if size > min(height, width) or size % 2:
        raise InputError(f"--size {size} must be even and at most the scan's {height}×{width}.")
    top, left = height // 2 - size // 2, width // 2 - size // 2
    gain = size / (height * width) ** 0.5
    return kspace[..., top : top + size, left : left + size] * gain


def _resize_image(config, scan: Scan) -> tuple[Tensor, str]:
    image, found = scan.data, scan.found
    index = _take_frames(config, image.shape[0])
    if index is not None:
        image = image[index]
        found += f"; frames 0 … {scan.data.shape[0] - 1} taken in turn to make {len(index)}"
    size = config.data.scan_size
    if size and (size, size) != tuple(image.shape[-2:]):
        image = ifft2c(_crop(fft2c(image), size))
        if scan.kind == "magnitude":
            image = image.abs().to(torch.complex64)
        found += f"; centre of its k-space cropped to {size}×{size}"
    return image, found


def _resize_kspace(config, scan: Scan) -> tuple[Tensor, str]:
    kspace, found = scan.data, scan.found
    wanted, size = config.data.scan_frames, config.data.scan_size
    if wanted > kspace.shape[0]:
        raise InputError(
            f"{scan.path}: holds {kspace.shape[0]} frames of k-space, {wanted} are asked for; measured k-space "
            "is not repeated: give --frames at most that."
        )
    if wanted:
        kspace = kspace[:wanted]
    if size and (size, size) != tuple(kspace.shape[-2:]):
        kspace = _crop(kspace, size)
        found += f"; its centre cropped to {size}×{size}"
    return kspace, found


class PseudoReferenceFrames:
    """Pseudo-reference frames of all scans, augmented by what k-space allows exactly.

    Parameters
    ----------
    frames
        complex k-space of unit-scale scans, `(N, height, width)`.
    weight
        what the networks see it through.
    max_gain, max_shift
        bounds of the augmentation, see `configs/default.py`.
    """

    def __init__(self, frames: Tensor, weight: KspaceWeight, max_gain: float, max_shift: int) -> None:
        self.frames, self.weight = frames, weight
        self.max_gain, self.max_shift = max_gain, max_shift

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """Weighted frames as channels: float32 `(size, 2, height, width)`."""
        index = torch.randint(len(self.frames), (size,), generator=generator)
        kspace = self.frames[index]
        return to_channels(self.weight(augment(kspace, self.max_gain, self.max_shift, generator)))


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


def pseudo_reference_frames(config, scans: list[Acquisition], model: str) -> Tensor:
    """Training frames of the global or the local model, all scans: complex `(N, height, width)`.

    Every scan is divided by its own scale; the fill reports go to the progress bar.

    Raises
    ------
    InputError
        when the scans differ in size.
    """
    window = "global" if model == "global" else config.pseudo_reference.window
    frames = []
    bar = tqdm(scans, desc=f"pseudo-references ({window})")
    for scan in bar:
        if scan.kspace.shape[1:] != scans[0].kspace.shape[1:]:
            raise InputError(
                f"{scan.name} is {tuple(scan.kspace.shape[1:])} but {scans[0].name} is "
                f"{tuple(scans[0].kspace.shape[1:])}; train on scans of one size (--config.data.scan_size)."
            )
        scaled = scan.kspace / scan_scale(scan.kspace, scan.mask)
        filled, report = pseudo_reference(
            scaled, scan.mask, window, config.pseudo_reference.local_window, config.data.periodic
        )
        bar.set_postfix_str(str(report))
        frames.append(filled)
    return torch.cat(frames)
