"""The optimization unit (OU): low rank with data consistency, and the settings it finds in the scan."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from tqdm import tqdm

from mri.consistency import data_consistency, scan_scale
from mri.fourier import fft2c, ifft2c
from mri.holdout import hide
from mri.interleave import looks_periodic, pseudo_reference
from mri.locally_low_rank import LocallyLowRank, fista_locally_low_rank
from mri.lowrank import HankelLowRank
from mri.masks import lines_along_rows
from mri.motion_low_rank import Schedule, motion_low_rank
from mri.weighting import DISTANCE_TO_DC
from utils.errors import InputError

Tensor = torch.Tensor

NOISE_FLOORS = (2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3)  # units of the scan's scale, see `with_noise_floor`
# a gain of 3 % on hidden samples, which lie near DC, has come with a loss of 0.4 dB in truth
FLOOR_MARGIN = 0.05
MOTION_MARGIN = 0.02  # of the error on hidden samples, that low rank along the motion must take away to be followed
WATCH = 5  # steps of it between two looks at the hidden samples …
PATIENCE = 2  # … and looks without a better one after which it ends
OPERATORS = ("auto", "hankel", "llr", "both", "motion")


class OptimizationUnit:
    """Low rank, as `config.ou` says.

    `hankel`: structured, published. `llr`: locally low rank. `both`: these in turn. `motion`: `llr`, then low rank
    along the motion; after a model `llr`, as it leaves what the model adds. `auto`: `hankel` with the published
    sampler, otherwise `motion`, which benchmarks/quality.py finds best.
    """

    def __init__(self, config, seed: int = 0) -> None:
        ou = config.ou
        if ou.operator not in OPERATORS:
            raise InputError(
                f"ou.operator '{ou.operator}' is unknown; choose {', '.join(OPERATORS[:-1])} or {OPERATORS[-1]}."
            )
        if ou.after not in ("both", "last", "never"):
            raise InputError(f"ou.after '{ou.after}' is unknown; choose both, last or never.")
        self.settings, self.seed = ou, seed
        automatic = "hankel" if config.sampling.sampler == "published" else "motion"
        self.operator = automatic if ou.operator == "auto" else ou.operator
        self.hankel = HankelLowRank(ou.window, ou.rank, ou.sweeps) if self.operator in ("hankel", "both") else None
        self.llr = None
        if self.operator in ("llr", "both", "motion"):
            self.llr = LocallyLowRank(ou.noise_floor, ou.patches, seed, ou.hard)

    def follows(self, last: bool) -> bool:
        """Whether the OU comes after this model, the last of its turn or not."""
        return self.settings.after == "both" or (last and self.settings.after == "last")

    def __call__(self, image: Tensor, strength: float = 1.0) -> Tensor:
        """One step on the images of a scan of unit scale, complex `(frames, height, width)`.

        `strength` 0 … 1 weakens it: the threshold of `llr` and the step of `hankel` towards low rank.
        """
        if self.llr is not None:
            image = self.llr(image, strength)
        if self.hankel is not None:
            image = image + strength * (self.hankel(image) - image)
        return image

    def alone(self, measured: Tensor, mask: Tensor, periodic: bool) -> Tensor:
        """k-space of a scan of unit scale by the OU without any network, from the nearest-in-time start.

        `llr`: FISTA. `hankel`: projection and data consistency in turn. `both`: the one after the other. `motion`:
        `llr`, then low rank along the motion, as `find_motion` found it (else the middle patch and all steps).
        """
        kspace, _ = pseudo_reference(measured, mask, "nearest", periodic=periodic)
        ou = self.settings
        if self.llr is not None:
            kspace = fista_locally_low_rank(
                kspace, measured, mask, ou.noise_floor, ou.patches, ou.llr_iterations, ou.anneal, self.seed, ou.hard
            )
        if self.operator == "motion":
            patch = ou.motion_patch or ou.motion_patches[len(ou.motion_patches) // 2]
            steps = self.along_motion(kspace, measured, mask, patch, periodic)
            (kspace,) = deque(islice(steps, ou.motion_taken or None), maxlen=1)
        if self.hankel is not None:
            for _ in tqdm(range(ou.hankel_iterations), desc="OU (hankel)", leave=False, disable=None):
                kspace = data_consistency(fft2c(self.hankel(ifft2c(kspace))), measured, mask)
        return kspace

    def along_motion(
        self, start: Tensor, measured: Tensor, mask: Tensor, patch: int, periodic: bool
    ) -> Iterator[Tensor]:
        """k-space after every step of `mri.motion_low_rank`, with the settings of this OU."""
        ou = self.settings
        schedule = Schedule(ou.motion_first, ou.motion_last, ou.motion_steps)
        return motion_low_rank(start, measured, mask, patch, schedule, periodic, self.seed)

    def check(self, frames: int, height: int, width: int) -> None:
        """Raise `InputError` for a window, rank or patch that does not fit a scan of this shape."""
        if self.hankel is not None:
            self.hankel.check(frames, height, width)
        ou, side = self.settings, min(height, width)
        given = {"patches": ou.patches} if self.llr is not None else {}
        if self.operator == "motion":
            given["motion_patches"] = ou.motion_patches
            if not (ou.motion_first >= ou.motion_last > 0 and ou.motion_steps >= 1):
                raise InputError("ou.motion_first ≥ ou.motion_last > 0 and ou.motion_steps ≥ 1 are needed.")
            if ou.motion_taken and not ou.motion_patch:
                raise InputError("ou.motion_taken is of one ou.motion_patch; give both, or leave both to be found (0).")
            if not (0 <= ou.motion_patch <= side and 0 <= ou.motion_taken <= ou.motion_steps):
                raise InputError(
                    f"ou.motion_patch must lie between 0 (found) and {side} pixels, ou.motion_taken between 0 and "
                    f"ou.motion_steps = {ou.motion_steps}."
                )
        for name, patches in given.items():
            if not (patches and all(1 <= patch <= side for patch in patches)):
                raise InputError(f"ou.{name} {tuple(patches)} must lie between 1 and {side} pixels.")


def optimization_unit_alone(kspace: Tensor, mask: Tensor, config, seed: int = 0) -> Tensor:
    """Image `(frames, height, width)` by the OU of `config` without any network; arguments as `reconstruct`."""
    if lines_along_rows(mask) is not mask:
        return optimization_unit_alone(kspace.mT, mask.mT, config, seed).mT
    OptimizationUnit(config, seed).check(*mask.shape)
    scale = scan_scale(kspace, mask)
    measured = torch.where(mask, kspace, 0) / scale
    config, _ = find_settings(config, measured, mask, seed)
    return ifft2c(OptimizationUnit(config, seed).alone(measured, mask, config.data.periodic)) * scale


def find_settings(config, measured: Tensor, mask: Tensor, seed: int):
    """The configuration with all that it leaves open for the OU to find in a scan of unit scale.

    Beside it what `find_motion` gives beside it.
    """
    config = with_floor_of_scan(config, measured, mask, seed)
    return find_motion(config, measured, mask, seed)


def with_floor_of_scan(config, measured: Tensor, mask: Tensor, seed: int):
    """The periodicity and the noise floor of `llr`; with `sampling.adapt` another floor where it helps, and said."""
    config = with_noise_floor(with_periodicity(config, measured, mask), measured, mask, seed)
    sampling, before = config.sampling, config.ou.noise_floor
    if sampling.sampler == "cascade" and (sampling.adapt > 0 or sampling.adapt_steps > 0):
        config = with_adapted_noise_floor(config, measured, mask, seed)
        if config.ou.noise_floor != before:
            print(f"optimization unit adapted to the scan: ou.noise_floor {before:g} -> {config.ou.noise_floor:g}")
    return config


def with_periodicity(config, measured: Tensor, mask: Tensor):
    """The configuration with `data.periodic`, where it is left open (None), found in the data."""
    if config.data.periodic is not None:
        return config
    found = config.copy_and_resolve_references()
    found.data.periodic = looks_periodic(measured, mask)
    return found


def with_noise_floor(config, measured: Tensor, mask: Tensor, seed: int):
    """The configuration with the `llr` noise floor, where it is left open (0), found on hidden samples.

    Of the floors tried, the one whose OU predicts the hidden samples best, errors weighted by their distance to
    DC: without that weight the ACS, which is never missing, would decide.
    """
    if config.ou.noise_floor > 0 or OptimizationUnit(config).llr is None:
        return config
    errors = _hidden_errors(NOISE_FLOORS, config, measured, mask, seed)
    if not errors:
        raise InputError("ou.noise_floor = 0 asks to find it, but the mask leaves no sample to hide; give a value.")
    return _with_floor(config, min(errors, key=errors.get))


def with_adapted_noise_floor(config, measured: Tensor, mask: Tensor, seed: int):
    """The configuration with another noise floor of `llr`, where it takes away FLOOR_MARGIN of the error.

    Of the OU on hidden samples, as `with_noise_floor` compares them; a mask that leaves none changes nothing.
    """
    if OptimizationUnit(config).llr is None:
        return config
    given = config.ou.noise_floor
    errors = _hidden_errors((given, *NOISE_FLOORS), config, measured, mask, seed)
    best = min(errors, key=errors.get, default=given)
    if not errors or errors[best] >= (1 - FLOOR_MARGIN) * errors[given]:
        return config
    return _with_floor(config, best)


def find_motion(config, measured: Tensor, mask: Tensor, seed: int):
    """The configuration with the patch and the number of steps of low rank along the motion, found on hidden samples.

    The OU reconstructs the scan without them, with the patches of `ou.motion_patches` from the largest on, until a
    smaller one is no better, and looks at them every few steps: as the threshold falls their error does, until noise or
    aliasing is followed. Where no patch and number of steps leaves MOTION_MARGIN less than `llr` alone, or the mask
    leaves no sample to hide, the OU becomes `llr`.
    Errors are weighted as in `with_noise_floor`. Beside the configuration: k-space by the OU so found without the
    hidden samples (`mri.holdout.hide` with `seed`), as the priors are asked of next; None where nothing was searched.
    """
    unit, ou = OptimizationUnit(config, seed), config.ou
    if unit.operator != "motion" or (ou.motion_patch and ou.motion_taken):
        return config, None
    found = config.copy_and_resolve_references()
    found.ou.operator = "llr"
    kept, hidden = hide(mask, seed=seed)
    if not hidden.any():
        return found, None
    known, periodic = torch.where(kept, measured, 0), config.data.periodic
    start = best = OptimizationUnit(found, seed).alone(known, kept, periodic)
    least = (1 - MOTION_MARGIN) * _hidden_error(start, measured, hidden)
    patches = (ou.motion_patch,) if ou.motion_patch else sorted(ou.motion_patches, reverse=True)
    before = math.inf
    for patch in tqdm(patches, desc="OU: patches to follow the motion", leave=False, disable=None):
        own, since = math.inf, 0
        for step, kspace in enumerate(unit.along_motion(start, known, kept, patch, periodic), 1):
            if step % WATCH and step != ou.motion_steps:
                continue
            error = _hidden_error(kspace, measured, hidden)
            since = 0 if error < own else since + 1
            own = min(own, error)
            if error < least:
                least, best = error, kspace
                found.ou.operator, found.ou.motion_patch, found.ou.motion_taken = "motion", patch, step
            if since == PATIENCE:
                break
        if own >= before:
            break
        before = own
    return found, best


def _hidden_error(kspace: Tensor, measured: Tensor, hidden: Tensor) -> float:
    return DISTANCE_TO_DC(kspace - measured)[hidden].norm().item()


def _hidden_errors(
    floors: Sequence[float], config, measured: Tensor, mask: Tensor, seed: int
) -> dict[float, float]:
    """What the OU of each noise floor leaves on hidden samples; nothing when the mask leaves none to hide."""
    config = with_periodicity(config, measured, mask)
    kept, hidden = hide(mask, seed=seed)
    if not hidden.any():
        return {}
    known, errors = torch.where(kept, measured, 0), {}
    if OptimizationUnit(config).operator == "motion":  # whose start `llr` is
        config = config.copy_and_resolve_references()
        config.ou.operator = "llr"
    for floor in floors:
        unit = OptimizationUnit(_with_floor(config, floor), seed)
        errors[floor] = _hidden_error(unit.alone(known, kept, config.data.periodic), measured, hidden)
    return errors


def _with_floor(config, floor: float):
    found = config.copy_and_resolve_references()
    found.ou.noise_floor = floor
    return found
