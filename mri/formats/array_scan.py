"""A scan of plain arrays in `.mat`, `.npy`, `.npz` and `.h5` files."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mri.formats.arrays import SCAN_NAMES, choose_array, last_part, read_arrays
from mri.formats.checksum import sha256
from mri.formats.layout import axes_of_scan, how_kind_is_known, kind_by_name, looks_otherwise, slice_axis
from mri.formats.stored import Finding, ReadOptions, Stored, choose_slice, finished
from utils.errors import InputError

LIKE_PI = (3.1, 3.1416)  # the largest of many phases, in radians


def read(path: Path, options: ReadOptions) -> Stored:
    """The scan that the arrays of a file hold; see `mri.formats.read.load_scan`."""
    variables, format_name = read_arrays(path, options.key, ("image", "kspace"))
    key = choose_array(path, variables, options.key, SCAN_NAMES, least_axes=3)
    stored, where = variables[key], f"{path}, variable '{key}'"
    kind = options.kind or kind_by_name(key)
    array, joined = _joined(where, stored, kind)
    assumed = kind == "kspace" or (kind is None and np.iscomplexobj(array))
    pairs = bool(joined)
    array, frames_axis, coils_axis, chosen = _one_slice(where, array, options, assumed)
    frames_at, coils_at, axes = axes_of_scan(where, array, frames_axis, coils_axis, assumed, pairs)
    joined += chosen
    layout = (f"stored as {stored.dtype} {stored.shape}: {', '.join((*joined, *axes))}",)
    finding = Finding(
        path, key, format_name, _in_order(array, frames_at, coils_at), where, layout, sha256(path)
    )
    scan = finished(finding, kind, options.dc, how_kind_is_known(key, options.kind, array))
    asked = options.kind or options.key
    doubts = [] if kind is None or scan.kind == "magnitude" else _of_the_other_kind(where, scan, asked)
    masks = [name for name in variables if "mask" in last_part(name).lower() and name != key]
    scan = replace(scan, own_mask=masks[0] if len(masks) == 1 else None, details=(*scan.details, *doubts))
    if scan.kind != "kspace":
        return scan
    noise, image, beside = _beside(path, variables, key, tuple(scan.data.shape))
    return replace(scan, noise=noise, image=image, details=(*scan.details, *beside))


def _of_the_other_kind(where: str, scan: Stored, asked: str | None) -> list[str]:
    """What is said of k-space that looks like images, or the other way round.

    Raises
    ------
    InputError
        where the kind was not asked for.
    """
    own, other = ("k-space", "image") if scan.kind == "kspace" else ("images", "kspace")
    if not looks_otherwise(scan.data, scan.kind == "kspace"):
        return []
    words = f"the values look like {'images' if own == 'k-space' else 'k-space'}"
    if asked is None:
        named = "kspace" if own == "k-space" else "image"
        raise InputError(
            f"{where}: the name says {own}, but {words}; add --kind {other}, or --kind {named} if the name is right."
        )
    return [f"warning: {words}; --kind {other} reads them as such"]


def _one_slice(
    where: str, array: np.ndarray, options: ReadOptions, kspace: bool
) -> tuple[np.ndarray, int | None, int | None, list[str]]:
    """The slice that is meant of an array with several (their axis becomes 1), the axes of frames and coils, and words.

    Raises
    ------
    InputError
        for options that mean nothing for plain arrays; `SeveralSlices` where none is chosen.
    """
    found = slice_axis(where, array, options.frames_axis, options.coils_axis, kspace)
    names = ("time", "set", "slice") if found is None else ("time", "set")
    given = [f"--{name}" for name in names if getattr(options, name) is not None]
    if given:
        raise InputError(
            f"{where} is a plain array, whose axes have no names, so {', '.join(given)} does not apply; leave it "
            "out, and name the axis of time with --frames_axis."
        )
    if found is None:
        return array, options.frames_axis, options.coils_axis, []
    slices, frames, coils = found
    index = choose_slice(f"{where},", array.shape[slices], options.slice)
    said = f"slice {index} of {array.shape[slices]} along axis {slices}"
    if kspace and None in (options.frames_axis, options.coils_axis):
        said += " (axes detected; override with --frames_axis and --coils_axis)"
    return np.take(array, [index], axis=slices), frames, coils, [said]


def _joined(where: str, array: np.ndarray, kind: str | None) -> tuple[np.ndarray, list[str]]:
    """An array of real and imaginary parts along an axis of length two as complex numbers; that axis becomes 1.

    K-space is complex, so real-valued k-space with such an axis is joined. Of other arrays only one of four axes or
    more with negative values is: two slices of magnitude images have none.
    """
    twos = [i for i, length in enumerate(array.shape) if length == 2]
    kept = sum(length > 1 for length in array.shape)
    if array.dtype.kind not in "iuf" or not twos or kind == "image":
        return array, []
    if kind is None and (kept < 4 or not (array < 0).any()):
        return array, []
    ends = [i for i in (array.ndim - 1, 0) if i in twos]
    if len(twos) > 1 and not ends:
        raise InputError(
            f"{where} of shape {array.shape} has several axes of length 2, one of them real and imaginary parts; join "
            "these to complex numbers."
        )
    axis = ends[0] if len(twos) > 1 else twos[0]
    real, imag = (np.take(array, [i], axis=axis) for i in (0, 1))
    if real.min() >= 0 and LIKE_PI[0] < max(imag.max(), -imag.min()) < LIKE_PI[1] and (imag < 0).any():
        raise InputError(
            f"{where} of shape {array.shape} looks like magnitude and phase along axis {axis}, not real and imaginary "
            "parts; save magnitude * exp(i * phase) as complex numbers."
        )
    joined = np.empty(real.shape, np.result_type(array.dtype, np.complex64))
    joined.real, joined.imag = real, imag
    return joined, [f"real and imaginary parts joined along axis {axis}"]


def load_maps(path: str | os.PathLike, coils: int, key: str | None = None) -> tuple[torch.Tensor, str]:
    """Coil maps of a file: complex64 `(coils, height, width)`, and what was found. The coil axis may be the last."""
    path = Path(path)
    variables, _ = read_arrays(path, key, ("maps",))
    named = [name for name in variables if last_part(name) in ("maps", "sens", "csm", "coil_maps")]
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
    path: Path, variables: dict[str, np.ndarray], key: str, shape: tuple[int, ...]
) -> tuple[torch.Tensor | None, torch.Tensor | None, list[str]]:
    """Noise samples and truth that a file holds beside k-space `(frames, coils, ky, kx)`, and what is said of them.

    Beside the variable `data.kspace` lie `data.noise` and `data.image`.
    """
    frames, coils, height, width = shape
    samples = truth = None
    said = []
    place = key[: len(key) - len(last_part(key))]
    noise, image, maps = (variables.get(place + name) for name in ("noise", "image", "maps"))
    if noise is not None:
        where, noise = f"variable '{place}noise' {noise.shape}", np.squeeze(noise)
        noise = noise[None] if noise.ndim == 1 and coils == 1 else noise
        turned = noise.ndim == 2 and noise.shape[0] != coils and noise.shape[1] == coils
        noise = noise.T if turned else noise
        if noise.ndim != 2 or noise.shape[0] != coils or not np.iscomplexobj(noise):
            raise InputError(
                f"{path}, {where}: noise samples are complex, (coils, samples) with the {coils} coil"
                f"{'s' if coils > 1 else ''} of the k-space; correct the variable, or rename it if it is not noise."
            )
        samples = torch.from_numpy(np.ascontiguousarray(noise, dtype=np.complex64))
        said.append(f"noise samples: {where}{', its axes exchanged' if turned else ''}")
    if image is not None and image.shape == (frames, height, width):
        truth = torch.from_numpy(image.astype(np.complex64))
        said.append(f"reference: the file's variable '{place}image'")
    elif image is not None:
        said.append(
            f"variable '{place}image' {image.shape} is not used as the reference: the frames have shape "
            f"{(frames, height, width)}"
        )
    if coils > 1 and maps is not None:
        said.append(f"variable '{place}maps' {maps.shape} is not used; --maps {path} uses it")
    return samples, truth, said


def _in_order(array: np.ndarray, frames_axis: int, coils_axis: int | None) -> np.ndarray:
    """The array as `(frames, coils, height, width)`."""
    first = [frames_axis] if coils_axis is None else [frames_axis, coils_axis]
    rest = [i for i, length in enumerate(array.shape) if i not in first and length > 1]
    single = [i for i, length in enumerate(array.shape) if i not in first and length == 1]
    moved = array.transpose(*first, *rest, *single)
    return moved.reshape(array.shape[frames_axis], -1, array.shape[rest[0]], array.shape[rest[1]])


