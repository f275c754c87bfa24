"""A scan as a file holds it: k-space of one or several coils, or images to simulate a scan from."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from mri.formats.arrays import SCAN_NAMES, choose_array, read_arrays, sha256
from mri.formats.layout import axes_of_scan, dc_to_centre, how_kind_is_known, kind_by_name, looks_like_kspace
from utils.errors import InputError

Kind = Literal["magnitude", "complex", "kspace"]


@dataclass(frozen=True)
class Stored:
    """A scan as found in a file.

    Attributes
    ----------
    data
        complex64 `(frames, coils, height, width)`; one coil for images and combined k-space, whose DC is at
        `(height//2, width//2)`.
    kind
        `kspace`, or `magnitude` or `complex` images.
    key
        name of the variable.
    found
        what was found, one sentence for a person.
    details
        further sentences: how the array is laid out, and what lies beside it.
    noise
        complex64 `(coils, n)` from a variable `noise` beside k-space, or None.
    image
        complex64 `(frames, height, width)` from a variable `image` beside k-space: the truth of a simulated scan.
    """

    data: torch.Tensor
    kind: Kind
    path: Path
    key: str
    format: str
    found: str
    sha256: str
    details: tuple[str, ...] = ()
    noise: torch.Tensor | None = None
    image: torch.Tensor | None = None

    def __str__(self) -> str:
        return "\n".join((self.found, *self.details))


def load_scan(
    path: str | os.PathLike,
    key: str | None = None,
    kind: str | None = None,
    frames_axis: int | None = None,
    dc: str = "center",
    coils_axis: int | None = None,
) -> Stored:
    """Read images or k-space of a dynamic scan.

    Parameters
    ----------
    path
        File; its suffix is its format.
    key
        Variable in the file. Default: the one array named as k-space, else the only numeric array of 3 or 4 axes, else
        the one with a usual name. A `.npy` file has no names; there 'image' or 'kspace' says what it holds.
    kind
        'image' or 'kspace'. Default: by the variable's name, else by its values (`looks_like_kspace`).
    frames_axis, coils_axis
        Axes in the file's array, negative from the end. Default: found, see `mri.formats.layout.axes_of_scan`.
    dc
        Where k-space has its zero frequency: 'center' (index n//2) or 'corner' (index 0).

    Raises
    ------
    InputError
        When the file cannot be read, or what it holds is no scan of 2 or more frames of even height and width, or the
        arguments do not fit it.
    """
    if kind not in (None, "image", "kspace"):
        raise InputError(f"kind '{kind}' is unknown; --kind is image or kspace.")
    if dc not in ("center", "corner"):
        raise InputError(f"dc '{dc}' is unknown; --dc is center or corner.")
    path = Path(path)
    variables, format_name = read_arrays(path, key, ("image", "kspace"))
    key = choose_array(path, variables, key, SCAN_NAMES, least_axes=3)
    stored = variables[key]
    where = f"{path}, variable '{key}'"
    asked, kind = kind, kind or kind_by_name(key)
    assumed = kind == "kspace" or (kind is None and np.iscomplexobj(stored))
    frames_at, coils_at, axes = axes_of_scan(where, stored, frames_axis, coils_axis, assumed)
    data = _as_complex64(where, _in_order(stored, frames_at, coils_at), stored.dtype, kind)
    kind = kind or ("kspace" if np.iscomplexobj(stored) and looks_like_kspace(data) else "image")
    if kind == "kspace":
        data = dc_to_centre(where, data, dc)
    elif dc == "corner":
        raise InputError(f"{where} holds images; leave out --dc corner, or add --kind kspace.")
    elif data.shape[1] > 1:
        raise InputError(f"{where} holds images of several coils; give their k-space, or --kind kspace if it is that.")
    full_kind: Kind = "kspace" if kind == "kspace" else "complex" if data.imag.any() else "magnitude"
    in_words = "k-space" if kind == "kspace" else f"a {full_kind} image"
    frames, coils, height, width = data.shape
    several = f"{coils} coils, " if coils > 1 else ""
    found = (
        f"{path} ({format_name}): variable '{key}' is {in_words}{how_kind_is_known(key, asked, stored)}, {frames} "
        f"frames of {several}{height} x {width}"
    )
    layout = (
        f"stored as {stored.dtype} {stored.shape}: {', '.join(axes)}; magnitude {data.abs().min():.4g} to "
        f"{data.abs().max():.4g}"
    )
    noise, image, beside = _beside(path, variables, data.shape) if kind == "kspace" else (None, None, [])
    return Stored(data, full_kind, path, key, format_name, found, sha256(path), (layout, *beside), noise, image)


def load_maps(path: str | os.PathLike, coils: int, key: str | None = None) -> tuple[torch.Tensor, str]:
    """Coil maps of a file: complex64 `(coils, height, width)`, and what was found. The coil axis may be the last."""
    path = Path(path)
    variables, _ = read_arrays(path, key, ("maps",))
    named = [name for name in variables if name.split("/")[-1].lower() in ("maps", "sens", "csm", "coil_maps")]
    key = key or (named[0] if len(named) == 1 else choose_array(path, variables, None, (), least_axes=3))
    stored = np.squeeze(variables[key])
    if stored.ndim != 3:
        raise InputError(f"{path}, variable '{key}' has shape {stored.shape}; coil maps are (coils, height, width).")
    if not np.isfinite(stored).all():
        raise InputError(f"{path}, variable '{key}' has values that are NaN or infinite; repair the coil maps.")
    found = f"coil maps: {path}, variable '{key}' {stored.shape}"
    if stored.shape[0] != coils and stored.shape[2] == coils:
        stored, found = np.moveaxis(stored, 2, 0), f"{found}, coils along the last axis"
    return torch.from_numpy(np.ascontiguousarray(stored, dtype=np.complex64)), found


def _beside(
    path: Path, variables: dict[str, np.ndarray], shape: tuple[int, ...]
) -> tuple[torch.Tensor | None, torch.Tensor | None, list[str]]:
    """Noise samples and truth that a file holds beside k-space `(frames, coils, ky, kx)`, and what is said of them."""
    frames, coils, height, width = shape
    samples = truth = None
    said = []
    noise, image = variables.get("noise"), variables.get("image")
    if noise is not None:
        where, noise = f"variable 'noise' {noise.shape}", np.squeeze(noise)
        noise = noise[None] if noise.ndim == 1 and coils == 1 else noise
        turned = noise.ndim == 2 and noise.shape[0] != coils and noise.shape[1] == coils
        noise = noise.T if turned else noise
        if noise.ndim != 2 or noise.shape[0] != coils or not np.iscomplexobj(noise):
            raise InputError(
                f"{path}, {where}: noise samples are complex, (coils, samples) with the {coils} coil"
                f"{'s' if coils > 1 else ''} of the k-space; correct the variable, or rename it if it is none."
            )
        samples = torch.from_numpy(np.ascontiguousarray(noise, dtype=np.complex64))
        said.append(f"noise samples: {where}{', its axes exchanged' if turned else ''}")
    if image is not None and image.shape == (frames, height, width):
        truth = torch.from_numpy(image.astype(np.complex64))
        said.append("reference: the file's variable 'image'")
    if coils > 1 and "maps" in variables:
        said.append(f"variable 'maps' {variables['maps'].shape} is not used; --maps {path} uses it")
    return samples, truth, said


def _in_order(array: np.ndarray, frames_axis: int, coils_axis: int | None) -> np.ndarray:
    """The array as `(frames, coils, height, width)`."""
    first = [frames_axis] if coils_axis is None else [frames_axis, coils_axis]
    rest = [i for i, length in enumerate(array.shape) if i not in first and length > 1]
    single = [i for i, length in enumerate(array.shape) if i not in first and length == 1]
    moved = array.transpose(*first, *rest, *single)
    return moved.reshape(array.shape[frames_axis], -1, array.shape[rest[0]], array.shape[rest[1]])


def _as_complex64(where: str, array: np.ndarray, dtype: np.dtype, kind: str | None) -> torch.Tensor:
    """The values, checked to be a scan of this kind (None: of any)."""
    if kind == "kspace" and not np.iscomplexobj(array):
        raise InputError(f"{where} is real-valued ({dtype}), but k-space is complex; use --kind image.")
    if array.dtype.kind not in "fc":
        raise InputError(f"{where} has dtype {dtype}; save it as float32 (or complex64).")
    height, width = array.shape[2:]
    if height % 2 or width % 2:
        raise InputError(
            f"{where} has frames of {height} x {width}; crop or pad them to even sizes "
            "(or set --frames_axis)."
        )
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite and is counted
        data = np.ascontiguousarray(array, dtype=np.complex64)
    finite = np.isfinite(data)
    if not finite.all():
        bad = [int(i) for i in np.flatnonzero(~finite.all(axis=(0, 2, 3)))]
        count = data.size - int(finite.sum())
        values = f"{count} value{'s that are' if count > 1 else ' that is'} NaN or infinite"
        if data.shape[1] > 1 and len(bad) < data.shape[1]:
            raise InputError(
                f"{where} holds {values}, all in coil{'s' if len(bad) > 1 else ''} {', '.join(map(str, bad))} "
                "(counting from 0); leave that coil out or repair it."
            )
        raise InputError(f"{where} holds {values}; repair or replace {'them' if count > 1 else 'it'}.")
    if not data.any():
        raise InputError(f"{where} is zero everywhere; save the scan again.")
    return torch.from_numpy(data)
