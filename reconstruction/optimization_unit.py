"""The optimization unit (OU): low rank with data consistency, and the settings it finds in the scan."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from tqdm import tqdm

from mri.holdout import hold_out
from mri.lowrank.along_motion import Schedule, motion_low_rank
from mri.lowrank.hankel import HankelLowRank
from mri.lowrank.locally import LocallyLowRank, fista_locally_low_rank
from mri.operators import ForwardModel
from mri.weighting import RAMP_FILTER
from reconstruction.prepare import Problem
from reconstruction.settings import OUSettings
from utils.errors import InputError

Tensor = torch.Tensor

ANNEAL = 4.0  # llr: the threshold begins this many times larger
MOTION_MARGIN = 0.02  # share of the held-out error that low rank along the motion must remove to be used
WATCH = 5  # steps of it between two looks at the held-out error …
PATIENCE = 2  # … and looks without improvement after which it ends


class OptimizationUnit:
    """Low rank as the settings say.

    `hankel`: structured, published. `llr`: locally low rank. `motion`: `llr`, then low rank along the motion; after a
    model only `llr`, which keeps what the model adds.
    """

    def __init__(self, settings: OUSettings, seed: int = 0) -> None:
        if settings.operator == "auto":
            raise InputError("ou.operator auto depends on the sampler; resolve it by `with_operator`.")
        self.settings, self.seed, self.operator = settings, seed, settings.operator
        self.hankel = HankelLowRank(settings.window, settings.rank) if self.operator == "hankel" else None
        self.llr = None
        if self.operator in ("llr", "motion"):
            self.llr = LocallyLowRank(settings.noise_floor, settings.patches, seed)

    def runs_after(self, last: bool) -> bool:
        """Whether the OU follows this model, the last of the cascade or not."""
        return self.settings.after == "both" or (last and self.settings.after == "last")

    def __call__(self, image: Tensor, strength: float = 1.0) -> Tensor:
        """One low-rank step on images `(frames, height, width)` of unit scale.

        `strength` from 0 to 1 weakens it: the threshold of `llr`, and the step of `hankel` towards low rank.
        """
        if self.llr is not None:
            return self.llr(image, strength)
        if self.hankel is not None:
            return image + strength * (self.hankel(image) - image)
        return image

    def solve(self, problem: Problem) -> Tensor:
        """Images by the OU without any network, from view sharing: `(frames, height, width)` of unit scale.

        `llr`: FISTA. `hankel`: projection and data consistency in turn. `motion`: `llr`, then low rank along the
        motion with the patch and steps of the settings, else the middle patch and all steps.
        """
        model, y, ou = problem.model, problem.measured, self.settings
        image = problem.view_sharing()
        if self.llr is not None:
            image = fista_locally_low_rank(
                image, model, y, ou.noise_floor, ou.patches, ou.llr_iterations, ANNEAL, self.seed
            )
        if self.operator == "motion":
            patch = ou.motion_patch or ou.motion_patches[len(ou.motion_patches) // 2]
            steps = self.along_motion(image, problem, patch)
            (image,) = deque(islice(steps, ou.motion_taken or None), maxlen=1)
        if self.hankel is not None:
            for _ in tqdm(range(ou.hankel_iterations), desc="OU (hankel)", leave=False, disable=None):
                image = model.consistent(self.hankel(image), y)
        return image

    def along_motion(self, start: Tensor, problem: Problem, patch: int) -> Iterator[Tensor]:
        """Images after every step of `mri.lowrank.along_motion`, with the settings of this OU."""
        ou = self.settings
        schedule = Schedule(ou.motion_first, ou.motion_last, ou.motion_steps)
        return motion_low_rank(start, problem.model, problem.measured, patch, schedule, problem.periodic, self.seed)

    def check(self, frames: int, height: int, width: int) -> None:
        """Raise `InputError` for a window, rank or patch that does not fit a scan of this shape."""
        if self.hankel is not None:
            self.hankel.check(frames, height, width)
        ou, side = self.settings, min(height, width)
        given = {"patches": ou.patches} if self.llr is not None else {}
        if self.operator == "motion":
            given |= {"motion_patches": ou.motion_patches, "motion_patch": (ou.motion_patch or 1,)}
        for name, patches in given.items():
            if any(patch > side for patch in patches):
                raise InputError(f"ou.{name} {tuple(patches)} must be at most {side} pixels, the scan's shorter side.")


def with_operator(settings: OUSettings, sampler: str) -> OUSettings:
    """The settings with `auto` resolved: `hankel` for the published sampler, otherwise `motion`."""
    if settings.operator != "auto":
        return settings
    return replace(settings, operator="hankel" if sampler == "published" else "motion")


@dataclass(frozen=True)
class OUResult:
    """What the OU makes of a scan.

    Attributes
    ----------
    image
        complex `(frames, height, width)` of unit scale.
    settings
        with all that was chosen on held-out samples.
    without_held_out
        the same without the samples that `mri.holdout.hold_out` holds out; None where nothing was chosen.
    gain
        share of the held-out error that low rank along the motion removes after `llr`; None where not compared.
    """

    image: Tensor
    settings: OUSettings
    without_held_out: Tensor | None
    gain: float | None = None


def run_optimization_unit(problem: Problem, settings: OUSettings, seed: int = 0) -> OUResult:
    """Choose the settings that are left open, then solve the whole problem with them."""
    OptimizationUnit(settings, seed).check(problem.frames, *problem.model.mask.shape[1:])
    settings, without, gain = choose_settings(problem, settings, seed)
    return OUResult(OptimizationUnit(settings, seed).solve(problem), settings, without, gain)


def choose_settings(
    problem: Problem, settings: OUSettings, seed: int
) -> tuple[OUSettings, Tensor | None, float | None]:
    """Patch and number of steps of low rank along the motion, chosen on held-out samples.

    The OU reconstructs the scan without the held-out samples, with the patches of `ou.motion_patches` from the largest
    on, until a smaller one is no better. As the threshold falls the held-out error does too, until noise or aliasing
    comes back. If no patch and number of steps removes MOTION_MARGIN of the error of `llr`, or no sample can be held
    out, the OU becomes `llr`.

    Returns
    -------
    the settings, the image without the held-out samples (None where nothing was chosen), and the share of the held-out
    error removed.
    """
    unit = OptimizationUnit(settings, seed)
    if unit.operator != "motion" or (settings.motion_patch and settings.motion_taken):
        return settings, None, None
    chosen = replace(settings, operator="llr", motion_patch=0, motion_taken=0)
    kept, held_out = hold_out(problem.model.mask, seed=seed)
    if not held_out.any():
        return chosen, None, None
    reduced, held = problem.restricted(kept), problem.model.restricted(held_out)
    start = best = OptimizationUnit(chosen, seed).solve(reduced)
    first = held_out_error(start, held, problem.measured)
    least = (1 - MOTION_MARGIN) * first
    patches = (settings.motion_patch,) if settings.motion_patch else sorted(settings.motion_patches, reverse=True)
    before = math.inf
    for patch in tqdm(patches, desc="OU: patch sizes", leave=False, disable=None):
        own, since = math.inf, 0
        for step, image in enumerate(unit.along_motion(start, reduced, patch), 1):
            if step % WATCH and step != settings.motion_steps:
                continue
            error = held_out_error(image, held, problem.measured)
            since = 0 if error < own else since + 1
            own = min(own, error)
            if error < least:
                least, best = error, image
                chosen = replace(settings, operator="motion", motion_patch=patch, motion_taken=step)
            if since == PATIENCE:
                break
        if own >= before:
            break
        before = own
    gain = 1 - least / first if chosen.operator == "motion" and first > 0 else 0.0
    return chosen, best, gain


def held_out_error(image: Tensor, held: ForwardModel, measured: Tensor) -> float:
    """Norm of the ramp-weighted error at the held-out samples, whose model is `held`."""
    difference = held.forward(image) - torch.where(held.mask[:, None], measured, 0)
    return RAMP_FILTER(difference).norm().item()
