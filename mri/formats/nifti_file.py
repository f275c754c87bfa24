"""Images in NIfTI files (`.nii`, `.nii.gz`), with nibabel."""

import gzip
import logging
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mri.formats.checksum import sha256
from mri.formats.limits import check_size
from mri.formats.stored import Finding, ReadOptions, Stored, choose_slice, finished
from mri.geometry import Geometry
from utils.errors import InputError

NAME = "NIfTI"
GZIP = b"\x1f\x8b"
MILLISECONDS = {8: 1000.0, 16: 1.0, 24: 0.001}  # of the unit of time in xyzt_units


def recognises(path: Path) -> bool:
    if not path.is_file():
        return False
    return _magic(_head(path))


def _head(path: Path) -> bytes:
    """The first bytes of a file, unpacked; empty for a damaged gzip file."""
    with path.open("rb") as file:
        head = file.read(352)
    if head.startswith(GZIP):
        try:
            with gzip.open(path) as file:
                return file.read(352)
        except (OSError, EOFError, zlib.error):
            return head if path.name.lower().endswith(".nii.gz") else b""
    return head


def _magic(head: bytes) -> bool:
    return head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2") or head.startswith(GZIP)


def read(path: Path, options: ReadOptions) -> Stored:
    """Images of one slice. Axes are (x, y, slice, time); a pixel's row is y and its column x."""
    options.refuse(path, NAME, "key", "frames_axis", "coils_axis", "dc", "set")
    if options.kind == "kspace":
        raise InputError(f"{path} holds images ({NAME}); leave out --kind kspace.")
    try:
        import nibabel
    except ImportError:
        raise InputError(f"{path} is a {NAME} file, which needs nibabel: pip install nibabel.") from None
    damaged = InputError(f"{path} is a damaged or truncated {NAME} file; save or download it again.")
    try:
        # the suffix may be another than the content
        with path.open("rb") as file:
            packed = file.read(2) == GZIP
        with _silent(nibabel.imageglobals.logger), gzip.open(path) if packed else path.open("rb") as file:
            head = file.read(352)
            kind = nibabel.Nifti2Image if head[4:7] in (b"n+2", b"ni2") else nibabel.Nifti1Image
            if head[344:347] == b"ni1" or head[4:7] == b"ni2":
                raise InputError(f"{path} is a pair of .hdr and .img; save it as one .nii file.")
            unscaled = _unscaled(path, head, kind is nibabel.Nifti1Image)
            file.seek(0)
            image = kind.from_stream(file)
            shape = tuple(int(n) for n in image.shape)
            if len(shape) < 3 or min(shape) < 1:
                raise InputError(f"{path} has shape {shape}, which is 1 frame; give a dynamic scan of 4 axes.")
            index, layout = _selection(path, shape, options)
            read = [n for n, i in zip(shape, index, strict=True) if i == slice(None)]
            check_size(path, int(np.prod(read, dtype=object)))
            array = np.asanyarray(image.dataobj[tuple(index)])
            header = image.header
            affine, zooms, units = image.affine, header.get_zooms(), int(header["xyzt_units"])
    except InputError:
        raise
    except PermissionError:
        raise InputError(f"{path} cannot be read: permission denied; change its permissions.") from None
    except Exception:  # nibabel and zlib have an exception for each way in which a file can be broken
        raise damaged from None
    if array.dtype.names or array.dtype.kind not in "biufc":
        raise InputError(f"{path} holds RGB images; save them as greyscale.")
    array = array.transpose(2, 1, 0)[:, None]  # (x, y, time)
    milliseconds = MILLISECONDS.get(units & 56)
    stated = float(zooms[3]) if len(zooms) > 3 else 0.0
    step = stated * (milliseconds or 0.0)
    unknown = []
    if milliseconds is None and stated not in (0.0, 1.0):
        unknown = [f"the time step, {stated:g}, has no unit of time in the header, so the frame times are unknown"]
    chosen = index[2] if isinstance(index[2], int) else 0
    affine = affine.copy()
    affine[:3, 3] += chosen * affine[:3, 2]
    geometry = Geometry.from_affine(
        affine, slice_thickness_mm=float(zooms[2]) or None, frame_time_ms=step if step > 0 else None
    )
    finding = Finding(path, "", NAME, array, str(path), (*layout, *unscaled, *unknown), sha256(path))
    return finished(finding, "image", geometry=geometry)


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    """Without what nibabel would print of a damaged header, which the error says."""
    held, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = held


def _selection(path: Path, shape: tuple[int, ...], options: ReadOptions) -> tuple[list[int | slice], list[str]]:
    """The index of the slice that is read, and in words what the axes are."""
    everything = slice(None)
    stored = f"stored as {shape}"
    if options.time not in (None, "slice", "phase"):
        raise InputError(f"{path} holds images (x, y, slice, time); leave out --time {options.time}.")
    if any(n > 1 for n in shape[4:]):
        raise InputError(f"{path} has shape {shape}; a dynamic scan is (x, y, slice, time).")
    frames = shape[3] if len(shape) > 3 else 1
    rest: list[int | slice] = [0] * (len(shape) - 3)
    if options.time == "slice":
        if frames > 1:
            raise InputError(f"{path} has shape {shape}, whose fourth axis is time; leave out --time slice.")
        return [everything, everything, everything, *rest], [f"{stored}: (x, y, time), as requested"]
    if frames < 2:
        mend = "add --time slice if its third axis is time" if shape[2] > 1 else "give a dynamic scan"
        raise InputError(f"{path} has shape {shape}, where the fourth axis, time, holds 1 frame; {mend}.")
    chosen = choose_slice(f"{path} of shape {shape}", shape[2], options.slice)
    words = f", slice {chosen} of {shape[2]}" if shape[2] > 1 else ""
    return [everything, everything, chosen, everything, *rest[1:]], [f"{stored}: (x, y, slice, time){words}"]


def _unscaled(path: Path, head: bytes, first: bool) -> list[str]:
    """A sentence where the scaling slope of the header is none; nibabel applies the others."""
    little = struct.unpack("<i", head[:4])[0] in (348, 540)
    form, place = ("f", 112) if first else ("d", 176)
    slope = struct.unpack_from(("<" if little else ">") + form, head, place)[0]
    intercept = struct.unpack_from(("<" if little else ">") + form, head, place + struct.calcsize(form))[0]
    if np.isinf(slope) or (np.isfinite(slope) and slope != 0 and not np.isfinite(intercept)):
        raise InputError(f"{path} has the scaling slope {slope} and intercept {intercept}; correct its header.")
    if np.isnan(slope) or slope == 0:
        return [f"its scaling slope is {slope:g}, so its values are taken as they are"]
    return []
