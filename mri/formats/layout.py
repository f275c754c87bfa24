"""How an array is to be read: which axes are frames and coils, whether it is k-space, where its centre is."""

import numpy as np
import torch

from mri.filled_lines import filled_lines
from mri.formats.arrays import IMAGE_NAMES, last_part
from mri.fourier import ifft2c
from utils.errors import InputError

MOST_COILS = 128
FLAT, EVEN = 3.0, 0.05  # log energy spreads so much more along ky and kx than along time; spread of no peak
CERTAIN = 3.0  # times as peaked as the Fourier transform
CLEAR = 0.5  # of the difference between neighbouring coils: neighbouring frames differ by less than this share of it


def axes_of_scan(
    where: str, array: np.ndarray, frames_axis: int | None, coils_axis: int | None, kspace: bool, pairs: bool = False
) -> tuple[int, int | None, list[str]]:
    """The axes of frames and coils in the file's array (None: no coil axis), and in words what was guessed.

    `pairs`: an axis of length one held real and imaginary part, and is no axis of frames.

    Raises
    ------
    InputError
        when the array is no scan, or its axes cannot be told apart.
    """
    if not array.any():
        raise InputError(f"{where} is zero everywhere; save the scan again.")
    kept = [i for i, length in enumerate(array.shape) if length > 1]
    if kspace and not pairs and array.ndim == 4 and array.shape[0] == 1 and len(kept) == 3 and frames_axis is None:
        if coils_axis is None and (array.all() or _is_constant(array != 0, 1)):
            raise InputError(
                f"{where} of shape {array.shape} is 1 frame of {array.shape[1]} coils; give all frames (if these are "
                "frames of one coil: --frames_axis 1)."
            )
    if coils_axis is not None:
        if not -array.ndim <= coils_axis < array.ndim:
            raise InputError(f"{where} of shape {array.shape} has no axis {coils_axis}; correct --coils_axis.")
        coils_axis %= array.ndim
    if len(kept) < 3 + (coils_axis in kept):
        raise InputError(
            f"{where} has shape {array.shape}, which is 1 frame; give a scan of at least 2 frames as one array."
        )
    if len(kept) > 4:
        raise InputError(
            f"{where} has {len(kept)} axes {array.shape}; save it as (slices, frames, coils, height, width)."
        )
    said = []
    if len(kept) == 4 and coils_axis is None:
        coils_axis = _coil_axis(where, array, kept, frames_axis, kspace)
        said.append(f"coils along axis {coils_axis} (detected; override with --coils_axis)")
    elif coils_axis is not None:
        said.append(f"coils along axis {coils_axis}")
    rest = [i for i in kept if i != coils_axis]
    flat = _flattest_axis(array, rest) if kspace and frames_axis is None else None
    axis, guessed = (flat, True) if flat is not None else _frames_axis(where, array, rest, frames_axis)
    said.insert(0, f"frames along axis {axis}{' (detected; override with --frames_axis)' if guessed else ''}")
    return axis, coils_axis, said


def slice_axis(
    where: str, array: np.ndarray, frames_axis: int | None, coils_axis: int | None, kspace: bool
) -> tuple[int, int, int | None] | None:
    """The axes of slices, frames and coils (None: no coil axis) of an array with several slices; None for one slice.

    NumPy's order is (…, …, coils, ky, kx) and MATLAB's (kx, ky, coils, …, …). Of the two others time is the one along
    which the mask varies or, in full scans, little changes. Images have slices only where `frames_axis` is given.

    Raises
    ------
    InputError
        where these axes cannot be told apart.
    """
    kept = [i for i, length in enumerate(array.shape) if length > 1]
    if len(kept) != 4 + kspace or (frames_axis is None and not kspace):
        return None
    for name, axis in (("frames", frames_axis), ("coils", coils_axis)):
        if axis is not None and not -array.ndim <= axis < array.ndim:
            raise InputError(f"{where} of shape {array.shape} has no axis {axis}; correct --{name}_axis.")
    given = [axis % array.ndim for axis in (frames_axis, coils_axis) if axis is not None]
    ends = [end for end in (kept[-2:], kept[:2]) if not set(end) & set(given)]
    image = max(ends, key=lambda end: min(array.shape[i] for i in end), default=[])
    others = [i for i in kept if i not in image]
    if kspace and coils_axis is None:
        coils_axis = kept[2]  # in either order
    coils_axis = coils_axis % array.ndim if kspace and coils_axis is not None else None
    rest = [i for i in others if i != coils_axis]
    if len(rest) == 2 and image:
        frames = frames_axis % array.ndim if frames_axis is not None else _time_of_two(array, rest)
        if frames in rest:
            slices = next(i for i in rest if i != frames)
            if len(given) > 1 or not kspace or _coils_differ_most(array, coils_axis, slices):
                return slices, frames, coils_axis
    lengths = ", ".join(f"{i} (length {array.shape[i]})" for i in others)
    raise InputError(
        f"{where} has the axes {array.shape}; which of {lengths} are frames, {'coils ' if kspace else ''}and slices is "
        f"not clear: name them with --frames_axis{' and --coils_axis' if kspace else ''}. The remaining axis is slices."
    )


def _time_of_two(array: np.ndarray, axes: list[int]) -> int | None:
    """Which of two axes is time, the other being slices; None where that is not clear."""
    varying = [i for i in axes if not _is_constant(array != 0, i)]
    if varying:
        return varying[0] if len(varying) == 1 else None
    first, second = sorted(axes, key=lambda i: _neighbour_difference(array, i))
    clear = _neighbour_difference(array, first) < CLEAR * _neighbour_difference(array, second)
    return first if clear else None


def _coils_differ_most(array: np.ndarray, coils_axis: int | None, slices: int) -> bool:
    return coils_axis is not None and _neighbour_difference(array, coils_axis) > _neighbour_difference(array, slices)


def _coil_axis(where: str, array: np.ndarray, kept: list[int], frames_axis: int | None, kspace: bool) -> int:
    """The coil axis of four axes: the mask does not vary along it, nor along the longer readout."""
    if not kspace:
        ends = {array.shape[-1], array.shape[0]}
        mend = "add --frames_axis if one is slices"
        if 2 in ends:
            mend = "combine real and imaginary parts into complex numbers, or add --frames_axis if one is slices"
        if ends & {3, 4} and array.dtype == np.uint8:
            mend = "keep one channel if it is a colour movie"
        raise InputError(
            f"{where} holds images of 4 axes {array.shape}; {mend}, or add --kind kspace if it is k-space with coils."
        )
    if not np.isfinite(array).all():  # of a broken coil, which is named once its axis is known
        array = np.where(np.isfinite(array), array, 0)
    free = [i for i in kept if frames_axis is None or i != frames_axis % array.ndim]
    sampled = array != 0
    constant = [i for i in free if _is_constant(sampled, i)]
    if not sampled.all() and len(constant) in (1, 2):
        short = sorted(constant, key=lambda i: array.shape[i])
        lengths = [array.shape[i] for i in short]
        if len(short) == 1 and _is_peaked(array, short[0], kept):  # so it is the readout
            raise InputError(
                f"{where} of shape {array.shape}: not every coil has the same samples (a coil without signal in "
                "part of the scan?); leave out the broken coil, or set --coils_axis to use the scan as it is."
            )
        if lengths[0] <= MOST_COILS and (len(short) == 1 or lengths[0] < lengths[1]):
            return short[0]
    else:  # the two longest axes are the image's; of the others, time is the one along which little changes
        others = sorted(free, key=lambda i: (array.shape[i], i))[: len(free) - 2]
        if len(others) == 1:
            return others[0]
        frames, coils = sorted(others, key=lambda i: _neighbour_difference(array, i))
        if _neighbour_difference(array, frames) < CLEAR * _neighbour_difference(array, coils):
            return coils
        _refuse_filled(where, array, (frames, coils))
    raise InputError(
        f"{where} of shape {array.shape} has an ambiguous coil axis; set --coils_axis (and --frames_axis)."
    )


def _refuse_filled(where: str, array: np.ndarray, others: tuple[int, int]) -> None:
    """Refuse k-space whose axes are not clear because its lines were filled in; `others` are frames and coils."""
    kspace = torch.from_numpy(np.moveaxis(array, others, (0, 1)).astype(np.complex64))
    kspace = kspace.reshape(*kspace.shape[:2], *(length for length in kspace.shape[2:] if length > 1))
    if how := filled_lines(kspace) or filled_lines(kspace.transpose(0, 1)):
        raise InputError(
            f"{where}: {how}: k-space was filled in after the measurement. Export the measured samples alone, with "
            "zeros elsewhere; or name them with --mask, and the axes with --coils_axis and --frames_axis."
        )


def _is_constant(sampled: np.ndarray, axis: int) -> bool:
    """Whether the mask is the same along an axis, apart from places without any sample, such as a dead coil."""
    others = tuple(i for i in range(sampled.ndim) if i != axis)
    alive = np.compress(sampled.any(axis=others), sampled, axis=axis)
    return bool(np.mean(alive.any(axis=axis) & ~alive.all(axis=axis)) < 0.01)


def _neighbour_difference(array: np.ndarray, axis: int) -> float:
    """1 − |correlation| of neighbours along an axis: 0 for equal ones, 1 for unrelated ones."""
    moved = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    first, second = moved[:-1], moved[1:]
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = np.abs(np.sum(first.conj() * second, axis=1))
    return 1 - float(np.median(products / np.maximum(norms, np.finfo(float).tiny)))


def _flattest_axis(array: np.ndarray, axes: list[int]) -> int | None:
    """The axis of k-space along which the energy has no peak, as along time; None where that is not clear."""
    spread = _log_spread(array, axes)
    first, second = sorted(axes, key=lambda axis: spread[axis])[:2]
    return first if FLAT * spread[first] < spread[second] else None


def _is_peaked(array: np.ndarray, axis: int, axes: list[int]) -> bool:
    """Whether the energy of k-space has a peak along an axis, as along ky and kx."""
    spread = _log_spread(array, axes)
    return FLAT * sorted(spread.values())[1] < spread[axis]


def _log_spread(array: np.ndarray, axes: list[int]) -> dict[int, float]:
    """How unevenly the energy is spread along each axis: large for ky and kx, small for time and coils."""
    spread = {}
    finite = np.where(np.isfinite(array), array, 0)  # what is not is named later
    power = np.abs(finite).astype(np.float64) ** 2
    for axis in axes:
        energy = power.sum(axis=tuple(i for i in range(array.ndim) if i != axis))
        log = np.log(energy[energy > 0]) if energy.any() else np.zeros(1)
        spread[axis] = EVEN + float(np.median(np.abs(log - np.median(log))))  # which single outliers do not move
    return spread


def _frames_axis(where: str, array: np.ndarray, kept: list[int], axis: int | None) -> tuple[int, bool]:
    """The frames' axis among three, and whether it was guessed: the third where two are equal, else the shortest."""
    if axis is None:
        lengths = [array.shape[i] for i in kept]
        singles = [i for i in kept if lengths.count(array.shape[i]) == 1]
        if not singles:
            raise InputError(f"{where} has axes of equal length {array.shape}: time is ambiguous; set --frames_axis.")
        return min(singles, key=lambda i: array.shape[i]), True
    if not -array.ndim <= axis < array.ndim or axis % array.ndim not in kept:
        raise InputError(
            f"{where} of shape {array.shape} has no axis {axis} of 2 or more frames; "
            f"--frames_axis must be one of {', '.join(map(str, kept))}."
        )
    return axis % array.ndim, False


def frames_first(where: str, array: np.ndarray, axis: int | None) -> tuple[np.ndarray, int, bool]:
    """Squeeze an array of three axes, frames first; also their axis in `array` and whether it was guessed."""
    kept = [i for i, length in enumerate(array.shape) if length > 1]
    axis, guessed = _frames_axis(where, array, kept, axis)
    return np.moveaxis(np.squeeze(array), kept.index(axis), 0), axis, guessed


def kind_by_name(key: str) -> str | None:
    """'kspace' or 'image' where the variable's name says so."""
    if last_part(key) in IMAGE_NAMES:
        return "image"
    return "kspace" if "ksp" in key.split("/")[-1].lower() else None


def how_kind_is_known(key: str, asked: str | None, array: np.ndarray) -> str:
    """Nothing where the kind is certain, else where the guess comes from and how to change it."""
    if asked or not np.iscomplexobj(array):
        return ""
    source = "name" if kind_by_name(key) else "values"
    return f" (guessed from its {source}; --kind image|kspace changes it)"


def looks_like_kspace(data: torch.Tensor) -> bool:
    """Guess whether complex values are k-space rather than images.

    Under-sampling leaves whole lines of exact zeros between others that are not: an image, even one with its
    background set to zero, does not have four separate groups of empty rows or columns. Otherwise k-space
    is far more peaked than its image, so the kurtosis N Σ|x|⁴ / (Σ|x|²)², as the median over frames, is
    compared with that of the Fourier transform.

    Parameters
    ----------
    data
        complex `(frames, coils, height, width)`, not all zero; where DC is does not matter.
    """
    data = data.flatten(0, 1)
    return _has_empty_lines(data) or bool(_peakedness(data) > _peakedness(ifft2c(data)))


def looks_otherwise(data: torch.Tensor, kspace: bool) -> bool:
    """Whether values that are said to be k-space, or not, clearly look like the other; parameters as above."""
    data = data.flatten(0, 1)
    if _has_empty_lines(data):
        return not kspace
    own, transformed = _peakedness(data), _peakedness(ifft2c(data))
    return bool(transformed > CERTAIN * own if kspace else own > CERTAIN * transformed)


def _has_empty_lines(data: torch.Tensor) -> bool:
    """Four separate groups of empty rows or columns in a frame of `(frames, height, width)`."""
    for axis in (-1, -2):
        empty = ~(data != 0).any(dim=axis)  # (frames, lines)
        starts = empty[:, 1:] & ~empty[:, :-1]
        if (starts.sum(1) >= 4).any():
            return True
    return False


def _peakedness(values: torch.Tensor) -> torch.Tensor:
    """Median over the frames of the kurtosis."""
    power = values.abs().double().square().flatten(1)
    power = power / power.amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return (power.square().mean(1) / power.mean(1).square().clamp_min(1e-300)).median()


def _object_in_the_middle(kspace: torch.Tensor) -> torch.Tensor:
    """The k-space, or that of its image rolled by half the field of view, whichever has the object in the middle.

    `fft2(image)` without shifts and `ifftshift(fft2c(image))` both have DC in the corner, and differ by that roll.
    """
    height, width = kspace.shape[-2:]
    # a roll by half the field of view flips the sign of every other sample, and leaves zeros, which say what was
    # not measured, exactly zero
    odd = (torch.arange(height)[:, None] - height // 2 + torch.arange(width) - width // 2) % 2 == 1
    rolled = torch.where(odd, -kspace, kspace)
    middle = (slice(height // 4, height - height // 4), slice(width // 4, width - width // 4))
    energy = [ifft2c(k.sum(0)).abs().square().sum(0)[middle].sum() for k in (kspace, rolled)]
    return rolled if energy[1] > energy[0] else kspace


def dc_to_centre(where: str, kspace: torch.Tensor, dc: str) -> torch.Tensor:
    """Shift a k-space whose DC is said to be in the corner; refuse one that contradicts what is said.

    The energy, averaged over frames, of the middle quarter of each axis is compared with that of the four
    corners. Even a k-space without its very centre has most of its energy near it.
    """
    if dc == "corner":
        kspace = _object_in_the_middle(torch.fft.fftshift(kspace, dim=(-2, -1)))
    power = (kspace / kspace.abs().max()).abs().double().square().mean((0, 1))

    def middle(image: torch.Tensor) -> float:
        height, width = image.shape
        rows, columns = max(1, height // 8), max(1, width // 8)
        centre = image[height // 2 - rows : height // 2 + rows, width // 2 - columns : width // 2 + columns]
        return float(centre.sum())

    # Pure noise has no preference, so only a clear one (a factor of 2) is a contradiction.
    if middle(torch.fft.fftshift(power)) > 2 * middle(power):
        place, mend = ("corner", "add") if dc == "center" else ("centre", "leave out")
        raise InputError(f"{where} has its zero frequency in the {place} of k-space; {mend} --dc corner.")
    return kspace
