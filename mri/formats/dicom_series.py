"""Images in DICOM files, with pydicom: a folder that is a series, or one enhanced multi-frame file."""

from pathlib import Path

import numpy as np

from mri.formats.checksum import sha256
from mri.formats.dicom_frames import Frame, classic_frame, enhanced_frames, number, refuse_unreadable
from mri.formats.limits import check_size
from mri.formats.stored import Finding, ReadOptions, Stored, choose_slice, finished
from mri.geometry import Geometry
from utils.errors import InputError

NAME = "DICOM"
HEARTBEAT_MS = 2000  # a series that lasts longer is not one heartbeat
MISSING = 1.5  # of the usual interval: a longer one has lost a frame


def recognises(path: Path) -> bool:
    if path.is_dir():
        return any(_is_dicom(file) for file in sorted(path.iterdir()) if file.is_file())
    return path.is_file() and _is_dicom(path)


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read(path: Path, options: ReadOptions) -> Stored:
    """Images of one slice, ordered by trigger time or instance number; rescale slope and intercept applied."""
    options.refuse(path, NAME, "frames_axis", "coils_axis", "dc", "set")
    if options.kind == "kspace":
        raise InputError(f"{path} holds images ({NAME}); leave out --kind kspace.")
    if options.time not in (None, "phase"):
        raise InputError(f"{path} is {NAME}, whose frames are found from its headers; leave out --time {options.time}.")
    frames, said = _frames(path, options.key)
    frames, more = _one_slice(path, frames, options)
    frames, order = _ordered(path, frames)
    shapes = {frame.shape for frame in frames}
    if len(shapes) > 1:
        listed = " and ".join(" × ".join(map(str, shape)) for shape in sorted(shapes))
        raise InputError(f"{path} has images of {listed} in one series; move those of one size into a separate folder.")
    check_size(path, len(frames) * int(np.prod(frames[0].shape)))
    array = np.stack([_pixels(path, frame) for frame in frames])[:, None]
    layout = (f"{len(frames)} images, {order}", *more, *said)
    geometry, real_time = _geometry(frames)
    finding = Finding(path, "", NAME, array, str(path), layout, sha256(path))
    return finished(finding, "image", geometry=geometry, real_time=real_time, header_file=str(frames[0].file))


def _frames(path: Path, key: str | None) -> tuple[list[Frame], list[str]]:
    """All images of a file, or of the one series of a folder that is meant."""
    files = [f for f in sorted(path.iterdir()) if f.is_file() and _is_dicom(f)] if path.is_dir() else [path]
    series: dict[str, list[Frame]] = {}
    numbers: dict[str, str] = {}
    copies, seen = 0, set()
    for file in files:
        uid, its_number, frames, instance = _of_file(file)
        if frames and instance in seen:
            copies += 1
        elif frames:
            seen.add(instance)
            series.setdefault(uid, []).extend(frames)
            numbers.setdefault(its_number or str(len(numbers)), uid)
    if not series:
        raise InputError(f"{path} holds no DICOM image; give the folder of an image series.")
    if key is not None and key not in numbers or key is None and len(series) > 1:
        listed = ", ".join(f"{one} ({len(series[uid])} images)" for one, uid in numbers.items())
        asked = f"no series {key}" if key is not None else f"{len(series)} series"
        raise InputError(f"{path} holds {asked}: {listed}; choose one with --key NUMBER.")
    frames = series[numbers[key]] if key is not None else next(iter(series.values()))
    said = [f"series {key} of {len(series)}"] if key is not None and len(series) > 1 else []
    if copies:
        said.append(f"{copies} copies of images (same SOP instance UID) are left out")
    if path.is_file() and len(frames) == 1:
        raise InputError(f"{path} is one image of a DICOM series; give the folder of the series.")
    magnitude = [frame for frame in frames if frame.component != "P"]
    if magnitude and len(magnitude) < len(frames):
        said.append(f"{len(frames) - len(magnitude)} phase images are left out")
        frames = magnitude
    return frames, said


def _of_file(file: Path) -> tuple[str, str, list[Frame], str]:
    """Series UID, series number, images and instance UID of a file; no image of one that holds something else."""
    try:
        import pydicom
    except ImportError:
        raise InputError(f"{file} is {NAME}, which needs pydicom: pip install pydicom.") from None
    try:
        dataset = pydicom.dcmread(file, defer_size="1 KB")
        uid, its_number = str(dataset.get("SeriesInstanceUID", "")), str(dataset.get("SeriesNumber", ""))
        instance = str(dataset.get("SOPInstanceUID", file))
        if "Rows" not in dataset or "Columns" not in dataset:
            return uid, its_number, [], instance
        if dataset.get("SamplesPerPixel", 1) != 1:
            raise InputError(f"{file} holds RGB images; export them as greyscale.")
        refuse_unreadable(file, dataset)
        several = int(number(dataset, "NumberOfFrames") or 1) > 1
        frames = enhanced_frames(file, dataset) if several else [classic_frame(file, dataset)]
        return uid, its_number, frames, instance
    except (InputError, PermissionError):
        raise
    except Exception:  # pydicom has an exception for each way in which a file can be broken
        raise InputError(f"{file} is a DICOM file that is damaged or cut short; export it again.") from None


def _one_slice(path: Path, frames: list[Frame], options: ReadOptions) -> tuple[list[Frame], list[str]]:
    """The images of the slice that is meant; each slice must have as many."""
    oriented = [frame for frame in frames if frame.position is not None and frame.orientation is not None]
    if len(oriented) < len(frames) or not frames:
        return frames, []
    first = np.array(frames[0].orientation)
    if any(np.abs(np.array(frame.orientation) - first).max() > 0.01 for frame in frames):
        raise InputError(f"{path} has slices of different orientations; move those of one into a separate folder.")
    normal = np.cross(first[:3], first[3:])
    places = np.array([round(float(normal @ np.array(frame.position)), 1) for frame in frames])
    levels = np.unique(places)
    counts = [int((places == level).sum()) for level in levels]
    if len(set(counts)) > 1:
        raise InputError(
            f"{path}: its {len(levels)} slices have {', '.join(map(str, counts))} images, so frames are missing or "
            "several scans are mixed; export the series again."
        )
    chosen = choose_slice(str(path), len(levels), options.slice)
    said = [f"slice {chosen} of {len(levels)}"] if len(levels) > 1 else []
    return [frame for frame, place in zip(frames, places, strict=True) if place == levels[chosen]], said


def _ordered(path: Path, frames: list[Frame]) -> tuple[list[Frame], str]:
    """The frames in the order of time, and how it is known; a gap is a missing frame."""
    ways = (("trigger time", "time_ms"), ("temporal position", "temporal"), ("instance number", "instance"))
    for words, name in ways:
        values = [getattr(frame, name) for frame in frames]
        if None in values or len(set(values)) < len(values):
            continue
        frames = sorted(frames, key=lambda frame: getattr(frame, name))
        steps = np.diff(sorted(values))
        if len(steps) > 1 and (steps > MISSING * np.median(steps)).any():
            gap = int(np.argmax(steps > MISSING * np.median(steps)))
            raise InputError(
                f"{path}: after frame {gap} (counting from 0) the {words} jumps from {sorted(values)[gap]:g} to "
                f"{sorted(values)[gap + 1]:g}, so frames are missing; export the series again."
            )
        expected = max((frame.expected or 0 for frame in frames), default=0)
        if name == "time_ms" and expected > len(frames):
            raise InputError(
                f"{path} has {len(frames)} of the {expected} cardiac phases that its header names; export it again."
            )
        return frames, f"ordered by {words}"
    raise InputError(
        f"{path}: its images cannot be ordered by trigger time, temporal position or instance number; export it again."
    )


def _pixels(path: Path, frame: Frame) -> np.ndarray:
    """The image, rescaled, float32 `(rows, columns)`."""
    try:
        pixels = frame.pixels()
    except Exception:  # each decoder has exceptions of its own
        raise InputError(f"{frame.file} has pixels that are damaged or cut short; export it again.") from None
    if not np.isfinite([frame.slope, frame.intercept]).all() or frame.slope == 0:
        raise InputError(f"{frame.file} has the rescale slope {frame.slope:g}; correct its header.")
    return pixels.astype(np.float32) * np.float32(frame.slope) + np.float32(frame.intercept)


def _geometry(frames: list[Frame]) -> tuple[Geometry, bool]:
    """Where the images lie and when they were taken, and whether they are a real-time series."""
    first = frames[0]
    times = _increasing([frame.time_ms for frame in frames])
    real_time = False
    if times is None:
        times = _increasing([frame.acquired_ms for frame in frames])
        real_time = times is not None and times[-1] - times[0] > HEARTBEAT_MS
        if not real_time:  # scanners give all phases of a heartbeat the time at which they were reconstructed
            times = None
    step = float(np.median(np.diff(times))) if times is not None else first.interval_ms
    voxel = None
    if first.spacing is not None:
        voxel = (*first.spacing, first.slice_spacing or first.thickness or 1.0)
    return Geometry(
        voxel_mm=voxel,
        slice_thickness_mm=first.thickness,
        orientation=first.orientation,
        position_mm=first.position,
        frame_time_ms=step,
        frame_times_ms=tuple(times) if times is not None else None,
    ), real_time


def _increasing(times: list[float | None]) -> list[float] | None:
    """The times, where all are known and each is later than the one before."""
    known = [time for time in times if time is not None]
    return known if len(known) == len(times) and all(np.diff(known) > 0) else None
