"""Raw data of the CMRxRecon challenges 2023 to 2025: MATLAB v7.3 files, which are HDF5."""

import re
from pathlib import Path

import h5py
import numpy as np

from mri.formats.checksum import sha256
from mri.formats.hdf5 import COMPLEX_FIELDS, datasets, opened, values
from mri.formats.stored import Finding, ReadOptions, Stored, choose_slice, finished
from utils.errors import InputError

NAME = "CMRxRecon"
ARRAYS = True  # named axes are a reason to read it as plain arrays
NAMES = re.compile(r"(kspace(_single)?_(full|sub\d+)|kus)$", re.IGNORECASE)


def recognises(path: Path) -> bool:
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    try:
        with h5py.File(path, "r") as file:
            return bool(_candidates(datasets(file)[0]))
    except (OSError, RuntimeError, KeyError):
        return False  # who reads it as arrays says what is wrong


def _candidates(found: dict[str, h5py.Dataset]) -> list[str]:
    """Variables that are CMRxRecon's k-space; the plain name `kspace` only with all five axes of its files."""
    return [
        name for name, dataset in found.items()
        if (NAMES.match(name) and dataset.ndim >= 4)
        or (name == "kspace" and dataset.ndim == 5 and dataset.dtype.names in COMPLEX_FIELDS)
    ]  # fmt: skip


def read(path: Path, options: ReadOptions) -> Stored:
    """The k-space of one slice. HDF5 has the axes (time, slice, coil, ky, kx), without coils (time, slice, ky, kx)."""
    options.refuse(path, NAME, "frames_axis", "coils_axis", "set")
    if options.kind == "image":
        raise InputError(f"{path} holds the k-space of {NAME}; leave out --kind image.")
    if options.time not in (None, "phase"):
        raise InputError(f"{path}: the first axis of {NAME} is time; leave out --time {options.time}.")
    with opened(path) as file:
        found, _ = datasets(file)
        candidates = _candidates(found)
        key = options.key or (candidates[0] if len(candidates) == 1 else "")
        if key not in candidates:
            listing = ", ".join(f"{name} {found[name].shape}" for name in candidates)
            raise InputError(f"{path} holds {listing}; choose one with --key.")
        dataset = found[key]
        pairs = dataset.dtype.names is None and dataset.dtype.kind == "f" and dataset.shape[-1] == 2
        axes = dataset.ndim - pairs
        if axes not in (4, 5):
            raise InputError(
                f"{path}, variable '{key}' has shape {dataset.shape}; {NAME} has (time, slice, coil, ky, kx)."
            )
        chosen = choose_slice(f"{path}, variable '{key}',", dataset.shape[1], options.slice)
        array = values(path, dataset, (slice(None), chosen))
        stored = f"stored as {dataset.dtype if pairs else array.dtype} {dataset.shape}"
        count = dataset.shape[1]
    if pairs:
        array = np.ascontiguousarray(array[..., 0] + 1j * array[..., 1])
        stored += ", real and imaginary part joined along the last axis"
    array = array if array.ndim == 4 else array[:, None]
    layout = f"{stored}: (time, slice, {'coil, ' if axes == 5 else ''}ky, kx)" + (
        f", slice {chosen} of {count}" if count > 1 else ""
    )
    where = f"{path}, variable '{key}'"
    return finished(Finding(path, key, NAME, array, where, (layout,), sha256(path)), "kspace", options.dc)
