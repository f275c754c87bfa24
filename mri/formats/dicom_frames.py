"""What the header of a DICOM image says of it, classic and enhanced."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import InputError


@dataclass(frozen=True)
class Frame:
    """One image; entries are None where the header does not say.

    Attributes
    ----------
    time_ms
        trigger time.
    acquired_ms
        time of acquisition.
    temporal, instance
        temporal position and instance number.
    expected
        cardiac phases that the series should have.
    component
        'M' magnitude, 'P' phase, '' unknown.
    interval_ms
        from one frame to the next, where the file gives that alone.
    pixels
        reads the stored values `(rows, columns)`.
    """

    file: Path
    shape: tuple[int, int]
    pixels: Callable[[], np.ndarray]
    slope: float = 1.0
    intercept: float = 0.0
    time_ms: float | None = None
    acquired_ms: float | None = None
    temporal: float | None = None
    instance: float | None = None
    expected: int | None = None
    component: str = ""
    interval_ms: float | None = None
    spacing: tuple[float, float] | None = None
    thickness: float | None = None
    slice_spacing: float | None = None
    orientation: tuple[float, ...] | None = None
    position: tuple[float, float, float] | None = None


def number(dataset: Any, name: str) -> float | None:
    """A number of the header; None where it is missing, empty or no number."""
    try:
        value = dataset.get(name)
        return None if value is None or value == "" else float(value)
    except (TypeError, ValueError):
        return None


def milliseconds(value: Any) -> float | None:
    """A time of day, HHMMSS.FFFFFF, in ms; None where it is missing or damaged."""
    text = str(value or "").split("+")[0].split("-")[0]
    try:
        return 1000 * (3600 * int(text[:2]) + 60 * int(text[2:4]) + float(text[4:])) if len(text) >= 6 else None
    except ValueError:
        return None


def numbers(dataset: Any, name: str, count: int) -> tuple[float, ...] | None:
    """So many numbers of the header, or None."""
    try:
        values = tuple(float(value) for value in dataset.get(name) or ())
    except (TypeError, ValueError):
        return None
    return values if len(values) == count else None


def _component(dataset: Any) -> str:
    kinds = [str(kind) for kind in dataset.get("ImageType") or ()]
    kinds.append(str(dataset.get("ComplexImageComponent", "")))
    if any(kind in ("P", "PHASE", "PHASE MAP", "VELOCITY") for kind in kinds):
        return "P"
    return "M" if "M" in kinds or "MAGNITUDE" in kinds else ""


def _place(dataset: Any) -> dict[str, Any]:
    """Spacing, thickness, orientation and position, of a classic image or of functional groups put together."""
    return {
        "spacing": numbers(dataset, "PixelSpacing", 2),
        "thickness": number(dataset, "SliceThickness"),
        "slice_spacing": number(dataset, "SpacingBetweenSlices"),
        "orientation": numbers(dataset, "ImageOrientationPatient", 6),
        "position": numbers(dataset, "ImagePositionPatient", 3),
    }


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _scaling(dataset: Any) -> dict[str, Any]:
    return {
        "slope": _or(number(dataset, "RescaleSlope"), 1.0),
        "intercept": _or(number(dataset, "RescaleIntercept"), 0.0),
    }


def refuse_unreadable(file: Path, dataset: Any) -> None:
    """Raise `InputError` for images that are compressed in a way that no installed decoder reads."""
    from pydicom import uid
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return
    # what pydicom can decode, given the package for it; the others are videos and JPEG 2000 Part 2
    images = (
        *uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes, *uid.RLETransferSyntaxes, uid.JPEG2000Lossless,
        uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K,
    )  # fmt: skip
    known = syntax in images and get_decoder(syntax).is_available
    if not known:
        raise InputError(f"{file} is compressed as {syntax.name}, which is not supported; export it uncompressed.")


def classic_frame(file: Path, dataset: Any) -> Frame:
    """The image of a file of its own."""
    expected = number(dataset, "CardiacNumberOfImages")
    return Frame(
        file, (int(dataset.Rows), int(dataset.Columns)), lambda: dataset.pixel_array,
        time_ms=number(dataset, "TriggerTime"), acquired_ms=milliseconds(dataset.get("AcquisitionTime")),
        temporal=number(dataset, "TemporalPositionIdentifier"),
        instance=number(dataset, "InstanceNumber"), expected=int(expected) if expected else None,
        component=_component(dataset), **_place(dataset), **_scaling(dataset),
    )  # fmt: skip


def enhanced_frames(file: Path, dataset: Any) -> list[Frame]:
    """The images of a multi-frame file: each with its functional groups, or in the order of the file without these."""
    count, shape = int(dataset.NumberOfFrames), (int(dataset.Rows), int(dataset.Columns))
    shared = _groups((dataset.get("SharedFunctionalGroupsSequence") or [None])[0])
    each = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if each and len(each) != count:
        raise InputError(
            f"{file} names {count} frames and describes {len(each)}, so frames are missing; export it again."
        )
    frames = []
    whole = partial(_cached, dataset)
    for i in range(count):
        groups = {**_tags(dataset), **shared, **(_groups(each[i]) if each else {})}
        frames.append(Frame(
            file, shape, partial(lambda index: whole()[index], i),
            time_ms=number(groups, "NominalCardiacTriggerDelayTime") if each else None,
            acquired_ms=milliseconds(str(groups.get("FrameAcquisitionDateTime") or "")[8:]),
            temporal=number(groups, "TemporalPositionIndex") if each else None,
            instance=number(groups, "InStackIndex") if number(groups, "InStackIndex") is not None else float(i),
            component=_component(groups), interval_ms=number(dataset, "FrameTime"),
            **_place(groups), **_scaling(groups),
        ))  # fmt: skip
    return frames


def _cached(dataset: Any) -> np.ndarray:
    """All frames; pydicom keeps the decoded array."""
    pixels = dataset.pixel_array
    return pixels if pixels.ndim == 3 else pixels[None]


def _tags(dataset: Any) -> dict[str, Any]:
    """The entries of a data set that an image without functional groups has at the top."""
    names = (
        "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "ImageOrientationPatient", "ImagePositionPatient",
        "RescaleSlope", "RescaleIntercept", "ImageType", "ComplexImageComponent",
    )  # fmt: skip
    return {name: dataset.get(name) for name in names if name in dataset}


def _groups(item: Any) -> dict[str, Any]:
    """All entries of all functional groups of a frame, by keyword."""
    found: dict[str, Any] = {}
    for group in item or ():
        if group.VR == "SQ" and group.value:
            found.update({entry.keyword: entry.value for entry in group.value[0] if entry.VR != "SQ"})
    return found
