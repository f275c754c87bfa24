"""One memory-mapped file of frames per set of scans, that grows frame by frame and is valid at every moment."""

import os
from pathlib import Path

import numpy as np


def append_frames(path: str | os.PathLike, frames: np.ndarray) -> None:
    """Add `frames` `(n, ...)` to the .npy file `path`, made when it is not there.

    The header, which counts the frames, is rewritten last: frames that were cut off by a kill or a full disk do not
    count, and the next call writes over them.

    Raises
    ------
    OSError
        when the disk is full; the frames of before stay readable.
    ValueError
        when the file holds frames of another type or shape.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.ascontiguousarray(frames)
    with open(path, "r+b" if path.exists() and path.stat().st_size else "w+b") as file:
        count = 0
        if os.fstat(file.fileno()).st_size:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if dtype != frames.dtype or shape[1:] != frames.shape[1:]:
                raise ValueError(f"{path} holds frames of {dtype} {shape[1:]}, not {frames.dtype} {frames.shape[1:]}")
            count = shape[0]
        else:
            _write_header(file, frames.dtype, (0, *frames.shape[1:]))
        start = file.tell()
        file.seek(start + count * frames[:1].nbytes)
        file.truncate()
        file.write(frames.tobytes())
        file.flush()
        file.seek(0)
        _write_header(file, frames.dtype, (count + len(frames), *frames.shape[1:]))
        # numpy leaves room in the header for the count to grow; without it the frames would be overwritten
        assert file.tell() == start


def open_frames(path: str | os.PathLike) -> np.ndarray:
    """The frames of `path`, memory-mapped for reading: whoever takes some reads those alone."""
    return np.load(path, mmap_mode="r")


def _write_header(file, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)
