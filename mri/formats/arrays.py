"""Arrays in `.mat`, `.npy`, `.npz` and `.h5` files, by name.

MATLAB v7.3 files are HDF5 with reversed axes; an HDF5 variable is turned back only where it carries the attribute
`MATLAB_class`. Nothing is ever unpickled. Whatever is wrong with a file is an `InputError` of one sentence.
"""

import hashlib
import os
import warnings
from pathlib import Path

import h5py
import numpy as np
import scipy.io

from utils.errors import InputError

SUFFIXES = (".mat", ".npy", ".npz", ".h5", ".hdf5")
IMAGE_NAMES = ("image", "img", "recon")
KSPACE_NAMES = ("kspace", "ksp")
SCAN_NAMES = (*IMAGE_NAMES, "images", *KSPACE_NAMES, "data", "cine", "seq")
MASK_NAMES = ("mask", "masks", "sampling", "samp")
COMPLEX_FIELDS = (("real", "imag"), ("re", "im"), ("r", "i"))


def read_arrays(path: Path, key: str | None, nameless: tuple[str, ...]) -> tuple[dict[str, np.ndarray], str]:
    """Every numeric array in the file, by name, and the format in words.

    `nameless` are the keys that a format without names may be given.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file ({', '.join(SUFFIXES)}).")
    check_suffix(path)
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); save or download it again.")
    try:
        match path.suffix.lower():
            case ".npy":
                name = key if key in nameless else path.stem
                variables, format_name = {name: np.load(path, allow_pickle=False)}, "NumPy array"
            case ".npz":
                # NumPy leaves a file open that it opened itself and found to be no archive.
                with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                    variables, format_name = {name: archive[name] for name in archive.files}, "NumPy archive"
            case ".mat" if not h5py.is_hdf5(path):
                variables, format_name = _read_mat5(path), "MATLAB v4 to v7"
            case _:
                variables, format_name = _read_hdf5(path), "HDF5"
                format_name = "MATLAB v7.3" if path.suffix.lower() == ".mat" else format_name
    except PermissionError:
        raise InputError(f"{path} may not be read by this user; change its permissions.") from None
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
    return numeric, format_name


def check_suffix(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path} has the suffix '{path.suffix}', which is not known; use one of {', '.join(SUFFIXES)}."
        )


def _read_mat5(path: Path) -> dict[str, np.ndarray]:
    """Variables of a MATLAB file older than v7.3."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", scipy.io.matlab.MatReadWarning)  # said of a variable that is cut short
        variables = scipy.io.loadmat(path)
    return {name: value for name, value in variables.items() if not name.startswith("__")}


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    """Datasets of an HDF5 file, also those in groups ('group/name'), complex where stored as pairs."""
    variables: dict[str, np.ndarray] = {}

    def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
        # MATLAB keeps the parts of cells and structures under #refs#, and marks text by its class.
        is_text = item.attrs.get("MATLAB_class") == b"char"
        if not isinstance(item, h5py.Dataset) or name.startswith("#") or is_text:
            return
        array = np.asarray(item[()])
        if array.dtype.names in COMPLEX_FIELDS:
            real, imag = (array[field] for field in array.dtype.names)
            array = (real + 1j * imag).astype(np.result_type(real.dtype, np.complex64))
        variables[name] = array.T if "MATLAB_class" in item.attrs else array

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return variables


def choose_array(
    path: Path, variables: dict[str, np.ndarray], key: str | None, names: tuple[str, ...], least_axes: int
) -> str:
    """The name of the variable that is meant."""
    listing = ", ".join(f"{name} {value.shape}" for name, value in variables.items())
    flag = "--mask_key" if names is MASK_NAMES else "--key"
    if key is not None:
        if key not in variables:
            raise InputError(f"{path} has no numeric variable '{key}'; choose with {flag} from {listing}.")
        return key
    candidates = [name for name, value in variables.items() if np.squeeze(value).ndim >= least_axes]
    measured = [name for name in candidates if names is SCAN_NAMES and name.split("/")[-1].lower() in KSPACE_NAMES]
    if len(measured) == 1:  # images, maps and noise beside k-space belong to it
        return measured[0]
    if not candidates and len(variables) == 1:  # the checks that follow say what is wrong with it
        candidates = list(variables)
    usual = [name for name in candidates if name.split("/")[-1].lower() in names]
    for choice in (candidates, usual):
        if len(choice) == 1:
            return choice[0]
    if not candidates:
        raise InputError(f"{path} holds no array of {least_axes} axes ({listing}); give a file that does.")
    raise InputError(f"{path} holds several arrays that could be meant ({listing}); name one with {flag}.")


def sha256(path: str | os.PathLike) -> str:
    """Checksum of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
