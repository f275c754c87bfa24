"""The optimization unit (OU): low rank with data consistency, and the settings it finds in the scan."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
from tqdm import tqdm

from mri.holdout import HeldOut, improvement
from mri.lowrank.along_motion import APART, TRACKINGS, Iterate, Schedule, motion_low_rank, shrink_tracks, track
from mri.lowrank.hankel import HankelLowRank
from mri.lowrank.locally import LocallyLowRank, fista_locally_low_rank
from mri.masks import is_lines, lines_along_rows
from reconstruction.prepare import Problem
from reconstruction.settings import OUSettings
from utils.errors import InputError
from utils.threads import beside, leave_if_stopped

Tensor = torch.Tensor

ANNEAL = 4.0  # llr: the threshold begins this many times larger
LLR_PATCHES = (6, 8, 12)  # llr: sides in turn, pixels
HANKEL_ITERATIONS = 20  # of the OU alone
LLR_FLOOR = 0.0004  # llr: noise per pixel, in units of the scan's scale
# motion: noise per pixel of the first step, in units of the scan's scale, for masks with FIRST_SHARE of all samples and
# more; with fewer it grows as their inverse square, as the aliasing of the start does, up to MOST_FIRST
FIRST, FIRST_SHARE, MOST_FIRST = 0.05, 0.3, 0.1
FLOOR = 0.001  # motion: of the last step without any noise
STEPS_PER_ACCELERATION, FEWEST_STEPS, MOST_STEPS = 12, 24, 80  # motion: missing samples converge the slower, the more
# motion: the last noise level, in units of σ √(measured share), the noise of images that agree with the samples;
# less where σ is an upper bound, and still less for noise that simulated images bring along, which counts as signal
LAST, LAST_ESTIMATED, LAST_OF_IMAGES = 0.85, 0.75, 0.5
CLEAN = 0.002  # noise per pixel below which all measured samples are put back
# memory of a run, in copies of the scan: measured at 16 × 192², and 24 × 128² of 6 virtual coils; PRIORS_HELD in a pass
LIBRARIES_GB, IMAGES_HELD, COIL_IMAGES_HELD, PRIORS_HELD = 0.5, 32, 8, 130
CENTRE_SHARE = 0.5  # motion: with the central line in fewer of the frames, it is shared for the first half of the steps
CHECK_STEPS = 16  # motion: steps that suffice to see whether it does harm
PUT_BACK_ESTIMATED = 0.2  # share of the measured samples that is put back where σ is estimated


class Solved(NamedTuple):
    """Images by the OU, complex `(frames, height, width)` of unit scale. With low rank along the motion, also the state
    after half of the steps, from which priors go on, and the last low-rank images, before samples are put back.
    """

    image: Tensor
    halfway: Iterate | None = None
    low_rank: Tensor | None = None


class OptimizationUnit:
    """Low rank as the settings say.

    `hankel`: structured, published. `llr`: locally low rank. `motion`: low rank along the motion; after a model `llr`,
    which keeps what the model adds.
    """

    def __init__(
        self, settings: OUSettings, seed: int = 0, bar: tqdm | None = None, share_centre: bool = False
    ) -> None:
        if settings.operator == "auto":
            raise InputError("ou.operator auto depends on the sampler; resolve it by `with_operator`.")
        self.settings, self.seed, self.operator, self.bar = settings, seed, settings.operator, bar
        self.share_centre = share_centre
        self.hankel = HankelLowRank(settings.window, settings.rank) if self.operator == "hankel" else None
        self.llr = None
        if self.operator in ("llr", "motion"):
            self.llr = LocallyLowRank(LLR_FLOOR, LLR_PATCHES, seed)

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

    def solve(self, problem: Problem, steps: int = 0) -> Tensor:
        """Images by the OU without any network, see `solved`."""
        return self.solved(problem, steps).image

    def solved(self, problem: Problem, steps: int = 0) -> Solved:
        """Images by the OU without any network, from view sharing.

        `llr`: FISTA. `hankel`: projection and data consistency in turn. `motion`: low rank along the motion, in `steps`
        steps (0: as the settings say); its result is the low-rank image, with the measured samples put back as far as
        they are free of noise.
        """
        model, y, ou = problem.model, problem.measured, self.settings
        image, halfway, low_rank = problem.view_sharing(), None, None
        if self.operator == "llr":
            image = fista_locally_low_rank(
                image, model, y, LLR_FLOOR, LLR_PATCHES, ou.llr_iterations, ANNEAL, self.seed
            )
        if self.operator == "motion":
            half = motion_schedule(problem, steps or ou.motion_steps).steps // 2
            for step, last in enumerate(self.along_motion(image, problem, steps), 1):
                halfway = last if step == half else halfway
            image, low_rank = images_of(problem, last), last.low_rank
        if self.hankel is not None:
            for _ in tqdm(range(HANKEL_ITERATIONS), desc="OU (hankel)", leave=False, disable=None):
                image = model.consistent(self.hankel(image), y)
        return Solved(image, halfway, low_rank)

    def along_motion(self, start: Tensor, problem: Problem, steps: int = 0) -> Iterator[Iterate]:
        """Images after every step of `mri.lowrank.along_motion`, with the settings of this OU."""
        ou = self.settings
        schedule = motion_schedule(problem, steps or ou.motion_steps)
        rest = (ou.motion_patches, schedule, problem.periodic, self.seed)
        known = with_shared_centre(problem, start) if self.share_centre else problem
        with contextlib.ExitStack() as stack:
            bar = stack.enter_context(_bar(schedule.steps)) if self.bar is None else self.bar
            state: Tensor | Iterate = start
            half = schedule.steps // 2
            for one, first, last in ((known, 0, half), (problem, half, schedule.steps)):
                found = motion_low_rank(state, one.model, one.measured, *rest, first=first)
                for step in islice(found, last - first):
                    leave_if_stopped()
                    yield step
                    state = step
                    bar.update()

    def check(self, frames: int, height: int, width: int) -> None:
        """Raise `InputError` for a window, rank or patch that does not fit a scan of this shape."""
        if self.hankel is not None:
            self.hankel.check(frames, height, width)
        side, patches = min(height, width), tuple(self.settings.motion_patches)
        if self.operator == "motion" and max(patches) > side:
            raise InputError(f"ou.motion_patches {patches} must be at most {side} pixels, the scan's shorter side.")
        if self.llr is not None and max(LLR_PATCHES) > side:
            raise InputError(f"frames of {height} x {width} are too small: low rank needs {max(LLR_PATCHES)} pixels.")


def _bar(steps: int) -> tqdm:
    return tqdm(total=steps, desc="OU (along motion)", leave=False, disable=None)


def motion_schedule(problem: Problem, steps: int = 0) -> Schedule:
    """Noise levels for low rank along the motion, down to the noise of images that agree with the samples."""
    share = problem.model.mask.double().mean().item()
    last = max(last_noise(problem), LAST_OF_IMAGES * problem.noise_bound * math.sqrt(share))
    schedule = schedule_for(share, last, steps)
    # single samples (radial) converge fast, and momentum then carries the images past them; lines need it to the end
    return replace(schedule, restart=schedule.steps // 2) if scattered(problem) else schedule


def scattered(problem: Problem) -> bool:
    """Whether single samples were measured (radial), not whole lines."""
    return not is_lines(lines_along_rows(problem.model.mask))


def last_noise(problem: Problem) -> float:
    """The noise level at which the measurement noise ends the schedule."""
    factor = LAST if problem.noise_known else LAST_ESTIMATED
    return factor * problem.noise_std * math.sqrt(problem.model.mask.double().mean().item())


def schedule_for(share: float, noise: float = 0.0, steps: int = 0) -> Schedule:
    """The schedule for a mask with this share of all samples, and images with this noise per pixel."""
    if not steps:
        steps = round(min(max(STEPS_PER_ACCELERATION / share, FEWEST_STEPS), MOST_STEPS))
    last = max(FLOOR, noise)
    first = min(FIRST * max(1.0, FIRST_SHARE / share) ** 2, MOST_FIRST)
    return Schedule(max(first, 2 * last), last, steps)


def shares_centre(mask: Tensor) -> bool:
    """Whether so few frames have sampled the central line that it is shared at first, see `with_shared_centre`."""
    return is_lines(mask) and mask[:, mask.shape[1] // 2].any(dim=-1).double().mean().item() <= CENTRE_SHARE


def with_shared_centre(problem: Problem, shared: Tensor) -> Problem:
    """The problem with the central line of every frame, taken from view sharing where it was not sampled.

    Without it the brightness of the frames that have not sampled it drifts as the first, large thresholds shrink them.
    """
    mask = problem.model.mask
    centre = mask.shape[1] // 2
    filled = mask.clone()
    filled[:, centre] = True
    measured = torch.where(mask[:, None], problem.measured, problem.model.kspace(shared))
    measured = torch.where(filled[:, None], measured, 0)
    return replace(problem, model=replace(problem.model, mask=filled), measured=measured)


def put_back(problem: Problem) -> float:
    """Share of the measured samples that replaces those of the low-rank image: 1 without noise, 0 where it dominates.

    The low-rank image has seen the samples already: their noise would be counted twice. Where σ is only estimated,
    which is an upper bound, some of the samples is put back.
    """
    share = min(1.0, CLEAN / max(last_noise(problem), 1e-9)) ** 2
    return share if problem.noise_known else max(share, PUT_BACK_ESTIMATED)


def images_of(problem: Problem, state: Iterate) -> Tensor:
    """The images of a run that ends with this state: `put_back` of the measured samples are put back."""
    return state.low_rank + put_back(problem) * (state.consistent - state.low_rank)


def with_samples(problem: Problem, image: Tensor) -> Tensor:
    """Images with as much of the measured samples put back as their noise allows, see `put_back`."""
    return image + put_back(problem) * (problem.model.consistent(image, problem.measured) - image)


def expected_seconds(problem: Problem, settings: OUSettings) -> float:
    """About how long `run_optimization_unit` takes along the motion, from one step on this scan; else 0.

    It runs twice: without the held-out samples, and with all.
    """
    if settings.operator != "motion":
        return 0.0
    image, patch = problem.view_sharing(), settings.motion_patches[len(settings.motion_patches) // 2]
    shrink_tracks(image, track(image, patch, problem.periodic), 1.0)  # compiles the kernels, once
    begun = time.perf_counter()
    tracks = track(image, patch, problem.periodic)
    tracked = time.perf_counter()
    shrink_tracks(image, tracks, 1.0)
    problem.model.consistent(image, problem.measured)
    steps, step = motion_schedule(problem, settings.motion_steps).steps, time.perf_counter() - tracked
    return 2 * (steps * step + len(settings.motion_patches) * min(TRACKINGS, -(-steps // APART)) * (tracked - begun))


def expectation(problem: Problem, settings: OUSettings) -> str:
    """How long the OU along the motion takes and what memory, in words; empty for other operators."""
    seconds = expected_seconds(problem, settings)
    frames, height, width = problem.model.mask.shape
    coils = problem.model.coils
    at_once = 2 if problem.measured.device.type == "cpu" and torch.get_num_threads() > 1 else 1
    held = IMAGES_HELD + COIL_IMAGES_HELD * (coils if coils > 1 else 0)
    memory, with_priors = (
        LIBRARIES_GB + 8e-9 * frames * height * width * at_once * images for images in (held, held + PRIORS_HELD)
    )
    several = f" of {coils} virtual coils" if coils > 1 else ""
    words = f"optimization unit: {frames} frames{several}, {height} x {width}: about {max(seconds, 1):.0f} s"
    words += f" and {memory:.1f} GB of memory; with GM and LM about three times as long and {with_priors:.1f} GB"
    return words if seconds else ""


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
        with the operator that was chosen.
    held_out
        the sets of samples held out, see `mri.holdout.hold_out_sets`; None where nothing was compared.
    without_held_out
        the result without all of them.
    start_without
        view sharing without them.
    is_start
        whether view sharing was better than any low rank, and is the result.
    gain
        share of the error of view sharing at the held-out samples that the OU removes.
    halfway, halfway_without
        state after half of the steps along the motion, with all samples and without the held-out ones.
    low_rank
        the last low-rank images along the motion, before samples were put back.
    not_compared
        why the operator was not compared with view sharing, in words; empty where it was.
    """

    image: Tensor
    settings: OUSettings
    held_out: HeldOut | None = None
    without_held_out: Tensor | None = None
    start_without: Tensor | None = None
    is_start: bool = False
    gain: float | None = None
    halfway: Iterate | None = None
    halfway_without: Iterate | None = None
    low_rank: Tensor | None = None
    not_compared: str = ""


def run_optimization_unit(
    problem: Problem, settings: OUSettings, seed: int = 0, check_steps: int = 0
) -> OUResult:
    """Solve the problem; use `motion` or `llr` only if they predict held-out samples better than view sharing.

    The scan is solved without the held-out samples, in `check_steps` steps along the motion (0: as many as in the
    final run). If the operator that is asked for does not lower the error there, `llr` is tried, which must be better
    by two standard errors; otherwise view sharing is the result. With too few samples to hold out, there is no
    comparison. The final run uses all samples; on a CPU of several cores it runs at the same time.
    """
    share = shares_centre(problem.model.mask)  # decided once: what is held out changes it not
    unit = OptimizationUnit(settings, seed, share_centre=share)
    unit.check(problem.frames, *problem.model.mask.shape[1:])
    if unit.operator == "hankel":
        return OUResult(unit.solve(problem), settings, not_compared="nothing is held out with ou.operator=hankel")
    held_out = problem.held_out(seed)
    if not held_out.settings.any():
        why = f"no samples can be held out: {held_out.why_none}"
        return OUResult(unit.solve(problem), settings, not_compared=why)
    reduced = problem.restricted(held_out.kept)
    start = reduced.view_sharing()
    chosen, final, without, gain, half_without = None, None, start, 0.0, None
    with _bar(sum(motion_schedule(one, settings.motion_steps).steps for one in (reduced, problem))) as bar:
        for operator in dict.fromkeys((unit.operator, "llr")):
            candidate = replace(settings, operator=operator)
            one, other = (OptimizationUnit(candidate, seed, bar, share) for _ in range(2))
            job = partial(one.solved, problem)
            with beside(job, problem.measured.device) if operator == "motion" else contextlib.nullcontext(job) as whole:
                image, found, _ = other.solved(reduced, check_steps)
                better = improvement(
                    problem.model, problem.measured, held_out.settings, start, image, problem.held_out_noise
                )
                # a few lines cannot tell two good operators apart: the requested one is dropped only if it does harm
                if better.share > 0 and (better.is_clear or operator == unit.operator):
                    chosen, without, gain, half_without = candidate, image, better.share, found
                    final = whole()
                    break
    if final is None:
        final = Solved(problem.view_sharing())
    return OUResult(
        final.image, chosen or settings, held_out, without, start, chosen is None, gain, final.halfway, half_without,
        final.low_rank,
    )  # fmt: skip
