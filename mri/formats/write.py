"""Writing one array to a file, whole or not at all."""

import os
from pathlib import Path

import h5py
import numpy as np
import scipy.io
import torch

from mri.formats.arrays import check_suffix
from utils.errors import InputError
from utils.files import atomic_path, refuse_existing


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
    check_suffix(path)
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
                    np.savez_compressed(temporary, allow_pickle=False, **{key: array})
                case _:
                    with h5py.File(temporary, "w") as file:
                        file[key] = array
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path} cannot be written ({reason}); choose another path.") from None
