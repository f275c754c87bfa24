"""HDF5 files: datasets of numbers by name; no link is followed and no object is loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from mri.formats.limits import check_size
from utils.errors import InputError

COMPLEX_FIELDS = (("real", "imag"), ("re", "im"), ("r", "i"))


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading; one sentence for one that is damaged."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except PermissionError:
        raise InputError(f"{path} cannot be read: permission denied; change its permissions.") from None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):  # h5py has one of these for each kind of damage
        raise InputError(
            f"{path} is an HDF5 file that is damaged or cut short; save or download it again."
        ) from None


def datasets(file: h5py.File) -> tuple[dict[str, h5py.Dataset], list[str]]:
    """Datasets of numbers by name ('group/name'), and a sentence for each that is left out."""
    found: dict[str, h5py.Dataset] = {}
    left_out: list[str] = []

    def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
        # MATLAB keeps the parts of cells and structures under #refs#, and marks text by its class.
        if not isinstance(item, h5py.Dataset) or name.startswith("#") or item.attrs.get("MATLAB_class") == b"char":
            return
        if item.is_virtual or item.external:
            left_out.append(f"'{name}' takes its values from another file, which is not opened")
        elif item.dtype.kind in "biufc" or item.dtype.names in COMPLEX_FIELDS:
            found[name] = item

    def visit_link(name: str, link: object) -> None:
        if isinstance(link, h5py.ExternalLink):
            left_out.append(f"'{name}' is a link to another file, which is not followed")

    file.visititems(visit)
    file.visititems_links(visit_link)
    return found, left_out


def values(path: Path, dataset: h5py.Dataset, index: tuple = ()) -> np.ndarray:
    """The values at `index`, complex where they are stored as pairs; refused when the memory does not hold them."""
    selected = [
        1 if isinstance(i, int) else len(range(*i.indices(n))) for i, n in zip(index, dataset.shape, strict=False)
    ]
    check_size(path, int(np.prod([*selected, *dataset.shape[len(index) :]], dtype=object)))
    array = np.asarray(dataset[index])
    if array.dtype.names in COMPLEX_FIELDS:
        real, imag = (array[field] for field in array.dtype.names)
        # assembled in place of real + 1j * imag, which turns an infinite part into NaN
        joined = np.empty(array.shape, np.result_type(real.dtype, np.complex64))
        joined.real, joined.imag = real, imag
        return joined
    return array
