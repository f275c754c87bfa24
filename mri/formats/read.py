"""One door for all formats: `load_scan`."""

import os
from pathlib import Path

from mri.formats import array_scan
from mri.formats.cfl import files_of
from mri.formats.detect import reader_of
from mri.formats.stored import ReadOptions, Stored
from utils.errors import InputError


def load_scan(
    path: str | os.PathLike,
    key: str | None = None,
    kind: str | None = None,
    frames_axis: int | None = None,
    dc: str = "center",
    coils_axis: int | None = None,
    *,
    time: str | None = None,
    slice: int | None = None,
    set: int | None = None,
) -> Stored:
    """Read images or k-space of a dynamic scan.

    Parameters
    ----------
    path
        File, or folder of a DICOM series. The format is found from the content (`mri.formats.detect`).
    key
        Variable in the file. Default: the one array named as k-space, else the only numeric array of 3 or 4 axes, else
        the one with a usual name. A `.npy` file has no names; there 'image' or 'kspace' says what it holds. Of a
        DICOM folder with several series: the series number.
    kind
        'image' or 'kspace'. Default: by the format or the variable's name, else by its values (`looks_like_kspace`).
    frames_axis, coils_axis
        Axes in the file's array, negative from the end. Default: by the format, or found, see
        `mri.formats.layout.axes_of_scan`. With one of them an HDF5 file is read as plain arrays.
    dc
        Where k-space has its zero frequency: 'center' (index n//2) or 'corner' (index 0).
    time
        'phase', 'repetition', 'contrast', 'set' or 'slice': what is taken as time. Default: found.
    slice, set
        Which one, counting from 0, where a file holds several.

    Raises
    ------
    InputError
        When the file cannot be read, or what it holds is no scan of 2 or more frames, or the arguments do not fit it.
    """
    options = ReadOptions(key, kind, frames_axis, dc, coils_axis, time, slice, set)
    path = Path(path)
    reader = reader_of(path)
    by_hand = frames_axis is not None or coils_axis is not None
    before = _stamps(path)
    try:
        if reader is None or (by_hand and getattr(reader, "ARRAYS", False)):
            return array_scan.read(path, options)
        return reader.read(path, options)
    finally:
        if _stamps(path) != before:  # and whatever was read, or said to be wrong with it, is of neither version
            raise InputError(f"{path} changed while it was being read; wait until it is complete, and start again.")


def _stamps(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of the files that a path means."""
    files = sorted(path.iterdir()) if path.is_dir() else list(files_of(path) or [path])
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
