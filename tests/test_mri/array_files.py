"""Files of plain arrays: written, read as one coil, refused."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from mri import formats
from mri.formats import Stored
from tests.refusals import refusal as refused

SUFFIXES = (".mat", ".npy", ".npz", ".h5", ".hdf5")


def save_mat73(path: Path, **variables: np.ndarray) -> None:
    """As MATLAB's `save -v7.3`: 512 bytes of text, reversed axes, complex as pairs of real and imag."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in variables.items():
            value = array.T
            if np.iscomplexobj(array):
                part = array.real.dtype
                value = np.zeros(array.T.shape, [("real", part), ("imag", part)])
                value["real"], value["imag"] = array.T.real, array.T.imag
            file[name] = value.astype(np.uint8) if array.dtype == bool else value
            kind = {"b": "logical", "c": array.real.dtype.name}.get(array.dtype.kind, array.dtype.name)
            file[name].attrs["MATLAB_class"] = np.bytes_(kind.replace("float32", "single"))
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file")


def load_scan(path: Path, **options) -> Stored:
    """A scan of one coil, its data without the coil axis."""
    stored = formats.load_scan(path, **options)
    assert stored.data.shape[1] == 1
    return replace(stored, data=stored.data[:, 0])


refusal = partial(refused, load=load_scan)
