"""From files, or the built-in heart phantom, to a `Scan` and, where the data are fully sampled, its `Reference`."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import torch

from mri.combined import refuse_combined_after_undersampling
from mri.formats import Stored, load_mask, load_scan
from mri.formats.array_scan import load_maps
from mri.formats.detect import SCAN_SUFFIXES, has_scan_suffix, is_one_scan, scan_name
from mri.formats.stored import TIMES
from mri.fourier import fft2c
from mri.masks import PATTERNS, fit_mask, make_mask
from mri.oversampling import crop_readout, cropped_matrix
from mri.phantom import simulate_scan
from mri.phase import smooth_phase
from mri.resize import interpolated, resized, resized_mask
from mri.scan import Reference, Scan, Source
from utils.errors import InputError
from utils.settings import Settings, setting

Tensor = torch.Tensor

TINY = 2e-7  # of the largest value of k-space: rounding of single precision
EMBEDDED_FRAMES, EMBEDDED_SIZE = 16, 96
EMBEDDED_COILS, EMBEDDED_NOISE = 8, 0.01


@dataclass(frozen=True)
class DataSettings(Settings):
    """Which scan, and how its file is read."""

    part: ClassVar[str] = "data"

    path: str = setting("", "scan file or folder of scans; empty: the built-in heart phantom")
    key: str = setting("", "variable in the file; empty: found")
    kind: str = setting("", "image | kspace; empty: found", choices=("", "image", "kspace"))
    frames_axis: int | None = setting(None, "axis of time in the file, e.g. -1; None: found", optional=int)
    coils_axis: int | None = setting(None, "axis of the coils in the file; None: found", optional=int)
    time: str = setting("", "what is time in the file; empty: found", choices=("", *TIMES))
    slice: int | None = setting(None, "slice of a file with several, from 0", least=0, optional=int)
    set: int | None = setting(None, "set (such as a velocity encoding) of a file with several", least=0, optional=int)
    dc: str = setting("center", "where zero frequency lies in k-space files", choices=("center", "corner"))
    phase: str = setting("smooth", "phase given to magnitude images", choices=("smooth", "none"))
    frames: int = setting(0, "frames used; 0: all (built-in heart phantom: 16); image series with "
                          "fewer are repeated cyclically, k-space is not", least=0, most=1024)  # fmt: skip
    size: int = setting(0, "pixels used, the centre of k-space; 0: all (built-in heart phantom: model.image_size)",
                        least=0, most=4096)  # fmt: skip
    phantoms: int = setting(16, "built-in heart phantoms to train on, seeds 1, 2, …; 0 is the demo's", least=0)
    noise_std: float | None = setting(
        None, "σ of a complex k-space sample of one coil, E|n|² = σ², in the units of the file; None: from noise "
        "samples, else estimated", least=0, optional=float
    )  # fmt: skip


@dataclass(frozen=True)
class MaskSettings(Settings):
    """The sampling mask of fully sampled data, or the one that was used."""

    part: ClassVar[str] = "mask"

    path: str = setting("", "mask file; empty: generated, or found from the zeros of k-space")
    key: str = setting("", "variable in the mask file; empty: found")
    pattern: str = setting("uniform", "mask to generate", choices=PATTERNS)
    acceleration: float = setting(4.0, "nominal acceleration R, not counting the ACS lines", least=1)
    acs: int = setting(8, "fully sampled central lines", least=0)


@dataclass(frozen=True)
class Intake:
    """All that decides how a scan is taken."""

    data: DataSettings = field(default_factory=DataSettings)
    mask: MaskSettings = field(default_factory=MaskSettings)
    maps: str = "auto"  # a file of coil maps, or how they are estimated (`reconstruction.prepare`)
    seed: int = 0  # of masks, image phases and the noise of the built-in phantom
    embedded_size: int = EMBEDDED_SIZE


def acquire(intake: Intake, source: Path | int) -> tuple[Scan, Reference | None]:
    """The scan of a file, or the built-in heart phantom of a seed."""
    return embedded_scan(intake, source) if isinstance(source, int) else scan_from_file(intake, source)


def embedded_scan(intake: Intake, seed: int) -> tuple[Scan, Reference]:
    """The built-in heart phantom with coils and noise, under-sampled as `intake.mask` says."""
    data = intake.data
    frames, size = data.frames or EMBEDDED_FRAMES, data.size or intake.embedded_size
    simulated = simulate_scan("heart", frames, size, seed, EMBEDDED_COILS, EMBEDDED_NOISE)
    found = (
        f"built-in heart phantom {seed}: {frames} frames of {EMBEDDED_COILS} coils, {size}×{size}, noise "
        f"{EMBEDDED_NOISE:g} of the brightest pixel"
    )
    mask, how = _mask_to_apply(intake, (frames, size, size))
    found += f"\nfully sampled; retrospectively under-sampled by {how}"
    source = Source(f"heart{seed}", found, format="embedded")
    scan = Scan.from_arrays(simulated.kspace, mask, noise_samples=simulated.noise, source=source)
    return scan, Reference(image=simulated.image)


def scan_from_file(intake: Intake, path: str | os.PathLike) -> tuple[Scan, Reference | None]:
    """Read a scan; simulate its acquisition when it is fully sampled.

    Images become k-space (magnitude images get a smooth phase first, `data.phase`) and are under-sampled; so is fully
    sampled k-space. The mask of under-sampled k-space is read from `mask.path`, or found from its zeros.

    Raises
    ------
    InputError
        for a file that cannot be used; among others for coils that were combined after under-sampling.
    """
    data = intake.data
    stored = load_scan(
        path, data.key or None, data.kind or None, data.frames_axis, data.dc, data.coils_axis,
        time=data.time or None, slice=data.slice, set=data.set,
    )  # fmt: skip
    stored, gain = resized(stored, data.frames, data.size)
    found = str(stored)
    if stored.kind != "kspace":
        found += _suspicion(fft2c(stored.data[:, 0]), path)
        image = stored.data[:, 0]
        if stored.kind == "magnitude" and data.phase == "smooth":
            image = torch.polar(image.abs(), smooth_phase(len(image), image.shape[1], image.shape[2], intake.seed))
        # the noise of the images themselves belongs to what is to be reconstructed
        kspace = fft2c(image.to(torch.complex64))[:, None]
        return _undersampled(
            intake, kspace, stored, Reference(image), found, noise_std=(data.noise_std or 0.0) * gain
        )
    sampled = stored.mask if stored.mask is not None else sampled_locations(stored.data)
    maps, said = _maps_of_file(intake, stored) if stored.data.shape[1] > 1 else (None, "")
    found = f"{found}\n{said}" if said else found
    noise = None if stored.noise is None else stored.noise * gain
    level = None if data.noise_std is None else data.noise_std * gain
    more = {"noise_samples": noise, "noise_std": level, "coil_maps": maps, "averages": stored.averages}
    if sampled.all():
        stored = _without_oversampling(stored, sampled)
        more["averages"] = stored.averages
        found += _suspicion(stored.data[:, 0], path)
        full = Reference(kspace=stored.data, noisy=True) if stored.image is None else Reference(stored.image)
        return _undersampled(intake, stored.data, stored, full, found, **more)
    mask, how = _mask_of_measurement(intake, stored, sampled)
    source = _source(stored, f"{found}\nprospectively under-sampled; mask {how}")
    reference = None if stored.image is None else Reference(stored.image)
    more["readout_oversampling"] = stored.oversampling
    return Scan.from_arrays(stored.data, mask, source=source, **more, **_when_and_where(stored)), reference


def _when_and_where(stored: Stored) -> dict[str, Any]:
    return {"geometry": stored.geometry, "real_time": stored.real_time}


def _without_oversampling(stored: Stored, sampled: Tensor) -> Stored:
    """Fully sampled k-space as a mask is to under-sample it: of the central field of view alone."""
    if stored.oversampling == 1:
        return stored
    kspace, mask = crop_readout(stored.data, sampled, stored.oversampling)
    averages = stored.averages
    if averages is not None:
        averages = averages.amax(dim=-1, keepdim=True).expand(mask.shape).contiguous()
    said = f"readout oversampling ({stored.oversampling:.3g}) removed"
    return replace(stored, data=kspace, mask=mask, averages=averages, oversampling=1.0, details=(*stored.details, said))


def _suspicion(kspace: Tensor, path: str | os.PathLike) -> str:
    warning = refuse_combined_after_undersampling(kspace, path)
    return f"\n{warning}" if warning else ""


def scan_files(path: str | os.PathLike, beside: Sequence[str] = ()) -> list[Path]:
    """The scan file or DICOM series, or the sorted scans of a folder or of a pattern such as `scans/*.mat`.

    Files named in `beside`, such as that of the mask or the coil maps, are no scans.
    """
    path = Path(path)
    if not is_several_scans(path):
        return [path]
    entries = path.iterdir() if path.is_dir() else (Path(name) for name in glob.glob(str(path)))
    files = sorted(f for f in entries if (is_one_scan(f) if f.is_dir() else has_scan_suffix(f)))
    others = {Path(name).resolve() for name in beside if name}
    files = [file for file in files if file.resolve() not in others]
    if not files:
        raise InputError(f"{path} holds no scan; put {', '.join(SCAN_SUFFIXES)} files there.")
    twins = [f.name for f in files if sum(scan_name(f) == scan_name(other) for other in files) > 1]
    if twins:
        raise InputError(f"{path}: {' and '.join(twins)} would share one folder of results; rename all but one.")
    return files


def is_several_scans(path: Path) -> bool:
    """Whether a path is a folder or a pattern of scans rather than one of them."""
    return is_pattern(path) or not is_one_scan(path)


def is_pattern(path: Path) -> bool:
    """Whether the shell's wildcards are meant: no file has this name."""
    return glob.has_magic(str(path)) and not path.exists()


def reference_from_file(intake: Intake, path: str, key: str | None, scan: Scan) -> Reference:
    """Fully sampled images or k-space to score against, cut to frames and size as the scan is.

    Raises
    ------
    InputError
        for under-sampled k-space, or another shape than the scan's.
    """
    data, found, problems = intake.data, [], []
    # a file may be laid out as the scan's is, or otherwise
    choices = dict.fromkeys(product(
        (None, data.frames_axis), ("center", data.dc), (None, data.time or None), (None, data.slice)
    ))  # fmt: skip
    for frames_axis, dc, time, index in choices:
        try:
            stored = load_scan(path, key, None, frames_axis, dc, data.coils_axis, time=time, slice=index)
            repeated = "its cycle repeated" in scan.source.found
            if len(stored.data) < data.frames and not repeated:
                raise InputError(f"{path} holds {len(stored.data)} frames and the scan {data.frames}; give as many.")
            found.append(_reference(resized(stored, data.frames, data.size)[0]))
        except InputError as error:
            problems.append(error)
    shape = (len(scan.kspace), *scan.matrix)
    shapes = []
    for reference in found:
        if reference.image is not None:
            shapes.append(tuple(reference.image.shape))
        elif reference.kspace is not None:
            frames, coils, height, width = reference.kspace.shape
            shapes.append((frames, height, width))
            if coils not in (1, scan.coils):
                problems.append(InputError(f"{path} has {coils} coils and the scan {scan.coils}; give the same coils."))
                continue
        if shapes[-1] == shape:
            return reference
    if problems and not found or any("coils" in str(problem) for problem in problems):
        raise problems[0]
    raise InputError(
        f"{path}: shape {shapes[0]} is not the scan's {shape}; give fully sampled images of the same frames and size."
    )


def _reference(stored: Stored) -> Reference:
    if stored.kind != "kspace":
        return Reference(image=stored.data[:, 0], found=stored.found)
    sampled = stored.mask if stored.mask is not None else sampled_locations(stored.data)
    if not sampled.all():
        raise InputError(f"{stored.path} is under-sampled k-space; a reference is fully sampled: give its images.")
    return Reference(kspace=_without_oversampling(stored, sampled).data, noisy=True, found=stored.found)


def _source(stored: Stored, found: str) -> Source:
    return Source(scan_name(stored.path), found, str(stored.path), stored.format, stored.sha256)


def _undersampled(
    intake: Intake, kspace: Tensor, stored: Stored, reference: Reference, found: str, **more
) -> tuple[Scan, Reference]:
    mask, how = _mask_to_apply(intake, (len(kspace), *kspace.shape[2:]))
    source = _source(stored, f"{found}\nfully sampled; retrospectively under-sampled by {how}")
    return Scan.from_arrays(kspace, mask, source=source, **more, **_when_and_where(stored)), reference


def _mask_to_apply(intake: Intake, shape: tuple[int, int, int]) -> tuple[Tensor, str]:
    """The mask of `intake.mask`, read or generated, for a scan of (frames, height, width), and its name."""
    mask = intake.mask
    if mask.path:
        read = resized_mask(load_mask(mask.path, mask.key or None), intake.data.frames, intake.data.size, shape)
        return fit_mask(read, shape, mask.path), mask.path
    generated = make_mask(mask.pattern, shape, mask.acceleration, mask.acs, intake.seed)
    return fit_mask(generated, shape), f"{mask.pattern}, R = {mask.acceleration:g}, {mask.acs} ACS lines"


def _mask_of_measurement(intake: Intake, stored: Stored, sampled: Tensor) -> tuple[Tensor, str]:
    """The mask of under-sampled k-space: from its file, or from the zeros; and its name."""
    shape = (sampled.shape[0], sampled.shape[1], sampled.shape[2])
    if not intake.mask.path and stored.mask is not None:
        return fit_mask(stored.mask, shape, f"{stored.path}: what was measured"), "as the readouts of the file say"
    if not intake.mask.path:
        exact = not stored.data.abs().sum(dim=1)[~sampled].any()
        zeros = "the zeros in k-space" if exact else f"samples below {TINY:g} of the largest, which count as zero"
        return fit_mask(sampled, shape, f"{stored.path}: the mask detected from its zeros"), f"detected from {zeros}"
    mask, name = _mask_that_fits(intake, shape, sampled)
    missing = _unmeasured(mask, sampled)
    if missing > 0.01 and (mask == mask[0]).all() and not (sampled == sampled[0]).all():
        same = [i for i in range(len(mask)) if torch.equal(mask[i], sampled[i])]
        whose = f"the mask of frame {same[0]} alone" if same else "one mask for all frames"
        raise InputError(
            f"{name} is {whose}, and {stored.path} was sampled otherwise from frame to frame; leave out --mask to find "
            "the mask from the zeros, or give it with all frames."
        )
    if missing > 0.01:
        raise InputError(
            f"{name} does not match {stored.path}: {missing:.0%} of its samples are zero in the k-space; give the mask "
            "the scan was made with, or none, to find it from the zeros."
        )
    return mask, name


def _unmeasured(mask: Tensor, sampled: Tensor) -> float:
    """Share of the samples of a mask that are zero in the k-space."""
    return ((mask & ~sampled).double().sum() / mask.double().sum()).item()


def _mask_that_fits(intake: Intake, shape: tuple[int, int, int], sampled: Tensor) -> tuple[Tensor, str]:
    """The mask of a file and its name; with rows and columns exchanged where only so it is that of the k-space.

    CMRxRecon stores masks in the order of MATLAB and k-space as HDF5 has it.
    """
    path = intake.mask.path
    read = resized_mask(load_mask(path, intake.mask.key or None), intake.data.frames, intake.data.size, shape)
    try:
        mask = fit_mask(read, shape, path)
        if _unmeasured(mask, sampled) <= 0.01:
            return mask, path
    except InputError:
        mask = None
    try:
        turned = fit_mask(read.mT, shape, path)
        if _unmeasured(turned, sampled) <= 0.01:
            return turned, f"{path}, its rows and columns exchanged to fit the k-space"
    except InputError:
        pass
    return fit_mask(read, shape, path) if mask is None else mask, path


def _maps_of_file(intake: Intake, stored: Stored) -> tuple[Tensor | None, str]:
    """Coil maps that `--maps FILE` names, brought to the size that the scan was cut to, and what was found."""
    if intake.maps in ("auto", "walsh", "espirit"):
        return None, ""
    coils, height, width = stored.data.shape[1:]
    width = cropped_matrix(width, stored.oversampling)
    maps, found = load_maps(intake.maps, coils)
    if intake.data.size and maps.shape[1] >= height and maps.shape[2] >= width:
        maps = interpolated(maps, height, width)
    if maps.shape != (coils, height, width):
        raise InputError(
            f"{intake.maps}: coil maps {tuple(maps.shape)} do not fit the scan's (coils, height, width) = "
            f"{(coils, height, width)}; give maps of the same coils and matrix."
        )
    return maps, found


def sampled_locations(kspace: Tensor) -> Tensor:
    """Where k-space `(frames, coils, ky, kx)` was measured in any coil: boolean `(frames, ky, kx)`."""
    return _sampled_locations(kspace.abs().sum(dim=1))


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


def training_sources(intake: Intake) -> Sequence[Path | int]:
    """The scans to train on: files of `data.path`, or seeds of built-in heart phantoms."""
    if intake.data.path:
        return scan_files(intake.data.path, (intake.mask.path, intake.maps))
    if intake.data.phantoms < 1:
        raise InputError("data.phantoms must be at least 1, or data.path must name scans to train on.")
    return range(1, intake.data.phantoms + 1)
