"""Sampling masks in files."""

import os
from pathlib import Path

import numpy as np
import torch

from mri.formats.arrays import MASK_NAMES, choose_array, read_arrays
from mri.formats.layout import frames_first
from utils.errors import InputError


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
    variables, _ = read_arrays(path, key, ("mask",))
    key = choose_array(path, variables, key, MASK_NAMES, least_axes=2)
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
            "save it as 1 where sampled and 0 elsewhere, or select the mask variable with --mask_key."
        )
    flat = np.squeeze(stored).ndim == 2 and frames_axis is None
    mask = np.squeeze(stored) if flat else frames_first(where, stored, frames_axis)[0]
    empty = np.flatnonzero(~mask.reshape(1 if flat else len(mask), -1).any(axis=1))
    if empty.size:
        what = "no sample at all" if flat else f"no sample in frame {empty[0]} (counting from 0)"
        raise InputError(f"{where} has {what}; give every frame at least one line.")
    return torch.from_numpy(np.ascontiguousarray(mask != 0))
