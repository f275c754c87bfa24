"""Which format a file has, by its content."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from mri.formats import arrays, cfl, cmrxrecon, dicom_series, fastmri, mrd, nifti_file, twix
from utils.errors import InputError

# each has `recognises(path)` and `read(path, options)`; the arrays come last and take what has one of their suffixes
READERS: tuple[ModuleType, ...] = (dicom_series, nifti_file, cfl, twix, mrd, cmrxrecon, fastmri)
SCAN_SUFFIXES = (*arrays.SUFFIXES, ".mrd", ".cfl", ".dat", ".nii", ".nii.gz", ".dcm")


def reader_of(path: Path) -> ModuleType | None:
    """The module that reads the file; None for arrays by name.

    Raises
    ------
    InputError
        when there is no such file, or it is empty.
    """
    base = cfl.files_of(path)
    if not path.exists() and base is None:
        raise InputError(f"{path} does not exist; check the path.")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); save or download it again.")
    try:
        return next((reader for reader in READERS if reader.recognises(path)), None)
    except PermissionError:
        raise InputError(f"{path} cannot be read: permission denied; change its permissions.") from None


def scan_name(path: Path) -> str:
    """The file's name without its suffix; `.nii.gz` is one suffix."""
    name = path.name
    return name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else path.stem or name


def result_names(scans: Sequence[Path | int]) -> list[str]:
    """The names of the results of scans: those of the files, with the suffix (a_mat, a_h5) where several share one.

    Numbers are seeds of built-in heart phantoms.
    """
    names = [f"heart{scan}" if isinstance(scan, int) else scan_name(scan) for scan in scans]
    return [
        scan.name.replace(".", "_") if isinstance(scan, Path) and names.count(name) > 1 else name
        for scan, name in zip(scans, names, strict=True)
    ]


def is_one_scan(path: Path) -> bool:
    """Whether a path names one scan: a file, or a folder of DICOM files with no scan of another format."""
    if not path.is_dir():
        return True
    others = (file for file in path.iterdir() if file.is_file() and has_scan_suffix(file))
    return dicom_series.recognises(path) and all(dicom_series.recognises(file) for file in others)


def has_scan_suffix(path: Path) -> bool:
    """Whether a file of a folder is one of its scans, by its name."""
    return path.name.lower().endswith(SCAN_SUFFIXES)
