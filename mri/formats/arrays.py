"""Arrays in `.mat`, `.npy`, `.npz` and `.h5` files, by name.

The content says which of these a file is. MATLAB v7.3 files are HDF5 with reversed axes; an HDF5 variable is turned
back only where it carries the attribute `MATLAB_class`. Fields of MATLAB's structures are variables of their own, such
as `data.kspace`. Nothing is ever unpickled. Whatever is wrong with a file is an
`InputError` of one sentence.
"""

import warnings
import zipfile
from pathlib import Path
from typing import IO

import h5py
import numpy as np
import scipy.io

from mri.formats.hdf5 import datasets, opened, values
from mri.formats.limits import check_size
from utils.errors import InputError

SUFFIXES = (".mat", ".npy", ".npz", ".h5", ".hdf5")
IMAGE_NAMES = ("image", "img", "recon")
KSPACE_NAMES = ("kspace", "ksp")
SCAN_NAMES = (*IMAGE_NAMES, "images", *KSPACE_NAMES, "data", "cine", "seq")
MASK_NAMES = ("mask", "masks", "sampling", "samp")
PARTS = (("_real", "_imag"), ("_re", "_im"), ("_r", "_i"), ("Real", "Imag"))  # ends of the names of a pair


def read_arrays(path: Path, key: str | None, nameless: tuple[str, ...]) -> tuple[dict[str, np.ndarray], str]:
    """Every numeric array in the file, by name, and the format in words.

    `nameless` are the keys that a format without names may be given.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file ({', '.join(SUFFIXES)}).")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); save or download it again.")
    format_name = format_of(path)
    try:
        match format_name:
            case "NumPy array":
                variables = {key if key in nameless and key is not None else path.stem: _read_npy(path)}
            case "NumPy archive":
                variables = _read_npz(path)
            case "MATLAB v4 to v7":
                variables = _read_mat5(path)
            case "MATLAB v7.3":  # groups are structures
                variables = {name.replace("/", "."): value for name, value in _read_hdf5(path).items()}
            case _:
                variables = _read_hdf5(path)
    except PermissionError:
        raise InputError(f"{path} cannot be read: permission denied; change its permissions.") from None
    except InputError:
        raise
    except Exception:  # each reader has its own exception for each way in which a file can be broken
        raise InputError(
            f"{path} cannot be read as a {path.suffix} file of numbers: it is damaged, cut short, of another "
            "format or holds Python objects; save or download it again."
        ) from None
    numeric = {
        name: value
        for name, value in variables.items()
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc" and value.size
    }
    if not numeric:
        raise InputError(f"{path} holds no numeric array; save the scan in it as one array.")
    return _parts_joined(numeric), format_name


def format_of(path: Path) -> str:
    """The format of a file of arrays by its first bytes, else by its suffix.

    Raises
    ------
    InputError
        for an unknown suffix of a file whose content is not known either.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"\x93NUMPY"):
        return "NumPy array"
    if head.startswith(b"PK\x03\x04"):
        return "NumPy archive"
    if h5py.is_hdf5(path):
        return "MATLAB v7.3" if path.suffix.lower() == ".mat" or head.startswith(b"MATLAB 7.3") else "HDF5"
    if head.startswith(b"MATLAB 5.0"):
        return "MATLAB v4 to v7"
    check_suffix(path)
    by_suffix = {".npy": "NumPy array", ".npz": "NumPy archive", ".mat": "MATLAB v4 to v7"}
    return by_suffix.get(path.suffix.lower(), "HDF5")


def check_suffix(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path} has an unsupported format (docs/formats.md); array files are {', '.join(SUFFIXES)}."
        )


def _read_npy(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        check_size(path, _npy_values(file))
    return np.load(path, allow_pickle=False)


def _npy_values(file: IO[bytes]) -> int:
    """How many values an open NumPy file has, by its header."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return int(np.prod(read_header(file)[0], dtype=object))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        count = 0
        for name in archive.namelist():
            with archive.open(name) as file:
                count += _npy_values(file)
        check_size(path, count)
    # NumPy leaves a file open that it opened itself and found to be no archive.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read_mat5(path: Path) -> dict[str, np.ndarray]:
    """Variables of a MATLAB file older than v7.3."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", scipy.io.matlab.MatReadWarning)  # said of a variable that is cut short
        check_size(path, sum(int(np.prod(shape, dtype=object)) for _, shape, _ in scipy.io.whosmat(path)))
        variables = scipy.io.loadmat(path)
    found: dict[str, np.ndarray] = {}
    for name, value in variables.items():
        if not name.startswith("__"):
            found |= _with_fields(name, value)
    return found


def _with_fields(name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    """A variable of a MATLAB file, or the fields of a structure ('data.kspace'), also of structures in it."""
    if type(value) is not np.ndarray or not value.dtype.names or value.size != 1:
        return {name: value}
    found: dict[str, np.ndarray] = {}
    for field in value.dtype.names:
        found |= _with_fields(f"{name}.{field}", value.flat[0][field])
    return found


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    """Datasets of an HDF5 file, also those in groups ('group/name'), complex where stored as pairs."""
    with opened(path) as file:
        found, left_out = datasets(file)
        if not found and left_out:
            raise InputError(f"{path}: {'; '.join(left_out)}; copy the data into one file.")
        check_size(path, sum(dataset.size for dataset in found.values()))
        arrays = {name: values(path, dataset) for name, dataset in found.items()}
        return {name: a.T if "MATLAB_class" in found[name].attrs else a for name, a in arrays.items()}


def _parts_joined(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The variables, with pairs such as `kspace_real` and `kspace_imag` joined to one complex `kspace`."""
    joined = dict(variables)
    for name in variables:
        for real, imag in PARTS:
            base = name.removesuffix(real)
            other = variables.get(base + imag)
            if not name.endswith(real) or not base or base in variables or other is None:
                continue
            if other.shape == variables[name].shape and not np.iscomplexobj(other):
                joined.pop(name)
                joined.pop(base + imag)
                with np.errstate(invalid="ignore"):  # values that are not finite are refused later
                    joined[base] = (variables[name] + 1j * other).astype(np.result_type(other.dtype, np.complex64))
    return joined


def last_part(name: str) -> str:
    """The name of a variable without its group or structure, in lower case."""
    return name.replace("/", ".").split(".")[-1].lower()


def choose_array(
    path: Path, variables: dict[str, np.ndarray], key: str | None, names: tuple[str, ...], least_axes: int
) -> str:
    """The name of the variable that is meant."""
    listing = ", ".join(f"{name} {value.shape}" for name, value in variables.items())
    flag = "--mask_key" if names is MASK_NAMES else "--key"
    if key is not None:
        same = [name for name in variables if name.replace("/", ".") == key.replace("/", ".")]
        if not same:
            raise InputError(f"{path} has no numeric variable '{key}'; choose with {flag} from {listing}.")
        return key if key in same else same[0]
    candidates = [name for name, value in variables.items() if np.squeeze(value).ndim >= least_axes]
    if names is MASK_NAMES:  # CMRxRecon's masks are mask04, mask08, …
        names = (*MASK_NAMES, *(n.lower() for n in candidates if n.lower().startswith("mask")))
    measured = [name for name in candidates if names is SCAN_NAMES and last_part(name) in KSPACE_NAMES]
    if len(measured) == 1:  # images, maps and noise beside k-space belong to it
        return measured[0]
    if not candidates and len(variables) == 1:  # the checks that follow say what is wrong with it
        candidates = list(variables)
    usual = [name for name in candidates if last_part(name) in names]
    for choice in (candidates, usual):
        if len(choice) == 1:
            return choice[0]
    if not candidates:
        scans = [value for name, value in variables.items() if last_part(name) in (*SCAN_NAMES, *KSPACE_NAMES)]
        if names is SCAN_NAMES and any(value.ndim >= least_axes for value in scans):
            raise InputError(f"{path} holds a single frame ({listing}); give a series of two frames or more.")
        raise InputError(f"{path} holds no array of {least_axes} axes ({listing}); give a file that does.")
    raise InputError(f"{path} has several candidate arrays ({listing}); choose one with {flag}.")
