"""From scans to what the method needs: acquisitions to reconstruct, weighted frames to learn from."""

import glob
import hashlib
import json
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from mri.consistency import scan_scale
from mri.fourier import fft2c, ifft2c
from mri.holdout import hide_for_training, missing_error
from mri.interleave import looks_periodic, pseudo_reference
from mri.io import SUFFIXES, Scan, load_mask, load_scan
from mri.locally_low_rank import fista_locally_low_rank
from mri.masks import fit_mask, make_mask, net_acceleration
from mri.motion_low_rank import motion_low_rank
from mri.phantom import make_phantom
from mri.phase import smooth_phase
from mri.scenes import Draw, acquire, make_scene
from mri.weighting import DISTANCE_TO_DC, KspaceWeight, to_channels
from optimization_unit import OptimizationUnit
from utils.errors import InputError
from utils.files import atomic_path
from utils.frame_file import append_frames, open_frames

Tensor = torch.Tensor

MOTION_SEED = 10**7  # + number of a training scene: of the OU's patches and steps
TINY = 2e-7  # of the largest value of k-space: rounding of single precision
MOST_CYCLES = 16  # a scan is repeated to make a longer one; more than this is a slip of the keyboard


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
        remark = ""
        if self.mask.all():
            remark = "; nothing is missing"
        elif (self.mask == self.mask[0]).all():
            remark = "; the same samples in every frame, so that no frame fills the gaps of another"
        return f"{self.found}\nmask: net acceleration {net_acceleration(self.mask):.2f}{remark}"


def scan_files(path: str | os.PathLike) -> list[Path]:
    """The scan file, or the sorted scan files of a folder or of a pattern such as `scans/*.mat`."""
    path = Path(path)
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)
    elif is_pattern(path):
        files = sorted(Path(name) for name in glob.glob(str(path)) if Path(name).suffix.lower() in SUFFIXES)
    else:
        return [path]
    if not files:
        raise InputError(f"{path} holds no scan; put {', '.join(SUFFIXES)} files there.")
    twins = [f.name for f in files if sum(f.stem == other.stem for other in files) > 1]
    if twins:
        raise InputError(f"{path}: {' and '.join(twins)} would share one folder of results; rename all but one.")
    return files


def is_pattern(path: Path) -> bool:
    """Whether the shell's wildcards are meant: no file has this name."""
    return glob.has_magic(str(path)) and not path.exists()


def acquisition(config, source: Path | int) -> Acquisition:
    """The scan of a file, or the embedded phantom of a seed."""
    return embedded_acquisition(config, source) if isinstance(source, int) else acquisition_from_file(config, source)


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


def _mask_in_words(config) -> str:
    mask = config.mask
    if mask.path:
        return mask.path
    return f"{mask.pattern} R={mask.acceleration:g} with {mask.acs} ACS lines"


def measurement_mask(config, shape: tuple[int, int, int]) -> Tensor:
    """The mask of `config.mask`, read or generated, for a scan of `shape` (frames, height, width)."""
    if config.mask.path:
        mask = _resize_mask(config, load_mask(config.mask.path, config.mask.key or None), shape)
        return fit_mask(mask, shape, config.mask.path)
    generated = make_mask(
        config.mask.pattern, shape, config.mask.acceleration, config.mask.acs, config.mask.seed
    )
    return fit_mask(generated, shape)


def _resize_mask(config, mask: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """A mask file's first frames and centre, where the scan itself was cut to frames or size."""
    frames, height, width = shape
    if mask.ndim == 2 and mask.shape[1] < mask.shape[0] and mask.shape != (height, width):
        mask = mask.T  # lines per frame, frames first
    if config.data.scan_frames and mask.shape[0] > frames and mask.shape != (height, width):
        mask = mask[:frames]
    if config.data.scan_size and mask.ndim == 2 and mask.shape[1] > height and len(mask) == frames:
        top = mask.shape[1] // 2 - height // 2
        mask = mask[:, top : top + height]
    if config.data.scan_size and mask.ndim == 3 and mask.shape[1] >= height and mask.shape[2] >= width:
        top, left = mask.shape[1] // 2 - height // 2, mask.shape[2] // 2 - width // 2
        mask = mask[:, top : top + height, left : left + width]
    return mask


def reference_from_file(config, path: str, key: str | None, scan: Acquisition) -> Tensor:
    """Fully sampled images to score against, cut to frames and size as the scan is: complex64.

    Fully sampled k-space is taken too.

    Raises
    ------
    InputError
        for under-sampled k-space, or another shape than the scan's.
    """
    images, problems = [], []
    for frames_axis, dc in dict.fromkeys(product((None, config.data.frames_axis), ("center", config.data.dc))):
        try:
            images.append(_reference_image(config, load_scan(path, key, None, frames_axis, dc)))
        except InputError as error:
            problems.append(error)
    for image in images:  # a file may be laid out as the scan's is, or otherwise
        if image.shape == scan.kspace.shape:
            return image
    if not images:
        raise problems[0]
    raise InputError(
        f"{path}: shape {tuple(images[0].shape)} is not the scan's {tuple(scan.kspace.shape)}; "
        "give fully sampled images of the same frames and size."
    )


def _reference_image(config, file: Scan) -> Tensor:
    if file.kind != "kspace":
        return _resize_image(config, file)[0]
    kspace, _ = _resize_kspace(config, file)
    if not _sampled_locations(kspace).all():
        raise InputError(f"{file.path} is under-sampled k-space; a reference is fully sampled: give its images.")
    return ifft2c(kspace)


def _undersample(config, name: str, image: Tensor, found: str, sha256: str) -> Acquisition:
    kspace = fft2c(image.to(torch.complex64))
    mask = measurement_mask(config, tuple(kspace.shape))
    found += f"\nfully sampled: under-sampled here by {_mask_in_words(config)}"
    return Acquisition(name, torch.where(mask, kspace, 0), mask, image, found, sha256)


def _already_undersampled(
    config, name: str, kspace: Tensor, sampled: Tensor, found: str, scan: Scan
) -> Acquisition:
    exact = (kspace[~sampled] == 0).all()
    mask, zeros = sampled, "zeros" if exact else f"values below {TINY:g} of its largest"
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
    found += f"\nunder-sampled as measured, mask {config.mask.path or f'found from its {zeros}'}"
    return Acquisition(name, torch.where(mask, kspace, 0), mask, None, found, scan.sha256)


def _sampled_locations(kspace: Tensor) -> Tensor:
    """Where k-space was measured: its non-zero samples, whole lines where lines were measured.

    K-space that went through a Fourier transform and back has rounding where it had zeros. It counts as zero where it
    is tiny in some frames and not in others, with hardly a value between rounding and the rest.
    """
    sampled = kspace != 0
    size = kspace.abs() / kspace.abs().max()
    measured = size > TINY
    varying = (measured.any(dim=0) & ~measured.all(dim=0)).double().mean()
    between = (measured & (size < 10 * TINY)).double().mean()
    if sampled.double().mean() > 0.99 and varying > 0.05 and between < 0.01:
        sampled = measured
    for axis, across in ((-1, -2), (-2, -1)):
        line_fraction = sampled.double().mean(dim=axis, keepdim=True)
        filled = (line_fraction > 0).expand_as(sampled)
        # a stray exact zero inside a measured line is a value, not a gap; a whole empty line across is a gap
        empty_across = ~sampled.any(dim=across, keepdim=True)
        if ((line_fraction == 0) | (line_fraction > 0.9)).all() and not (filled & empty_across).any():
            return filled
    return sampled


def _take_frames(config, frames: int) -> Tensor | None:
    """Indices of the frames to use, or None for all as they are."""
    wanted = config.data.scan_frames
    if wanted > MOST_CYCLES * frames:
        raise InputError(
            f"--frames {wanted} would repeat the {frames} frames of the scan more than {MOST_CYCLES} times; give fewer."
        )
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
        held = len(scan.data)
        found += f"; its first {len(index)} frames" if len(index) <= held else f"; its cycle repeated to {len(index)}"
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
        complex k-space of unit-scale scans, `(N, height, width)`; an array, which may be memory-mapped.
    weight
        what the networks see it through.
    max_gain, max_shift
        bounds of the augmentation, see `configs/default.py`.
    """

    def __init__(self, frames: np.ndarray, weight: KspaceWeight, max_gain: float, max_shift: int) -> None:
        self.frames, self.weight = frames, weight
        self.max_gain, self.max_shift = max_gain, max_shift

    def draw(self, generator: torch.Generator) -> Tensor:
        """One weighted frame as channels: float32 `(1, 2, height, width)`."""
        number = int(torch.randint(len(self.frames), (), generator=generator))
        kspace = torch.from_numpy(np.array(self.frames[number : number + 1]))
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


def pseudo_reference_file(config, folder: Path, model: str) -> Path:
    """Training frames of the global or the local model, all scans, in one memory-mapped file of `folder`.

    Made once: the file's name holds a checksum of all that it depends on. Complex64 `(N, height, width)`; every scan
    is divided by its own scale. The fill reports go to the progress bar.

    Raises
    ------
    InputError
        when the scans differ in size.
    """
    window = "global" if model == "global" else config.pseudo_reference.window
    sources = training_sources(config)
    checksum = data_checksum(config, sources, "mask", "pseudo_reference")
    path = folder / f"pseudo_references_{window}_{checksum}.npy"
    if path.exists():
        return path
    first = None
    with atomic_path(path) as temporary:
        bar = tqdm(sources, desc=f"pseudo-references ({window})", unit="scan")
        for source in bar:
            scan = acquisition(config, source)
            first = first or scan
            if scan.kspace.shape[1:] != first.kspace.shape[1:]:
                raise InputError(
                    f"{scan.name} is {tuple(scan.kspace.shape[1:])} but {first.name} is "
                    f"{tuple(first.kspace.shape[1:])}; train on scans of one size (--config.data.scan_size)."
                )
            frames, report = pseudo_reference_frames(config, scan, window)
            bar.set_postfix_str(str(report))
            append_frames(temporary, frames.numpy())
    return path


def training_sources(config) -> Sequence[Path | int]:
    """The scans to train on: files of `data.path`, or seeds of embedded phantoms."""
    return scan_files(config.data.path) if config.data.path else range(1, config.data.phantoms + 1)


def data_checksum(config, sources: Sequence[Path | int], *parts: str) -> str:
    """Twelve hexadecimal digits of all that data made of `sources` by these parts of a configuration depend on."""
    settings = [json.loads(config[part].to_json_best_effort()) for part in ("data", *parts)]
    stamps = [(str(s), s.stat().st_size, s.stat().st_mtime_ns) if isinstance(s, Path) else s for s in sources]
    key = json.dumps([config.seed, settings, stamps], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def pseudo_reference_frames(config, scan: Acquisition, window: str):
    """Pseudo-references of a scan of unit scale, complex64 k-space `(frames, height, width)`, and the fill report."""
    scaled = scan.kspace / scan_scale(scan.kspace, scan.mask)
    periodic = config.data.periodic
    if periodic is None:
        periodic = looks_periodic(scan.kspace, scan.mask)
    filled, report = pseudo_reference(scaled, scan.mask, window, config.pseudo_reference.local_window, periodic)
    return filled.to(torch.complex64), report


# ------------------------------------------------------------------------------------ synthetic scenes


@dataclass(frozen=True)
class PreparedScene:
    """An acquisition, divided by its scale, and the OU's result: what the cascade starts from."""

    image: Tensor  # complex64 (frames, height, width), the truth; 0 in k-space where it is not known
    start: Tensor  # complex64, same shape: image that the OU makes of the samples in `mask`
    mask: Tensor  # bool, same shape
    known: Tensor  # bool, same shape: samples whose truth is known; all of a synthetic scene
    periodic: bool

    def error_std(self) -> float:
        """Standard deviation per real channel and pixel of the start's error, estimated where not all is known."""
        if self.known.all():
            return missing_std(self.start - self.image, self.mask).item()
        return missing_error(fft2c(self.image - self.start), self.known & ~self.mask, self.known)

    def missing_square(self) -> Tensor:
        """Squared error of the start, summed over the missing samples whose truth is known.

        Of samples that were hidden, weighted by their distance to DC: errors near DC, where few are missing, would else
        decide.
        """
        error = torch.where(self.known & ~self.mask, fft2c(self.start - self.image), 0)
        if not self.known.all():
            error = DISTANCE_TO_DC(error)
        return torch.view_as_real(error).square().sum()


def prepare_scene(number: int, size: int, operator: str) -> PreparedScene:
    """Training scene `number`: drawn, acquired, and what the OU makes of the acquisition.

    One scene in eight is a phantom heart of `mri.phantom` (seeds from 1000: never one that is used to test),
    the others are `mri.scenes`. `operator`: `motion` or `llr`, as of `optimization_unit.OptimizationUnit`. What a scan
    chooses by its hidden samples is drawn (patches and steps of `motion`) or told by the truth (`llr`, where nearer).
    """
    draw = Draw(number)
    frames = draw.choice((6, 8, 12, 16, 16, 16, 20, 24))
    if number % 8 == 7:
        image, periodic = make_phantom(frames, size, 1000 + number).to(torch.complex64), True
        image = image / image.abs().max()
    else:
        image, periodic = make_scene(frames, size, size, number)
    measurement = acquire(image, number)
    scale = scan_scale(measurement.kspace, measurement.mask)
    measured, mask = measurement.kspace / scale, measurement.mask
    start, _ = pseudo_reference(measured, mask, "nearest", periodic=periodic)
    start = fista_locally_low_rank(start, measured, mask, 4e-4, (6, 8, 12), 100, 4.0, number)
    scene = PreparedScene(image / scale, ifft2c(start), mask, torch.ones_like(mask), periodic)
    if operator == "motion":
        draw = Draw(MOTION_SEED + number)  # apart from the scene, which is the same with either operator
        patch, taken = draw.choice((4, 6, 8)), draw.choice((25, 30, 35, 40))
        steps = motion_low_rank(start, measured, mask, patch, periodic=periodic, seed=number)
        (start,) = deque(islice(steps, taken), maxlen=1)
        followed = replace(scene, start=ifft2c(start))
        scene = min(scene, followed, key=PreparedScene.missing_square)
    return scene


def prepare_measured(measured: Tensor, mask: Tensor, config, seed: int) -> PreparedScene:
    """An acquisition with samples hidden from it: what the OU of `config` makes without them, to learn from them.

    Parameters
    ----------
    measured
        complex k-space `(frames, height, width)` of unit scale, 0 outside `mask`.
    config
        with `data.periodic` and `ou`.
    seed
        of what is hidden, see `mri.holdout.hide_for_training`.

    Raises
    ------
    InputError
        when the mask leaves nothing to hide.
    """
    kept, hidden = hide_for_training(mask, seed)
    if not hidden.any():
        raise InputError("the mask leaves no sample to hide, so nothing can be learned from the scan itself.")
    known = torch.where(kept, measured, 0)
    start = OptimizationUnit(config, seed).alone(known, kept, config.data.periodic)
    tensors = (tensor.cpu() for tensor in (ifft2c(measured), ifft2c(start), kept, mask))
    return PreparedScene(*tensors, config.data.periodic)


def advance_scene(
    scene: PreparedScene, prior, device: torch.device | str = "cpu", error_gain: float = 1.0
) -> PreparedScene:
    """The scene with a start that `prior` (`priors.Prior`, on `device`) makes of it.

    `error_gain`: σ as the prior is told it, in units of the error, where that is an estimate.
    """
    sigma = scene.error_std() * (1.0 if scene.known.all() else error_gain)
    kspace = prior.denoise(fft2c(scene.start).to(device), sigma, scene.mask.to(device), scene.periodic)
    return replace(scene, start=ifft2c(kspace).cpu())


class SceneFile:
    """Prepared scenes of one size in one memory-mapped file, in order, each whole or not there.

    Pickled (for the processes of a data loader) as its path alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._frames: np.ndarray | None = None

    def append(self, scene: PreparedScene) -> None:
        """Write one more scene."""
        height, width = scene.image.shape[1:]
        pixels = (("image", "<c8"), ("start", "<c8"), ("mask", "?"), ("known", "?"))
        kind = np.dtype([("scene", "<i8"), ("periodic", "?"), *((*field, (height, width)) for field in pixels)])
        frames = np.zeros(len(scene.image), kind)
        frames["scene"], frames["periodic"] = len(self), scene.periodic
        for name, _ in pixels:
            frames[name] = getattr(scene, name).numpy()
        append_frames(self.path, frames)
        self._frames = None

    def __len__(self) -> int:
        return len(self._bounds()) - 1 if self.path.exists() and self.path.stat().st_size else 0

    def __getitem__(self, number: int) -> PreparedScene:
        first, end = self._bounds()[number : number + 2]
        part = self._frames[first:end]
        tensors = {name: torch.from_numpy(np.array(part[name])) for name in ("image", "start", "mask", "known")}
        return PreparedScene(**tensors, periodic=bool(part["periodic"][0]))

    def __getstate__(self) -> dict:
        return {"path": self.path, "_frames": None}

    def _bounds(self) -> np.ndarray:
        """First frame of every scene, and one past the last."""
        if self._frames is None:
            self._frames = open_frames(self.path)
            scene = self._frames["scene"]
            self._first = np.searchsorted(scene, np.arange(scene[-1] + 2))
        return self._first


class SceneBatch(NamedTuple):
    """Whole scans, one after the other, whose missing samples are wrong by about σ, and the truth."""

    image: Tensor  # complex (frames, height, width): what a prior starts from
    truth: Tensor  # complex, same shape; 0 in k-space where it is not known
    mask: Tensor  # bool, same shape
    known: Tensor  # bool, same shape: samples whose truth is known
    place: Tensor  # int64 (frames,): of a frame in its scan; 0 begins a scan
    periodic: Tensor  # bool (frames,)
    told: Tensor  # (frames,): factor between σ and what the network is told
    columns: Tensor  # int64 (frames, 2): the first column that counts, and one past the last

    def scans(self) -> list["PreparedScene"]:
        """Each scan of the batch, its columns that count."""
        firsts = (self.place == 0).nonzero().flatten().tolist()
        found = []
        for first, end in zip(firsts, [*firsts[1:], len(self.place)], strict=True):
            part = (slice(first, end), slice(None), slice(*self.columns[first].tolist()))
            tensors = (tensor[part] for tensor in (self.truth, self.image, self.mask, self.known))
            found.append(PreparedScene(*tensors, bool(self.periodic[first])))
        return found


class SceneFrames:
    """Training scans from prepared scenes: the OU's result at part of its error.

    The cascade's noise is what the OU left: a scan is truth + a (start − truth), 0 < a ≤ 1, sometimes with
    Gaussian noise on the missing samples in place of part of it. σ is told with an error, as it must be
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
    settings
        `config.training`: `columns`, `max_gain`, `sigma_jitter`, `partial_share`, `noisy_share`, `error_gain`.
    """

    def __init__(self, scenes: Sequence[PreparedScene], count: int, frames: int, settings) -> None:
        self.scenes, self.count, self.frames, self.settings = scenes, count, frames, settings

    def draw(self, generator: torch.Generator) -> SceneBatch:
        """One scan."""
        settings = self.settings
        scene = self.scenes[int(torch.randint(self.count, (), generator=generator))]
        scene = augment_scene(scene, settings.max_gain, generator)
        scene, columns = cut_scene(scene, self.frames, settings.columns, generator)
        numbers = torch.rand(3, generator=generator).tolist()
        synthetic = bool(scene.known.all())
        if synthetic:
            scene = self._part_of_the_error(scene, *numbers, generator)
        told = torch.exp(settings.sigma_jitter * torch.randn((), generator=generator))
        if not synthetic:  # estimates fall short, see `sampling.error_gain`
            told = told * settings.error_gain
        count = len(scene.image)
        place, periodic = torch.arange(count), torch.full((count,), scene.periodic)
        images = (scene.start, scene.image, scene.mask, scene.known)
        return SceneBatch(*images, place, periodic, told.expand(count), torch.tensor([columns] * count))

    def _part_of_the_error(
        self, scene: PreparedScene, share: float, spread: float, coin: float, generator: torch.Generator
    ) -> PreparedScene:
        """A start with part of the error of the scene's, or with noise in place of some of it."""
        truth = scene.image
        error = (0.2 + 0.8 * share if coin < self.settings.partial_share else 1.0) * (scene.start - truth)
        if spread < self.settings.noisy_share:
            noise = torch.view_as_complex(torch.randn(*truth.shape, 2, generator=generator))
            noise = ifft2c(torch.where(scene.mask, 0, fft2c(noise)))
            part = spread / self.settings.noisy_share
            noise = noise * error.norm() / noise.norm().clamp(min=1e-12)
            error = (1 - part) ** 0.5 * error + part**0.5 * noise
        return replace(scene, start=truth + error)


def cut_scene(
    scene: PreparedScene, frames: int, columns: int, generator: torch.Generator
) -> tuple[PreparedScene, tuple[int, int]]:
    """At most `frames` frames of a scene, and which columns count: `columns` of sampled lines (0: all), else all."""
    numbers = torch.rand(2, generator=generator).tolist()
    held, _, width = scene.image.shape
    count = min(frames, held)
    # of a partial echo, or of samples that are no lines, the columns of the image are no scans of their own
    lines = torch.equal(scene.mask, scene.mask[..., :1].expand_as(scene.mask))
    if not columns or columns > width or not lines:
        columns = width
    first, left = int(numbers[0] * (held - count + 1)), int(numbers[1] * (width - columns + 1))
    part = slice(first, first + count)
    tensors = {name: getattr(scene, name)[part] for name in ("image", "start", "mask", "known")}
    return PreparedScene(**tensors, periodic=scene.periodic and count == held), (left, left + columns)


def missing_std(error: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation per real channel and pixel of an image error that lies in the missing samples."""
    return (fft2c(error)[~mask].abs().square().sum() / (2 * error.numel())).sqrt().clamp(min=1e-6)


def augment_scene(scene: PreparedScene, max_gain: float, generator: torch.Generator) -> PreparedScene:
    """A scene changed by what is exact for truth, start and masks alike."""
    names = ("image", "start", "mask", "known")
    tensors = [getattr(scene, name) for name in names]
    numbers = torch.rand(6, generator=generator).tolist()
    if numbers[0] < 0.5:
        tensors = [tensor.flip(0) for tensor in tensors]
    for axis, number in ((1, numbers[1]), (2, numbers[2])):
        if number < 0.5:  # about the pixel of index 0, in image and k-space alike
            tensors = [torch.roll(tensor.flip(axis), 1, axis) for tensor in tensors]
    height = scene.image.shape[1]
    # hidden samples are weighted by their distance to DC, which a shift would change
    rows = round((2 * numbers[3] - 1) * 4) if scene.known.all() else 0
    angle = 2 * torch.pi * (rows * torch.arange(height) / height + numbers[4])
    factor = torch.polar(torch.full((height,), max_gain ** (2 * numbers[5] - 1)), angle)[:, None]
    moved = [tensor * factor if tensor.is_complex() else torch.roll(tensor, rows, 1) for tensor in tensors]
    return replace(scene, **dict(zip(names, moved, strict=True)))
