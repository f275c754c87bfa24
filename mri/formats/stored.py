"""A scan as a file holds it: k-space of one or several coils, or images to simulate a scan from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mri.formats.layout import dc_to_centre, looks_like_kspace
from mri.geometry import Geometry
from utils.errors import InputError

SMALLEST, MOST_COILS = 8, 128  # pixels, which low rank needs
Kind = Literal["magnitude", "complex", "kspace"]
TIMES = ("phase", "repetition", "contrast", "set", "slice")  # what may be taken as time


class SeveralSlices(InputError):
    """A file holds several slices and none is chosen."""

    def __init__(self, where: str, slices: Sequence[int]) -> None:
        listed = ", ".join(map(str, slices))
        super().__init__(f"{where} holds {len(slices)} slices ({listed}); choose one with --slice.")
        self.slices = tuple(slices)


@dataclass(frozen=True)
class ReadOptions:
    """What the user says about a file; None where the file is to say it. See `mri.formats.read.load_scan`."""

    key: str | None = None
    kind: str | None = None
    frames_axis: int | None = None
    dc: str = "center"
    coils_axis: int | None = None
    time: str | None = None
    slice: int | None = None
    set: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in (None, "image", "kspace"):
            raise InputError(f"kind '{self.kind}' is unknown; --kind is image or kspace.")
        if self.dc not in ("center", "corner"):
            raise InputError(f"dc '{self.dc}' is unknown; --dc is center or corner.")
        if self.time not in (None, *TIMES):
            raise InputError(f"time '{self.time}' is unknown; --time is {', '.join(TIMES[:-1])} or {TIMES[-1]}.")

    def refuse(self, path: Path, format_name: str, *names: str) -> None:
        """Raise `InputError` for options that mean nothing for this format."""
        given = [f"--{name}" for name in names if getattr(self, name) not in (None, "center")]
        if given:
            raise InputError(f"{path} is a {format_name} file, where {', '.join(given)} does not apply; omit it.")


@dataclass(frozen=True)
class Stored:
    """A scan as found in a file.

    Attributes
    ----------
    data
        complex64 `(frames, coils, height, width)`; one coil for images and combined k-space, whose DC is at
        `(height//2, width//2)`.
    kind
        `kspace`, or `magnitude` or `complex` images.
    key
        name of the variable.
    found
        what was found, one sentence for a person.
    details
        further sentences: how the array is laid out, and what lies beside it.
    noise
        complex64 `(coils, n)` measured without signal, scaled to the bandwidth of the imaging samples, or None.
    image
        complex64 `(frames, height, width)` from a variable `image` beside k-space: the truth of a simulated scan.
    own_mask
        name of a variable beside the scan that may be its sampling mask.
    mask
        boolean `(frames, height, width)` where the file says what was measured; None: found from the zeros.
    averages
        `(frames, height, width)`: how often a sample was measured; None for once.
    oversampling
        factor by which the readout, the last axis, is oversampled.
    phase_oversampling
        factor by which the field of view along the height exceeds the prescribed one.
    real_time
        whether the frames follow each other in time and are not the phases of one heartbeat.
    header_file
        of DICOM images: the file of the first that was read.
    """

    data: torch.Tensor
    kind: Kind
    path: Path
    key: str
    format: str
    found: str
    sha256: str
    details: tuple[str, ...] = ()
    noise: torch.Tensor | None = None
    image: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    own_mask: str | None = None
    averages: torch.Tensor | None = None
    oversampling: float = 1.0
    phase_oversampling: float = 1.0
    geometry: Geometry = field(default_factory=Geometry)
    real_time: bool = False
    header_file: str = ""

    def __str__(self) -> str:
        return "\n".join((self.found, *self.details))


@dataclass(frozen=True)
class Finding:
    """What a reader found, before its values are checked.

    Attributes
    ----------
    array
        `(frames, coils, height, width)`, of any numeric type.
    where
        names the file and the variable in an error.
    layout
        which axis or counter is what, for a person.
    """

    path: Path
    key: str
    format: str
    array: np.ndarray
    where: str
    layout: tuple[str, ...]
    sha256: str


def finished(finding: Finding, kind: str | None, dc: str = "center", guess: str = "", **more: Any) -> Stored:
    """The checked scan of what a reader found.

    Parameters
    ----------
    kind
        'image' or 'kspace'; None to find it from the values.
    dc
        where k-space has its zero frequency.
    guess
        how the kind was guessed, in brackets after it.
    more
        other attributes of `Stored`; `details` are put after the layout.

    Raises
    ------
    InputError
        for values that are no scan of this kind.
    """
    array, where = finding.array, finding.where
    if len(array) < 2:
        raise InputError(f"{where} holds 1 frame; give a scan of at least 2 frames.")
    if min(array.shape[2:]) < SMALLEST or array.shape[1] > MOST_COILS:
        raise InputError(
            f"{where} was interpreted as {len(array)} frames of {array.shape[1]} coils, {array.shape[2]} x "
            f"{array.shape[3]}, which is not a valid scan; name its axes with --frames_axis and --coils_axis."
        )
    data = as_complex64(where, array, kind)
    kind = kind or ("kspace" if np.iscomplexobj(array) and looks_like_kspace(data) else "image")
    if kind == "kspace":
        data = dc_to_centre(where, data, dc)
    elif dc == "corner":
        raise InputError(f"{where} holds images; leave out --dc corner, or add --kind kspace.")
    elif data.shape[1] > 1:
        raise InputError(f"{where} holds images of several coils; give k-space, or add --kind kspace if this is it.")
    if kind == "kspace" and data.real.any() and not data.imag.any():
        raise InputError(
            f"{finding.path} holds k-space whose imaginary part is zero everywhere, but k-space is complex; export its "
            "real and imaginary parts (if these are images: --kind image)."
        )
    full_kind: Kind = "kspace" if kind == "kspace" else "complex" if data.imag.any() else "magnitude"
    in_words = "k-space" if kind == "kspace" else f"a {full_kind} image"
    frames, coils, height, width = data.shape
    several = f"{coils} coils, " if coils > 1 else ""
    variable = f"variable '{finding.key}' is {in_words}" if finding.key else in_words
    found = f"{finding.path} ({finding.format}): {variable}{guess}, {frames} frames of {several}{height} x {width}"
    range_of_values = f"magnitude {data.abs().min():.4g} to {data.abs().max():.4g}"
    first, *rest = finding.layout
    details = (f"{first}; {range_of_values}", *rest, *more.pop("details", ()))
    where_and_when = str(more.get("geometry", ""))
    details += (where_and_when,) if where_and_when else ()
    return Stored(
        data, full_kind, finding.path, finding.key, finding.format, found, finding.sha256, tuple(details), **more
    )


def as_complex64(where: str, array: np.ndarray, kind: str | None) -> torch.Tensor:
    """The values of `(frames, coils, height, width)`, checked to be a scan of this kind (None: of any)."""
    dtype = array.dtype
    if kind == "kspace" and not np.iscomplexobj(array):
        raise InputError(
            f"{where} is real-valued ({dtype}), but k-space is complex; export its real and imaginary parts (if these "
            "are images: --kind image)."
        )
    if dtype.kind not in "iufc":
        raise InputError(f"{where} has dtype {dtype}, like a mask; save the scan as numbers (float32).")
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite and is counted
        data = np.require(array, np.complex64, ("C", "W"))
    finite = np.isfinite(data)
    if not finite.all():
        bad = [int(i) for i in np.flatnonzero(~finite.all(axis=(0, 2, 3)))]
        count = data.size - int(finite.sum())
        values = f"{count} value{'s that are' if count > 1 else ' that is'} NaN or infinite"
        if data.shape[1] > 1 and len(bad) < data.shape[1]:
            raise InputError(
                f"{where} holds {values}, all in coil{'s' if len(bad) > 1 else ''} {', '.join(map(str, bad))} "
                "(counting from 0); leave that coil out or repair it."
            )
        raise InputError(f"{where} holds {values}; repair or replace {'them' if count > 1 else 'it'}.")
    if not data.any():
        raise InputError(f"{where} is zero everywhere; save the scan again.")
    return torch.from_numpy(data)


def choose_slice(where: str, count: int, asked: int | None) -> int:
    """The index of the slice that is meant, counting from 0; several are never chosen from silently."""
    if asked is None:
        if count > 1:
            raise SeveralSlices(where, range(count))
        return 0
    if not 0 <= asked < count:
        raise InputError(f"{where} has no slice {asked}; --slice counts from 0 and is at most {count - 1}.")
    return asked
