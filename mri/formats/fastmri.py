"""HDF5 files as fastMRI has them: a dataset `kspace` (slice, coil, …, …) beside a reconstruction or a header."""

from pathlib import Path

import h5py
import numpy as np

from mri.formats import mrd_header
from mri.formats.checksum import sha256
from mri.formats.hdf5 import datasets, opened, values
from mri.formats.mrd_header import Header
from mri.formats.stored import Finding, ReadOptions, Stored, choose_slice, finished
from mri.geometry import Geometry
from utils.errors import InputError

NAME = "fastMRI-like HDF5"
ARRAYS = True  # named axes are a reason to read it as plain arrays
BESIDE = ("ismrmrd_header", "reconstruction_rss", "reconstruction_esc")


def recognises(path: Path) -> bool:
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    try:
        with h5py.File(path, "r") as file:
            kspace = datasets(file)[0].get("kspace")
            return kspace is not None and kspace.ndim in (3, 4, 5, 6) and any(name in file for name in BESIDE)
    except PermissionError:
        raise
    except Exception:  # of whatever damage: who reads it as arrays says what is wrong
        return False


def read(path: Path, options: ReadOptions) -> Stored:
    """K-space of several frames. The first axis is slices, and time only with `--time slice`."""
    options.refuse(path, NAME, "frames_axis", "coils_axis", "set")
    if options.key not in (None, "kspace"):
        raise InputError(f"{path} is {NAME}; leave out --key {options.key}: its k-space is 'kspace'.")
    if options.kind == "image":
        raise InputError(f"{path} holds the k-space of {NAME}; leave out --kind image.")
    with opened(path) as file:
        dataset = datasets(file)[0]["kspace"]
        shape = dataset.shape
        pairs = dataset.dtype.names is None and dataset.dtype.kind == "f" and shape[-1] == 2
        ndim = dataset.ndim - pairs
        if ndim == 5 and options.time in (None, "phase"):
            chosen = choose_slice(f"{path}, variable 'kspace',", shape[1], options.slice)
            array, axes = values(path, dataset, (slice(None), chosen)), "(time, slice, coil, ky, kx)"
            axes += f", slice {chosen} of {shape[1]}" if shape[1] > 1 else ""
        elif ndim in (3, 4) and options.time == "slice":
            array, axes = values(path, dataset), "the first axis, slices in this format, is time as requested"
        elif options.time is None:
            raise InputError(
                f"{path}, variable 'kspace' of shape {shape}: the first axis is slices in {NAME}, not time; add --time "
                "slice if its entries are the frames of one slice."
            )
        else:
            raise InputError(f"{path}, variable 'kspace' of shape {shape} has no {options.time}; use --time slice.")
        text = _header_text(file)
    if pairs:
        array, axes = np.ascontiguousarray(array[..., 0] + 1j * array[..., 1]), f"{axes}, real and imaginary parts last"
    header = mrd_header.parse(path, text) if text else Header()
    array = array if array.ndim == 4 else array[:, None]
    layout = [f"stored as {array.dtype} {shape}: {axes}"]
    across, height, width = header.encoded_matrix[0], *array.shape[2:]
    if across == height != width:  # fastMRI has the readout along the height
        array = np.ascontiguousarray(array.swapaxes(2, 3))
        layout.append("rows and columns exchanged, so that the readout runs along a row")
        height, width = width, height
    oversampling = width / round(width / header.oversampling) if across == width else 1.0
    if oversampling > 1:
        layout.append(f"readout oversampled {oversampling:.3g} times")
    voxel = header.voxel_mm
    geometry = Geometry(voxel_mm=voxel, slice_thickness_mm=voxel[2] if voxel else None)
    finding = Finding(path, "kspace", NAME, array, f"{path}, variable 'kspace'", tuple(layout), sha256(path))
    return finished(finding, "kspace", options.dc, oversampling=oversampling, geometry=geometry)


def _header_text(file: h5py.File) -> str | bytes:
    """The text of `ismrmrd_header`, which is a string and no object."""
    if not isinstance(file.get("ismrmrd_header", getlink=True), h5py.HardLink):
        return ""
    dataset = file["ismrmrd_header"]
    is_text = isinstance(dataset, h5py.Dataset) and h5py.check_string_dtype(dataset.dtype) and dataset.shape == ()
    return dataset[()] if is_text else ""
