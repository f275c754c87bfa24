"""Files that are either whole or not there."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import InputError

UNFINISHED = ".unfinished"  # ends the temporary name of a folder


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

    The temporary name keeps the suffix, because many writers choose their format by it.
    When the block raises, the temporary file is removed and an existing `path` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; when the block succeeds its files move to `path`, else none do.

    A new folder appears with all its files at once. Files of the same names in an existing `path` are replaced,
    others stay.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=UNFINISHED, dir=path.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        if not path.exists():
            os.rename(temporary, path)
            return
        for file in temporary.iterdir():
            if file.is_dir():
                shutil.rmtree(path / file.name, ignore_errors=True)
            os.replace(file, path / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(path: Path) -> None:
    """Remove what killed processes left of the `atomic_folder` of `path`; nobody else may be writing it."""
    left = re.compile(rf"\.{re.escape(path.name)}-[a-z0-9_]{{8}}{re.escape(UNFINISHED)}")
    for folder in path.parent.glob(f".*{UNFINISHED}"):
        if left.fullmatch(folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
    """The process's umask; reading it means setting it, so it is put back at once."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def refuse_existing(path: str | os.PathLike, overwrite: bool) -> None:
    """Raise `InputError` when `path` is there (a folder: when it holds anything) and may not be replaced."""
    path = Path(path)
    holds = any(path.iterdir()) if path.is_dir() else path.exists()
    if holds and not overwrite:
        raise InputError(f"{path} already holds results; choose another folder or pass --overwrite to replace them.")


def refuse_unwritable(path: str | os.PathLike) -> None:
    """Raise `OSError` when nothing can be written at `path` (a folder that need not be there yet)."""
    place = Path(path).absolute()
    while not place.exists():
        if place.is_symlink():
            raise InputError(f"{place} is a symbolic link to {place.readlink()}, which is missing; repair the link.")
        place = place.parent
    if not place.is_dir():
        raise InputError(f"{place} is a file; give another folder for the results.")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".writable-", dir=place))
    except OSError as error:
        raise InputError(f"nothing can be written at {path} ({error.strerror}); give another folder.") from None


def numbered_folder(root: str | os.PathLike) -> Path:
    """Create and return the next free `root/0000`, `root/0001`, …"""
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    taken = [int(entry.name) for entry in root.iterdir() if entry.name.isdigit()]
    number = max(taken, default=-1) + 1
    while True:
        try:
            (root / f"{number:04d}").mkdir()
            return root / f"{number:04d}"
        except FileExistsError:
            number += 1
