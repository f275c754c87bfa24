"""Raw data of the CMRxRecon challenges 2023 to 2025: MATLAB v7.3 files, which are HDF5, or saved again as v7."""

import re
from pathlib import Path

import h5py
import numpy as np
import scipy.io

from mri.formats.arrays import read_arrays
from mri.formats.checksum import sha256
from mri.formats.hdf5 import COMPLEX_FIELDS, datasets, opened, values
from mri.formats.stored import Finding, ReadOptions, SeveralSlices, Stored, choose_slice, finished
from utils.errors import InputError

NAME = "CMRxRecon"
ARRAYS = True  # named axes are a reason to read it as plain arrays
NAMES = re.compile(r"(kspace(_single)?_(full|sub\d+)|kus)$", re.IGNORECASE)


def recognises(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                return bool(_candidates(datasets(file)[0]))
        with path.open("rb") as stream:
            if stream.read(10) != b"MATLAB 5.0":
                return False
        return any(NAMES.match(name) and len(shape) in (4, 5) for name, shape, _ in scipy.io.whosmat(path))
    except PermissionError:
        raise
    except Exception:  # of whatever damage: who reads it as arrays says what is wrong
        return False


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
    if not h5py.is_hdf5(path):
        variables, _ = read_arrays(path, options.key, ())
        key = _key(path, options, {n: v.shape for n, v in variables.items() if NAMES.match(n) and v.ndim in (4, 5)})
        whole = variables[key].T  # as HDF5 would have it
        chosen = _slice(path, key, whole.shape, whole.ndim, options)
        return _finished(path, key, whole[:, chosen], whole.shape, whole.ndim, chosen, options)
    with opened(path) as file:
        found, _ = datasets(file)
        key = _key(path, options, {name: found[name].shape for name in _candidates(found)})
        dataset = found[key]
        shape = dataset.shape
        pairs = dataset.dtype.names is None and dataset.dtype.kind == "f" and shape[-1] == 2
        axes = dataset.ndim - pairs
        chosen = _slice(path, key, shape, axes, options)
        array = values(path, dataset, (slice(None), chosen))
    if pairs:
        array = np.ascontiguousarray(array[..., 0] + 1j * array[..., 1])
    return _finished(path, key, array, shape, axes, chosen, options, pairs)


def _key(path: Path, options: ReadOptions, shapes: dict[str, tuple[int, ...]]) -> str:
    """The variable that is meant."""
    if options.key is None and len(shapes) == 1:
        return next(iter(shapes))
    if options.key not in shapes:
        listing = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise InputError(f"{path} holds {listing}; choose one with --key.")
    return options.key


def _slice(path: Path, key: str, shape: tuple[int, ...], axes: int, options: ReadOptions) -> int:
    """The slice that is meant."""
    where = f"{path}, variable '{key}'"
    if axes not in (4, 5):
        raise InputError(f"{where} has shape {shape}; {NAME} has (time, slice, coil, ky, kx).")
    try:
        return choose_slice(where + ",", shape[1], options.slice)
    except SeveralSlices:
        if axes == 5 or "_single" in key.lower():
            raise
        # files of one coil name them so; without that name nothing says that the axis is no coils
        raise InputError(
            f"{where} of shape {shape} has an axis of {shape[1]} slices or coils; choose a slice with --slice, or name "
            "the axes with --coils_axis and --frames_axis."
        ) from None


def _finished(
    path: Path, key: str, array: np.ndarray, shape: tuple[int, ...], axes: int, chosen: int, options: ReadOptions,
    pairs: bool = False,
) -> Stored:  # fmt: skip
    """The scan of one slice `(time, [coil,] ky, kx)`."""
    stored = f"stored as {array.dtype} {shape}" + (", real and imaginary parts joined along the last axis" * pairs)
    stored += f": (time, slice, {'coil, ' if axes == 5 else ''}ky, kx)"
    stored += f", slice {chosen} of {shape[1]}" if shape[1] > 1 else ""
    array = array if array.ndim == 4 else array[:, None]
    where = f"{path}, variable '{key}'"
    return finished(Finding(path, key, NAME, array, where, (stored,), sha256(path)), "kspace", options.dc)
