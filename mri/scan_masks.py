"""Which samples of a scan were measured, or are to be kept: from a mask file, the zeros of k-space, or a pattern."""

import torch

from mri.formats import Stored, load_mask
from mri.intake_settings import Intake
from mri.masks import fit_mask, make_mask
from mri.resize import resized_mask
from utils.errors import InputError

Tensor = torch.Tensor

TINY = 2e-7  # of the largest value of k-space: rounding of single precision
LEFT_OUT = 0.01  # share of the samples from which a mask and k-space differ
CORNER = 1.5  # density of a mask at the corners over that at the centre, from which its DC is in the corner


def mask_to_apply(intake: Intake, shape: tuple[int, int, int]) -> tuple[Tensor, str]:
    """The mask of `intake.mask`, read or generated, for a scan of (frames, height, width), and its name."""
    mask = intake.mask
    if mask.path:
        return _dc_in_the_middle(fit_mask(_read_mask(intake, shape), shape, mask.path), mask.path)
    generated = make_mask(mask.pattern, shape, mask.acceleration, mask.acs, intake.seed)
    square = mask.pattern == "radial" and mask.acs
    centre = f"a central square of {mask.acs}×{mask.acs}" if square else f"{mask.acs} ACS lines"
    return fit_mask(generated, shape), f"{mask.pattern}, R = {mask.acceleration:g}, {centre}"


def _read_mask(intake: Intake, shape: tuple[int, int, int]) -> Tensor:
    """The mask of `mask.path`, cut as the scan was."""
    read = load_mask(intake.mask.path, intake.mask.key or None)
    if intake.block is not None and read.ndim == 3 and read.shape[1:] != shape[1:]:
        read = read[(slice(None), *intake.block)]
    return resized_mask(read, intake.data.frames, intake.data.size, shape)


def _dc_in_the_middle(mask: Tensor, name: str) -> tuple[Tensor, str]:
    """A mask `(frames, height, width)` with its zero frequency at n//2, and its name; some have it in the corner."""
    turned = torch.fft.fftshift(mask, dim=(1, 2))

    def central(one: Tensor) -> float:
        _, height, width = one.shape
        rows, columns = max(1, height // 16), max(1, width // 16)
        part = one[:, height // 2 - rows : height // 2 + rows, width // 2 - columns : width // 2 + columns]
        return part.double().mean().item()

    if central(turned) > CORNER * central(mask):
        return turned, f"{name}, its zero frequency moved from the corner to the centre"
    return mask, name


def mask_of_measurement(intake: Intake, stored: Stored, sampled: Tensor) -> tuple[Tensor, str, list[str]]:
    """The mask of under-sampled k-space, from its file or from the zeros; its name, and what is doubtful."""
    shape = (sampled.shape[0], sampled.shape[1], sampled.shape[2])
    if not intake.mask.path and stored.mask is not None:
        return fit_mask(stored.mask, shape, f"{stored.path}: what was measured"), "from the readouts in the file", []
    if not intake.mask.path:
        exact = not stored.data.abs().sum(dim=1)[~sampled].any()
        zeros = "the zeros in k-space" if exact else f"samples below {TINY:g} of the largest, which count as zero"
        found = fit_mask(sampled, shape, f"{stored.path}: the mask detected from its zeros")
        return found, f"detected from {zeros}", []
    mask, name = _mask_that_fits(intake, shape, sampled)
    missing = _unmeasured(mask, sampled)
    if missing > LEFT_OUT and (mask == mask[0]).all() and not (sampled == sampled[0]).all():
        same = [i for i in range(len(mask)) if torch.equal(mask[i], sampled[i])]
        whose = f"the mask of frame {same[0]} alone (counting from 0)" if same else "one mask for all frames"
        raise InputError(
            f"{name} is {whose}, but the sampling of {stored.path} varies from frame to frame; omit --mask to "
            "detect the mask from the zeros, or give it with all frames."
        )
    if missing > LEFT_OUT:
        raise InputError(
            f"{name} does not match {stored.path}: {missing:.0%} of its samples are zero in the k-space; give the mask "
            "the scan was acquired with, or omit --mask to detect it from the zeros."
        )
    left = ((sampled & ~mask).double().sum() / sampled.double().sum()).item()
    doubt = f"warning: the mask omits {left:.0%} of the measured samples; drop --mask to use all of them"
    return mask, name, [doubt] if left > LEFT_OUT else []


def _unmeasured(mask: Tensor, sampled: Tensor) -> float:
    """Share of the samples of a mask that are zero in the k-space."""
    return ((mask & ~sampled).double().sum() / mask.double().sum()).item()


def _mask_that_fits(intake: Intake, shape: tuple[int, int, int], sampled: Tensor) -> tuple[Tensor, str]:
    """The mask of a file and its name; with rows and columns exchanged where only so it is that of the k-space.

    CMRxRecon stores masks in the order of MATLAB and k-space as HDF5 has it.
    """
    path = intake.mask.path
    read = _read_mask(intake, shape)
    for candidate, how in ((read, ""), (read.mT, ", its rows and columns exchanged to fit the k-space")):
        try:
            mask = fit_mask(candidate, shape, path)
        except InputError:
            continue
        for one, more in ((mask, ""), _dc_in_the_middle(mask, "")):
            if _unmeasured(one, sampled) <= LEFT_OUT:
                return one, path + how + more
    return fit_mask(read, shape, path), path


def sampled_locations(kspace: Tensor) -> Tensor:
    """Where k-space `(frames, coils, ky, kx)` was measured in any coil: boolean `(frames, ky, kx)`."""
    return _sampled_locations(kspace.abs().sum(dim=1))


def _sampled_locations(kspace: Tensor) -> Tensor:
    """Where k-space was measured: its non-zero samples, whole lines where lines were measured.

    K-space that went through a Fourier transform and back has rounding where it had zeros. It counts as zero where it
    is tiny in some frames and not in others, with hardly a value between rounding and the rest.
    """
    sampled = kspace != 0
    size = kspace.abs() / kspace.abs().max()
    measured = size > TINY
    varying = (measured.any(dim=0) & ~measured.all(dim=0)).double().mean()
    between = (measured & (size < 10 * TINY)).double().mean()
    if sampled.double().mean() > 0.99 and varying > 0.05 and between < 0.01:
        sampled = measured
    for axis, across in ((-1, -2), (-2, -1)):
        line_fraction = sampled.double().mean(dim=axis, keepdim=True)
        filled = (line_fraction > 0).expand_as(sampled)
        # a stray exact zero inside a measured line is a value, not a gap; a whole empty line across is a gap
        empty_across = ~sampled.any(dim=across, keepdim=True)
        if ((line_fraction == 0) | (line_fraction > 0.9)).all() and not (filled & empty_across).any():
            return filled
    return sampled
