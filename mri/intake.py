"""From files, or the built-in heart phantom, to a `Scan` and, where the data are fully sampled, its `Reference`."""

import glob
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from mri.checks import image_remarks, measured_block
from mri.combined import refuse_combined_after_undersampling
from mri.filled_lines import filled_lines, refuse_filled_lines
from mri.formats import Stored, load_scan
from mri.formats.array_scan import load_maps
from mri.formats.detect import SCAN_SUFFIXES, has_scan_suffix, is_one_scan, result_names, scan_name
from mri.fourier import fft2c, ifft2c
from mri.holdout import copies_of
from mri.intake_settings import Intake
from mri.masks import is_lines, lines_along_rows
from mri.oversampling import crop_readout, cropped_matrix
from mri.phantom import simulate_scan
from mri.phase import smooth_phase
from mri.resize import interpolated, resized
from mri.scan import Reference, Scan, Source
from mri.scan_masks import mask_of_measurement, mask_to_apply, sampled_locations
from utils.errors import InputError

Tensor = torch.Tensor

EMBEDDED_FRAMES = 16
DIFFERENT = 0.01  # share of the samples in which a mask and what was measured differ
EMBEDDED_COILS, EMBEDDED_NOISE = 8, 0.01


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
    mask, how = mask_to_apply(intake, (frames, size, size))
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
    intake, doubts = _with_own_mask(intake, stored)
    if doubts:
        stored = replace(stored, details=(*stored.details, *doubts))
    if stored.kind != "kspace":
        return _simulated(intake, stored, gain)
    sampled = stored.mask if stored.mask is not None else sampled_locations(stored.data)
    if stored.mask is None:
        stored, sampled = _without_filled_lines(intake, stored, sampled)
        if (block := measured_block(sampled)) is not None:
            intake, stored, more_gain = replace(intake, block=block), *_block_of(stored, block)
            sampled, gain = sampled[(slice(None), *block)], gain * more_gain
    found = str(stored)
    maps, said = _maps_of_file(intake, stored) if stored.data.shape[1] > 1 else (None, "")
    found = f"{found}\n{said}" if said else found
    noise = None if stored.noise is None else stored.noise * gain
    level = None if data.noise_std is None else data.noise_std * gain
    more: dict[str, Any] = {"noise_samples": noise, "noise_std": level, "coil_maps": maps, "averages": stored.averages}
    if sampled.all():
        stored = _without_oversampling(stored, sampled)
        more["averages"] = stored.averages
        more["remarks"] = tuple(refuse_combined_after_undersampling(stored.data[:, 0], path))
        full = Reference(kspace=stored.data, noisy=True) if stored.image is None else Reference(stored.image)
        return _undersampled(intake, stored.data, stored, full, found, **more)
    mask, how, doubts = mask_of_measurement(intake, stored, sampled)
    source = _source(stored, f"{found}\nprospectively under-sampled; mask {how}")
    reference = None if stored.image is None else Reference(stored.image, apart=True)
    more |= {"readout_oversampling": stored.oversampling, "remarks": tuple(doubts)}
    return Scan.from_arrays(stored.data, mask, source=source, **more, **_when_and_where(stored)), reference


def _with_own_mask(intake: Intake, stored: Stored) -> tuple[Intake, list[str]]:
    """The intake with the mask beside the scan in its file, where none is named and that one can be it; and doubts."""
    key = stored.own_mask
    if key is None or intake.mask.path or not intake.own_mask:
        return intake, []
    own = replace(intake, mask=replace(intake.mask, path=str(stored.path), key=key))
    frames, _, height, width = stored.data.shape
    unused = f"warning: the variable '{key}' beside the scan is ignored, because it "
    mend = f"; to use it anyway, give --mask {stored.path} --mask_key {key}"
    try:
        mask, _ = mask_to_apply(own, (frames, height, width))
    except InputError:
        return intake, [f"{unused}does not have the shape or values of a mask of this scan"]
    if stored.kind == "kspace" and filled_lines(stored.data):
        return own, []
    sampled = sampled_locations(stored.data) if stored.kind == "kspace" else torch.ones_like(mask)
    if not sampled.all():
        differing = (mask != sampled).double().mean() > DIFFERENT
        return (intake, [f"{unused}does not match the measured samples"]) if differing else (own, [])
    if mask.all():
        return intake, []
    lines = is_lines(lines_along_rows(mask))
    if lines or not (mask == mask[0]).all():
        return own, []
    return intake, [f"{unused}is the same in every frame and has no lines (a region of interest?){mend}"]


def _simulated(intake: Intake, stored: Stored, gain: float) -> tuple[Scan, Reference]:
    """The acquisition of images."""
    image, data = stored.data[:, 0], intake.data
    remarks = image_remarks(image, str(stored.path))
    remarks += refuse_combined_after_undersampling(fft2c(image), stored.path)
    if stored.kind == "magnitude" and data.phase == "smooth":
        image = torch.polar(image.abs(), smooth_phase(len(image), image.shape[1], image.shape[2], intake.seed))
    # the noise of the images themselves belongs to what is to be reconstructed
    kspace, level = fft2c(image.to(torch.complex64))[:, None], (data.noise_std or 0.0) * gain
    found = str(stored) if level else f"{stored}\nnoise in these images counts as signal; --noise_std states its level"
    reference = Reference(image, noisy=level > 0)
    return _undersampled(intake, kspace, stored, reference, found, noise_std=level, remarks=tuple(remarks))


def _without_filled_lines(intake: Intake, stored: Stored, sampled: Tensor) -> tuple[Stored, Tensor]:
    """K-space and where it was measured: if lines were filled in, only inside the mask of `mask.path`.

    A noise-free simulation of an object at rest has identical frames there, too, and is accepted.
    """
    how = filled_lines(stored.data) if intake.mask.path else ""
    if how:
        mask, name = mask_to_apply(intake, (len(sampled), sampled.shape[1], sampled.shape[2]))
        sampled = sampled & mask
        said = f"{how}: only the samples in {name} are treated as measured"
        stored = replace(
            stored, data=torch.where(sampled[:, None], stored.data, 0), details=(*stored.details, said)
        )  # fmt: skip
        still = filled_lines(stored.data)
        if "frame" in still and not sampled.all() and copies_of(stored.data, sampled).all():
            doubt = f"warning: {still}, also inside {name}; accepted, because all frames are identical there "
            doubt += "(a simulated object at rest)"
            return replace(stored, details=(*stored.details, doubt)), sampled
    refuse_filled_lines(stored.data, str(stored.path))
    return stored, sampled


def _block_of(stored: Stored, block: tuple[slice, slice]) -> tuple[Stored, float]:
    """K-space without the zeros around the block that was measured, and the gain that keeps image intensities."""
    height, width = stored.data.shape[2:]
    kspace = stored.data[(slice(None), slice(None), *block)]
    gain = (kspace[0, 0].numel() / (height * width)) ** 0.5
    image = stored.image
    if image is not None:
        image = ifft2c(fft2c(image)[(slice(None), *block)] * gain)
    now = (kspace.shape[2], kspace.shape[3])
    said = f"k-space of {height} x {width} is zero-padded; cropped to the measured {now[0]} x {now[1]}"
    geometry = stored.geometry.resampled((height, width), now)
    details = (*stored.details, said)
    return replace(stored, data=kspace * gain, image=image, geometry=geometry, details=details), gain


def _when_and_where(stored: Stored) -> dict[str, Any]:
    height = stored.data.shape[2]
    geometry = stored.geometry.cropped_rows(height, cropped_matrix(height, stored.phase_oversampling))
    return {
        "geometry": geometry, "real_time": stored.real_time, "phase_oversampling": stored.phase_oversampling
    }  # fmt: skip


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
    names = result_names(files)
    twins = [file.name for file, name in zip(files, names, strict=True) if names.count(name) > 1]
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
    whole = (shape[0], scan.kspace.shape[2], shape[2])  # with phase oversampling
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
        if shapes[-1] in (shape, whole):
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
        raise InputError(f"{stored.path} is under-sampled k-space; a reference must be fully sampled.")
    return Reference(kspace=_without_oversampling(stored, sampled).data, noisy=True, found=stored.found)


def _source(stored: Stored, found: str) -> Source:
    return Source(
        scan_name(stored.path), found, str(stored.path), stored.format, stored.sha256, stored.header_file
    )


def _undersampled(
    intake: Intake, kspace: Tensor, stored: Stored, reference: Reference, found: str, **more
) -> tuple[Scan, Reference]:
    mask, how = mask_to_apply(intake, (len(kspace), *kspace.shape[2:]))
    source = _source(stored, f"{found}\nfully sampled; retrospectively under-sampled by {how}")
    return Scan.from_arrays(kspace, mask, source=source, **more, **_when_and_where(stored)), reference


def _maps_of_file(intake: Intake, stored: Stored) -> tuple[Tensor | None, str]:
    """Coil maps that `--maps FILE` names, brought to the size that the scan was cut to, and what was found."""
    if intake.maps in ("auto", "walsh", "espirit"):
        return None, ""
    coils, height, width = stored.data.shape[1:]
    width = cropped_matrix(width, stored.oversampling)
    maps, found = load_maps(intake.maps, coils)
    if (intake.data.size or intake.block) and maps.shape[1] >= height and maps.shape[2] >= width:
        maps = interpolated(maps, height, width)
    if maps.shape != (coils, height, width):
        raise InputError(
            f"{intake.maps}: coil maps {tuple(maps.shape)} do not fit the scan's (coils, height, width) = "
            f"{(coils, height, width)}; give maps of the same coils and matrix."
        )
    return maps, found


def training_sources(intake: Intake) -> Sequence[Path | int]:
    """The scans to train on: files of `data.path`, or seeds of built-in heart phantoms."""
    if intake.data.path:
        return scan_files(intake.data.path, (intake.mask.path, intake.maps))
    if intake.data.phantoms < 1:
        raise InputError("data.phantoms must be at least 1, or data.path must name scans to train on.")
    return range(1, intake.data.phantoms + 1)
