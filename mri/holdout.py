"""Held-out samples: measured samples set aside, to choose settings from the scan and never from a reference."""

import math
from dataclasses import dataclass

import torch

from mri.fourier import ifft2c
from mri.masks import is_lines, lines_along_rows
from mri.operators import ForwardModel
from mri.weighting import RAMP_FILTER

Tensor = torch.Tensor

SHARE = 0.05  # of the samples in each of the three sets
FEWEST = 4  # lines (or 32 points) of a set; with fewer, nothing is held out
LEAST_ERROR = 0.1  # share of the squared error at held-out samples that is no noise, from which noise is subtracted
MOST_OF_COPIES = 0.6  # share of a frame's samples that may be left out because of its copies, or nothing is held out
REPEATED = 0.05  # largest squared difference of repeats, relative to that between consecutive frames
REPEATED_AFTER = 3  # frames; a heartbeat is at least this long
SMALLEST_CENTRE = 4  # samples along either axis: an image from fewer shows no motion
CERTAIN = 4.0  # standard deviations of the noise by which frames must differ from those before and after
FIRST_RING = 4  # k-space samples: within, the error of all lines is taken to be alike
CLEAR = 2.0  # standard errors by which the better of two images is better


@dataclass(frozen=True)
class HeldOut:
    """Three disjoint sets of measured samples, boolean `(frames, ky, kx)`.

    Attributes
    ----------
    settings
        choose the OU's settings; with `admission`, also whether and how far priors in turn with the OU are followed.
    admission
        decide whether and how far a prior is followed. `settings` alone would favour the operator it chose; it is added
        only to compare images with the same settings of the OU.
    report
        decide nothing: they give the printed quality without a reference and, with the other sets, the level of the
        likely error.
    kept
        all other measured samples.
    different
        number of frames that do not repeat an earlier one.
    why_none
        why nothing is held out, in words; empty where something is.
    """

    settings: Tensor
    admission: Tensor
    report: Tensor
    kept: Tensor
    different: int
    why_none: str


def copies_of(measured: Tensor, mask: Tensor) -> Tensor:
    """Which frames are copies of which, as in a cine repeated to fill a scan: boolean `(frames, frames)`.

    Frames of k-space `(frames, coils, ky, kx)` are copies where all samples that both have are equal bit for bit.
    """
    frames = len(mask)
    found = torch.eye(frames, dtype=torch.bool, device=mask.device)
    for one in range(frames):
        for other in range(one + 1, frames):
            both = (mask[one] & mask[other]).flatten().nonzero().flatten()
            for some in (both[: len(both) // 2 + 1 : 16], both):  # most pairs differ at the first look
                pair = [measured[frame].flatten(1)[:, some] for frame in (one, other)]
                same = len(both) > 0 and torch.equal(pair[0], pair[1]) and bool(pair[0].any())
                if not same:
                    break
            found[one, other] = found[other, one] = same
    return found


def repeats_of(measured: Tensor, mask: Tensor, noise_std: float) -> Tensor:
    """Which frames see the same state of motion, as in a scan of several heartbeats: boolean `(frames, frames)`.

    Compares magnitude images, normalized per frame, from the samples common to all frames (ACS lines). Two frames are
    alike if their squared difference is below REPEATED times that to the frames just before and after (for both
    frames), provided that the latter clearly exceeds noise. Breathing between the heartbeats can hide a repeat.

    Parameters
    ----------
    measured, mask
        k-space `(frames, coils, ky, kx)` and boolean `(frames, ky, kx)`.
    noise_std
        σ of a complex sample.
    """
    frames, common = len(mask), mask.all(dim=0)
    alike = torch.eye(frames, dtype=torch.bool, device=mask.device)
    rows, columns = (common.any(dim=axis).nonzero().flatten() for axis in (1, 0))
    if frames < 2 * REPEATED_AFTER or min(len(rows), len(columns)) < SMALLEST_CENTRE:
        return alike
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    centre = torch.where(common, measured, 0)[..., box[0], box[1]]
    images = ifft2c(centre).abs().flatten(1).double()
    scale = images.norm(dim=1, keepdim=True).clamp(min=1e-30)
    apart = torch.cdist(images / scale, images / scale).square()
    # each magnitude has half of the noise power; the sum over n samples has a standard deviation of √(2/n) of its mean
    count = int(common.sum()) * measured.shape[1]
    noise = noise_std**2 * count * (scale**-2 + scale.mT**-2) / 2
    apart = apart - noise
    place = torch.arange(frames, device=mask.device)
    moved = (apart[place, place - 1] + apart[place, (place + 1) % frames]) / 2
    moved = torch.minimum(moved, moved[:, None])
    steps = (place - place[:, None]).abs()
    later = torch.minimum(steps, frames - steps) >= REPEATED_AFTER  # neighbours in time are alike in diastole
    return alike | (later & (apart < REPEATED * moved) & (moved > CERTAIN * math.sqrt(2 / count) * noise))


def hold_out_sets(mask: Tensor, seed: int = 0, copies: Tensor | None = None) -> HeldOut:
    """Draw the sets: whole sampled lines over all ky, or single samples where the mask is no lines.

    Every frame keeps at least three quarters of its lines. Held-out samples of a frame must not be known from its
    `copies` (see `copies_of`, `repeats_of`). Copies therefore draw lines in the same order: if they measure the same
    lines, they hold out the same ones. Samples that any copy holds out are left out of `kept` in all of them. With too
    few lines for three sets, where nothing is missing, or where copies leave out too much, all are empty.
    """
    if (rows_first := lines_along_rows(mask)) is not mask:
        turned = hold_out_sets(rows_first, seed, copies)
        return HeldOut(turned.settings.mT, turned.admission.mT, turned.report.mT, turned.kept.mT, turned.different,
                       turned.why_none)  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    lines = is_lines(mask)
    places = mask.any(dim=-1) if lines else mask.flatten(1)  # (frames, ky) or (frames, ky·kx)
    alike = torch.arange(len(mask))
    if copies is not None:
        copies = _connected(copies)
        alike = copies.int().argmax(dim=1).cpu()  # the first of its copies
    order = torch.rand(places.shape, generator=generator)[alike].to(mask.device).masked_fill(~places, math.inf)
    rank = order.argsort(dim=1).argsort(dim=1)  # of a place within its frame, in random order
    count = places.sum(dim=1, keepdim=True)
    # a fraction of a line is held out in that fraction of the frames
    chance = torch.rand(len(mask), 1, generator=generator)[alike].to(mask.device)
    sets, most = [], (count // 4)
    for number in (1, 2, 3):
        upper = torch.minimum((number * SHARE * count + chance).floor().long(), most)
        lower = torch.minimum(((number - 1) * SHARE * count + chance).floor().long(), most)
        drawn = places & (rank >= lower) & (rank < upper)
        sets.append(mask & (drawn[:, :, None] if lines else drawn.reshape(mask.shape)))
    sizes = [int((one.any(dim=-1) if lines else one).sum()) for one in sets]
    still = copies is not None and bool(copies.all())  # nothing moves
    why = ""
    if mask.all() or still or min(sizes) < (FEWEST if lines else 8 * FEWEST):
        sets = [torch.zeros_like(mask)] * 3
        few = f"too few {'lines' if lines else 'samples'} were measured"
        why = "the scan is fully sampled" if mask.all() else "all frames are identical" if still else few
    held = sets[0] | sets[1] | sets[2]
    if copies is not None:
        held = mask & ((copies.float() @ held.flatten(1).float()) > 0).reshape(mask.shape)
        if (held.flatten(1).sum(dim=1) > MOST_OF_COPIES * mask.flatten(1).sum(dim=1)).any():
            held, sets = torch.zeros_like(mask), [torch.zeros_like(mask)] * 3
            why = "repeated frames would leave too few samples"
    return HeldOut(sets[0], sets[1], sets[2], mask & ~held, len(alike.unique()), why)


def _connected(copies: Tensor) -> Tensor:
    """Copies of copies are copies."""
    found = copies
    for _ in range(len(copies).bit_length()):
        found = (found.float() @ found.float()) > 0
    return found


@dataclass(frozen=True)
class Improvement:
    """How much better one image predicts held-out samples than another.

    Attributes
    ----------
    share
        of the squared error that it removes, the noise of the samples subtracted unless it makes up nearly all of the
        error; negative where it is worse.
    is_clear
        whether it is better by CLEAR standard errors of the mean over lines.
    """

    share: float
    is_clear: bool


def held_out_weight(error: Tensor, held: Tensor, noise_std: float) -> Tensor:
    """Weight of held-out samples, `(ky, kx)`: the inverse of the error that is expected there, noise included.

    The expected squared error falls as 1/r² with the distance r to DC, as the signal does; without noise the weight is
    therefore the ramp. `error` is complex `(frames, coils, ky, kx)`, of the simplest candidate.
    """
    ramp = RAMP_FILTER.on(error)
    power = error.abs().square().sum(dim=1) - noise_std**2 * error.shape[1]
    level = (ramp.square() * power)[held].mean().clamp(min=1e-12).item()
    return ramp / (1 + ramp.square() * noise_std**2 * error.shape[1] / level).sqrt()


def improvement(
    model: ForwardModel, measured: Tensor, held: Tensor, simple: Tensor, other: Tensor, noise_std: float
) -> Improvement:
    """Compare two images `(frames, height, width)` at held-out samples, by the paired difference per line.

    Parameters
    ----------
    model, measured
        A and y of all samples.
    held
        boolean `(frames, ky, kx)`, which neither image has seen.
    simple, other
        what wins in doubt, and what must be clearly better.
    noise_std
        σ of a complex sample.
    """
    errors = [torch.where(held[:, None], model.kspace(image) - measured, 0) for image in (simple, other)]
    weight = held_out_weight(errors[0], held, noise_std)
    squares = [(weight * error).abs().square().sum(dim=(1, 3))[held.any(dim=-1)].double() for error in errors]
    noise = (noise_std**2 * errors[0].shape[1] * (weight.square() * held).sum()).item()
    difference = squares[0] - squares[1]
    standard_error = difference.std() / math.sqrt(len(difference)) if len(difference) > 1 else difference.abs().sum()
    total = squares[0].sum().item()
    # of what little would be left, an error of σ could make any share
    before = max(total - noise if total - noise > LEAST_ERROR * total else total, 1e-30)
    return Improvement(min(difference.sum().item() / before, 1.0), bool(difference.mean() > CLEAR * standard_error))


def fitted_step(
    model: ForwardModel, measured: Tensor, held: Tensor, simple: Tensor, other: Tensor, noise_std: float
) -> float:
    """Least-squares step from `simple` to `other` at the held-out samples, clipped to 0 … 1. See `improvement`."""
    at = held[:, None]
    error = torch.where(at, measured - model.kspace(simple), 0)
    weight = held_out_weight(error, held, noise_std)
    effect = weight * torch.where(at, model.kspace(other - simple), 0)
    overlap = torch.vdot(effect.flatten(), (weight * error).flatten()).real
    return (overlap / effect.norm().square().clamp(min=1e-30)).clamp(0, 1).item()


def missing_error(error: Tensor, held_out: Tensor, mask: Tensor, noise_std: float = 0.0) -> float:
    """Standard deviation per real channel and pixel of the image error in the missing samples.

    Estimated from the error at the held-out samples. Its mean square is assumed to fall as 1/r² with the distance r to
    DC, as that of the signal does.

    Parameters
    ----------
    error
        error of the k-space, complex `(frames, coils, ky, kx)`.
    held_out, mask
        boolean `(frames, ky, kx)`.
    noise_std
        σ of a complex sample; the noise of the held-out samples is subtracted.
    """
    power = error.abs().square().sum(dim=1) - noise_std**2 * error.shape[1]
    level = (RAMP_FILTER.on(error).square() * power)[held_out].mean().clamp(min=0)
    falling = RAMP_FILTER.on(error).expand(mask.shape)[~mask].square().reciprocal().sum()
    return (level * falling / (2 * mask.numel())).sqrt().item()


def missing_power(error: Tensor, held_out: Tensor, kept: Tensor, noise_power: float) -> float:
    """Mean square per pixel of an image's error in the samples outside `kept`, for masks of lines.

    A missing line is taken to be as wrong as the held-out ones at about the same distance to DC: within half an octave,
    or the nearest for which a line is held out. Unlike `missing_error`, this does not assume how the error falls with
    the distance.

    Parameters
    ----------
    error
        error of the k-space at `held_out`, else 0: complex `(frames, coils, ky, kx)`, of an image that has seen `kept`
        alone.
    held_out, kept
        boolean `(frames, ky, kx)`; lines along either axis, whole or of a partial echo; some are held out.
    noise_power
        mean square of the noise of a sample, all coils together. It is subtracted, unless it makes up nearly all of the
        error: then LEAST_ERROR of that is left.
    """
    power = error.abs().square().sum(dim=1)
    if (rows_first := lines_along_rows(kept)) is not kept:
        power, held_out, kept = power.mT, held_out.mT, rows_first
    distance = (torch.arange(kept.shape[1], device=kept.device) - kept.shape[1] // 2).abs()
    ring = (2 * (distance / FIRST_RING).log2()).floor().add(1).clamp(min=0).long()  # -inf at DC
    sums, held, missing = (
        torch.zeros(int(ring.max()) + 1, dtype=torch.double, device=kept.device).index_add_(
            0, ring, one.sum(dim=(0, 2), dtype=torch.double)
        ).tolist()
        for one in (power, held_out, ~kept)
    )  # fmt: skip
    known = [one for one, count in enumerate(held) if count]
    total = noise = 0.0
    for one, count in enumerate(missing):
        like = min(known, key=lambda other: (abs(other - one), other))
        total += count * sums[like] / held[like]
        noise += count * noise_power
    return max(total - noise, LEAST_ERROR * total) / kept.numel()
