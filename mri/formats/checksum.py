"""The checksum that says whether a scan is the one that was reconstructed."""

import hashlib
import os
from pathlib import Path

from mri.formats.cfl import files_of


def sha256(path: str | os.PathLike) -> str:
    """Checksum of a file, of the two files of BART, or of all files of a DICOM folder; hexadecimal."""
    path = Path(path)
    files = list(files_of(path) or ())
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
    if not files:
        return _of_file(path)
    total = hashlib.sha256()
    for file in files:
        total.update(_of_file(file).encode())
    return total.hexdigest()


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
