"""Refusing what the memory does not hold, before it is read."""

import os
from pathlib import Path

from utils.errors import InputError

COPIES = 3  # of a scan in single precision, at once, while it is read and checked


def available_bytes() -> int:
    """Memory that is free for new arrays."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_size(path: Path, values: int, mend: str = "save one slice, or fewer frames, in a file of its own") -> None:
    """Raise `InputError` when so many complex values, as the file's header counts them, do not fit."""
    needed, free = 8 * values, available_bytes()
    if COPIES * needed > free:
        raise InputError(
            f"{path} has {needed / 2**30:.1f} GiB of complex numbers; reading it needs {COPIES} times that, but only "
            f"{free / 2**30:.1f} GiB of memory are free; {mend}."
        )
