"""Files in and out: one loader for scans, one for masks, one writer, and they say what they found.

Formats by suffix: `.mat` (MATLAB v4 to v7.3), `.npy`, `.npz`, `.h5`/`.hdf5`. MATLAB v7.3 files are HDF5 with
the axes reversed; an HDF5 variable is turned back where, and only where, it carries the attribute
`MATLAB_class`. Nothing is ever unpickled. Whatever is wrong with a file is an `InputError` of one sentence.
"""

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import scipy.io
import torch

from mri.fourier import ifft2c
from utils.errors import InputError
from utils.files import atomic_path, refuse_existing

SUFFIXES = (".mat", ".npy", ".npz", ".h5", ".hdf5")
IMAGE_NAMES = ("image", "img", "recon")
SCAN_NAMES = (*IMAGE_NAMES, "images", "kspace", "ksp", "data", "cine", "seq")
MASK_NAMES = ("mask", "masks", "sampling", "samp")
COMPLEX_FIELDS = (("real", "imag"), ("re", "im"), ("r", "i"))

Kind = Literal["magnitude", "complex", "kspace"]


@dataclass(frozen=True)
class Scan:
    """A scan as found in a file."""

    data: torch.Tensor  # complex64 (frames, height, width); k-space has DC at (height//2, width//2)
    kind: Kind
    path: Path
    key: str  # name of the variable
    frames_axis: int  # in the file's array
    found: str  # what was found, one sentence for a person
    sha256: str  # of the file


def load_scan(
    path: str | os.PathLike,
    key: str | None = None,
    kind: str | None = None,
    frames_axis: int | None = None,
    dc: str = "center",
) -> Scan:
    """Read images or k-space of a dynamic scan.

    Parameters
    ----------
    path
        File; its suffix is its format.
    key
        Variable in the file. Default: the only numeric array of 3 axes, else the one with a usual name.
        A `.npy` file has no names; there 'image' or 'kspace' says what it holds.
    kind
        'image' or 'kspace'. Default: by the variable's name, else by its values (`looks_like_kspace`).
    frames_axis
        Axis of the frames in the file's array, negative from the end. Default: the third axis where two are
        equal, else the smallest.
    dc
        Where a k-space has its zero frequency: 'center' (index n//2) or 'corner' (index 0).

    Returns
    -------
    Scan
        Its data are complex64 `(frames, height, width)` in the file's units; axes of length 1 are dropped.

    Raises
    ------
    InputError
        When the file cannot be read, or what it holds is no scan of 2 or more frames of even height and
        width, or what was asked for does not fit.
    """
    if kind not in (None, "image", "kspace"):
        raise InputError(f"kind '{kind}' is unknown; --kind is image or kspace.")
    if dc not in ("center", "corner"):
        raise InputError(f"dc '{dc}' is unknown; --dc is center or corner.")
    path = Path(path)
    variables, format_name = _read(path, key, ("image", "kspace"))
    key = _choose(path, variables, key, SCAN_NAMES, least_axes=3)
    stored = variables[key]
    where = f"{path}, variable '{key}'"
    _refuse_coils_and_single_frames(where, stored.shape)
    array, axis, axis_guessed = _frames_first(where, stored, frames_axis)
    asked, kind = kind, kind or _kind_by_name(key)
    data = _as_complex64(where, array, kind)
    kind = kind or ("kspace" if np.iscomplexobj(array) and looks_like_kspace(data) else "image")
    if kind == "kspace":
        data = _dc_to_centre(where, data, dc)
    elif dc == "corner":
        raise InputError(f"{where} holds images; leave out --dc corner, or add --kind kspace.")
    full_kind: Kind = "kspace" if kind == "kspace" else "complex" if data.imag.any() else "magnitude"
    in_words = "k-space" if kind == "kspace" else f"a {full_kind} image"
    frames, height, width = data.shape
    found = (
        f"{path} ({format_name}): variable '{key}', {stored.dtype} {stored.shape}, is {in_words}"
        f"{_how_kind_is_known(key, asked, array)}, {frames} frames of {height} x {width} "
        f"along axis {axis}{' (guessed; --frames_axis names another)' if axis_guessed else ''}, "
        f"magnitude {data.abs().min():.4g} to {data.abs().max():.4g}"
    )
    return Scan(data, full_kind, path, key, axis, found, sha256(path))


def load_mask(
    path: str | os.PathLike, key: str | None = None, frames_axis: int | None = None
) -> torch.Tensor:
    """Read a sampling mask.

    Parameters
    ----------
    path, key
        As for `load_scan`.
    frames_axis
        Axis of the frames in the file's array. Default, for 3 axes: as for `load_scan`; 2 axes stay as they are,
        for `mri.masks.fit_mask` to tell lines per frame from one mask for all frames.

    Returns
    -------
    bool of 3 axes `(frames, height, width)`, or of 2, True where sampled.

    Raises
    ------
    InputError
        When the file cannot be read, or its values are not 0 and 1 (or 0 and 255), or a frame has no sample.
    """
    path = Path(path)
    variables, _ = _read(path, key, ("mask",))
    key = _choose(path, variables, key, MASK_NAMES, least_axes=2)
    stored, where = variables[key], f"{path}, variable '{key}'"
    if np.squeeze(stored).ndim not in (2, 3):
        raise InputError(
            f"{where} has shape {stored.shape}; a mask is (frames, height, width), (frames, lines) or "
            "(height, width), so save it as one of these."
        )
    values = np.unique(stored)
    if not (np.isin(values, (0, 1)).all() or np.isin(values, (0, 255)).all()):
        few = ", ".join(f"{value:g}" for value in values[:4]) if np.isrealobj(values) else "complex ones"
        raise InputError(
            f"{where} has values other than 0 and 1 ({few}{', …' if values.size > 4 else ''}); "
            "save it as 1 where sampled and 0 elsewhere, or name the mask with the key of its variable."
        )
    flat = np.squeeze(stored).ndim == 2 and frames_axis is None
    mask = np.squeeze(stored) if flat else _frames_first(where, stored, frames_axis)[0]
    empty = np.flatnonzero(~mask.reshape(1 if flat else len(mask), -1).any(axis=1))
    if empty.size:
        what = "no sample at all" if flat else f"no sample in frame {empty[0]} (counted from 0)"
        raise InputError(f"{where} has {what}; give every frame at least one line.")
    return torch.from_numpy(np.ascontiguousarray(mask != 0))


def save_array(
    path: str | os.PathLike, array: np.ndarray | torch.Tensor, key: str = "image", overwrite: bool = False
) -> None:
    """Write one array, axes as given, in the format of the suffix.

    Parameters
    ----------
    path
        `.mat` (v5, compressed), `.npy` (which keeps no name), `.npz`, `.h5` or `.hdf5`. It is either written
        whole or not at all.
    array
        Any shape.
    key
        Name of the variable in the file.
    overwrite
        Replace a file that is there.

    Raises
    ------
    InputError
        For an unknown suffix, a file that is there, or a place that cannot be written.
    """
    path = Path(path)
    if isinstance(array, torch.Tensor):
        array = array.numpy(force=True)
    _check_suffix(path)
    refuse_existing(path, overwrite)
    if path.suffix.lower() == ".mat" and array.nbytes >= 2**32:
        raise InputError(f"{path} would pass the 4 GB that a MATLAB v5 file can hold; write .h5 instead.")
    try:
        with atomic_path(path) as temporary:
            match path.suffix.lower():
                case ".mat":
                    scipy.io.savemat(temporary, {key: array}, do_compression=True)
                case ".npy":
                    np.save(temporary, array, allow_pickle=False)
                case ".npz":
                    np.savez_compressed(temporary, **{key: array})
                case _:
                    with h5py.File(temporary, "w") as file:
                        file[key] = array
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path} cannot be written ({reason}); give another place.") from None


# ----------------------------------------------------------------------------------------------- reading


def _read(path: Path, key: str | None, nameless: tuple[str, ...]) -> tuple[dict[str, np.ndarray], str]:
    """Every numeric array in the file, by name, and the format in words.

    `nameless` are the keys that a format without names may be given.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file ({', '.join(SUFFIXES)}).")
    _check_suffix(path)
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


def _check_suffix(path: Path) -> None:
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


def _choose(
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


# --------------------------------------------------------------------------------------------- what it is


def _refuse_coils_and_single_frames(where: str, shape: tuple[int, ...]) -> None:
    axes = sum(length > 1 for length in shape)
    if axes > 3:
        parts = "join real and imaginary part to complex numbers, or " if shape[-1] == 2 else ""
        raise InputError(
            f"{where} has {axes} axes {shape}; {parts}combine the coils first and save (frames, height, width)."
        )
    if axes < 3:
        raise InputError(
            f"{where} has shape {shape}, which is 1 frame; give a scan of at least 2 frames as one 3-D array."
        )


def _frames_first(where: str, array: np.ndarray, axis: int | None) -> tuple[np.ndarray, int, bool]:
    """Squeeze, and move the frames to the front; also their axis in `array` and whether it was guessed."""
    kept = [i for i, length in enumerate(array.shape) if length > 1]
    guessed = axis is None
    if axis is None:
        lengths = [array.shape[i] for i in kept]
        singles = [i for i in kept if lengths.count(array.shape[i]) == 1]
        if not singles:
            raise InputError(f"{where} has equal axes {array.shape}; name the frames' by --frames_axis.")
        axis = min(singles, key=lambda i: array.shape[i])
    elif not -array.ndim <= axis < array.ndim or axis % array.ndim not in kept:
        raise InputError(
            f"{where} of shape {array.shape} has no axis {axis} of 2 or more frames; "
            f"--frames_axis must be one of {', '.join(map(str, kept))}."
        )
    axis %= array.ndim
    return np.moveaxis(np.squeeze(array), kept.index(axis), 0), axis, guessed


def _as_complex64(where: str, array: np.ndarray, kind: str | None) -> torch.Tensor:
    """The values, once they are fit to be a scan of this kind (None: of any)."""
    if kind == "kspace" and not np.iscomplexobj(array):
        raise InputError(f"{where} is real-valued ({array.dtype}), but k-space is complex; use --kind image.")
    if array.dtype.kind not in "fc":
        raise InputError(f"{where} has dtype {array.dtype}; save it as float32 (or complex64).")
    if array.shape[1] % 2 or array.shape[2] % 2:
        raise InputError(
            f"{where} has frames of {array.shape[1]} x {array.shape[2]}; crop or pad them to even sizes "
            "(or name the frames by --frames_axis)."
        )
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite and is counted
        data = np.ascontiguousarray(array, dtype=np.complex64)
    bad = data.size - int(np.isfinite(data).sum())
    if bad:
        raise InputError(f"{where} holds {bad} values that are NaN or infinite; repair or replace them.")
    if not data.any():
        raise InputError(f"{where} is zero everywhere; save the scan again.")
    return torch.from_numpy(data)


def _kind_by_name(key: str) -> str | None:
    """'kspace' or 'image' where the variable's name says so."""
    name = key.split("/")[-1].lower()
    return "kspace" if "ksp" in name else "image" if name in IMAGE_NAMES else None


def _how_kind_is_known(key: str, asked: str | None, array: np.ndarray) -> str:
    """Nothing where the kind is certain, else where the guess comes from and how to change it."""
    if asked or not np.iscomplexobj(array):
        return ""
    source = "name" if _kind_by_name(key) else "values"
    return f" (guessed from its {source}; --kind image|kspace changes it)"


def looks_like_kspace(data: torch.Tensor) -> bool:
    """Guess whether complex values are k-space rather than images.

    Under-sampling leaves whole lines of exact zeros between others that are not: an image, even one with its
    background set to zero, does not have four separate groups of empty rows or columns. Otherwise k-space
    is far more peaked than its image, so the kurtosis N Σ|x|⁴ / (Σ|x|²)², as the median over frames, is
    compared with that of the Fourier transform.

    Parameters
    ----------
    data
        complex `(frames, height, width)`, not all zero; where DC is does not matter.
    """
    for axis in (-1, -2):
        empty = ~(data != 0).any(dim=axis)  # (frames, lines)
        starts = empty[:, 1:] & ~empty[:, :-1]
        if (starts.sum(1) >= 4).any():
            return True

    def peakedness(values: torch.Tensor) -> torch.Tensor:
        power = values.abs().double().square().flatten(1)
        power = power / power.amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        return (power.square().mean(1) / power.mean(1).square().clamp_min(1e-300)).median()

    return bool(peakedness(data) > peakedness(ifft2c(data)))


def _object_in_the_middle(kspace: torch.Tensor) -> torch.Tensor:
    """The k-space, or that of its image rolled by half the field of view, whichever has the object in the middle.

    `fft2(image)` without shifts and `ifftshift(fft2c(image))` both have DC in the corner, and differ by that roll.
    """
    height, width = kspace.shape[-2:]
    # a roll by half the field of view flips the sign of every other sample, and leaves zeros, which say what was
    # not measured, exactly zero
    odd = (torch.arange(height)[:, None] - height // 2 + torch.arange(width) - width // 2) % 2 == 1
    rolled = torch.where(odd, -kspace, kspace)
    middle = (slice(height // 4, height - height // 4), slice(width // 4, width - width // 4))
    energy = [ifft2c(k.sum(0)).abs().square()[middle].sum() for k in (kspace, rolled)]
    return rolled if energy[1] > energy[0] else kspace


def _dc_to_centre(where: str, kspace: torch.Tensor, dc: str) -> torch.Tensor:
    """Shift a k-space whose DC is said to be in the corner; refuse one that contradicts what is said.

    The energy, averaged over frames, of the middle quarter of each axis is compared with that of the four
    corners. Even a k-space without its very centre has most of its energy near it.
    """
    if dc == "corner":
        kspace = _object_in_the_middle(torch.fft.fftshift(kspace, dim=(-2, -1)))
    power = (kspace / kspace.abs().max()).abs().double().square().mean(0)

    def middle(image: torch.Tensor) -> float:
        height, width = image.shape
        rows, columns = max(1, height // 8), max(1, width // 8)
        centre = image[height // 2 - rows : height // 2 + rows, width // 2 - columns : width // 2 + columns]
        return float(centre.sum())

    # Pure noise has no preference, so only a clear one (a factor of 2) is a contradiction.
    if middle(torch.fft.fftshift(power)) > 2 * middle(power):
        place, mend = ("corner", "add") if dc == "center" else ("centre", "leave out")
        raise InputError(f"{where} has its zero frequency in the {place} of k-space; {mend} --dc corner.")
    return kspace
