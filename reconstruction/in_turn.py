"""OU and priors in turn, within one iteration: the cascade of the paper with priors of moving scenes.

The OU exploits what repeats along the motion, the priors what moving images look like. In the later half of the OU's
steps a prior is applied after every second one, at a noise level σ that begins at half of the held-out error and ends
at half of the last threshold: GM first, where σ is high, then LM; if both together are rejected, LM alone or GM
alone takes all turns, if `PASSES` allows. Data consistency follows each time. Meanwhile the low-rank steps use the
noise levels of `schedule_with_priors`; σ is derived from those of the OU alone.
"""

import cmath
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.nn.functional import max_pool2d
from tqdm import tqdm

from models.prior import Prior
from mri.fourier import fft2c, ifft2c
from mri.holdout import fitted_step, improvement, missing_error
from mri.lowrank.along_motion import Iterate, motion_low_rank
from mri.lowrank.along_motion import Schedule as LowRankSchedule
from reconstruction.calibration import Schedule
from reconstruction.optimization_unit import (
    FLOOR,
    OUResult,
    images_of,
    last_noise,
    motion_schedule,
    put_back,
    scattered,
)
from reconstruction.prepare import Problem
from utils.threads import beside, leave_if_stopped

Tensor = torch.Tensor

EVERY = 2  # steps of the OU from one prior to the next
EARLY = 0.125  # share of the turns for each prior but the last
NOISE_SHARE = 0.5  # σ per real channel passed to a prior, as a share of the step's ν (per pixel) in the OU alone
ERROR_SHARE = 0.5  # first σ, of the held-out error, 1.5 to 2.7 times the true one on one scan (…/results/priors.md)
STEP_SIZE = 0.6  # how far a prior is followed: wholly, it smooths (benchmarks/results/priors.md)
GENTLE = 0.007  # above this σ the step size falls as 1/σ: the more noise, the more the prior smooths
# Noise levels of the low rank between the priors, relative to the OU alone. The priors remove part of the noise, so
# less shrinkage is needed; where there is none they restore detail, so more is tolerable (…/results/priors.md)
WITH_NOISE, WITHOUT_NOISE = 0.85, 1.4
FEW = 2.0  # last levels: where the OU leaves an error no larger than this, more shrinkage would add to it
# The phase of what the networks see is turned by the golden angle from one turn to the next. Real and imaginary part
# are two channels to them; a part of their error depends on the phase, which is arbitrary, and partly cancels this way
# (Terris et al. 2024, "Equivariant plug-and-play image reconstruction"). 137.5°, not the 111.25° of radial sampling.
ROTATION = math.pi * (3 - math.sqrt(5))
# With noise, the result is the mean of the images whose ν exceeds the last by at most TAIL · (1 − put_back). This
# averages out random errors from the priors, which are applied at every second step only, and from the patch shifts.
TAIL = 0.15  # chosen in benchmarks/results/priors.md
MARGIN = 0.02  # share of the squared held-out error that the priors must remove, by two standard errors: less is chance
MUCH = 0.1  # share that is no chance, though a few lines of unlike energy have a large standard error
PASSES = 40  # per frame: after a rejection a further trial is made only if it and the final run fit within
REACH = 2  # k-space samples; see `within_reach`


def turns(schedule: LowRankSchedule, count: int) -> dict[int, int]:
    """Which of `count` priors follows which step, over the later half of the steps. Each prior but the last takes
    EARLY of the turns, in the order of the cascade; the last takes the rest.
    """
    steps = range(schedule.steps - 1, schedule.steps // 2 - 1, -EVERY)[::-1]
    early = max(1, round(EARLY * len(steps)))
    return {step: min(turn // early, count - 1) for turn, step in enumerate(steps)}


def step_size(sigma: float) -> float:
    """Step size a of a prior at the noise level σ per real channel."""
    return STEP_SIZE * min(1.0, GENTLE / sigma)


def noise_levels(schedule: LowRankSchedule, steps: list[int], error_std: float = 0.0) -> dict[int, float]:
    """σ per real channel at each of `steps`: NOISE_SHARE of the threshold ν.

    If ERROR_SHARE of `error_std`, an error per real channel, is larger at the first step, σ begins there; the ratio of
    the two falls geometrically to 1 at the last step. With a single step it stays.
    """
    first = NOISE_SHARE * schedule.noise(steps[0])
    raised, last = max(1.0, ERROR_SHARE * error_std / first), max(len(steps) - 1, 1)
    return {
        step: NOISE_SHARE * schedule.noise(step) * raised ** (1 - number / last) for number, step in enumerate(steps)
    }


def schedule_with_priors(schedule: LowRankSchedule, problem: Problem, error_std: float) -> LowRankSchedule:
    """Noise levels of the OU's steps between the priors: those of `schedule` times a factor.

    Without any noise it is WITHOUT_NOISE. It is closer to 1 if the images are noisy themselves (this noise counts as
    signal and raises the last level), or if `error_std`, the error of the OU alone per real channel, is close to the
    last level. For scattered samples (radial) it is 1: raising it cost 0.1 dB on the rat. With measurement noise it
    falls towards WITH_NOISE, and is almost there once that noise sets the last level to five times FLOOR.
    """
    raise_by = (WITHOUT_NOISE - 1) * (FLOOR / schedule.last) ** 2
    raise_by *= 0.0 if scattered(problem) else max(0.0, 1 - (FEW * schedule.last / max(error_std, 1e-9)) ** 2)
    clean = (FLOOR / max(FLOOR, last_noise(problem))) ** 2
    factor = WITH_NOISE + (1 + raise_by - WITH_NOISE) * clean
    return replace(schedule, first=factor * schedule.first, last=factor * schedule.last)


def follow_priors(
    priors: list[Prior], schedule: LowRankSchedule, periodic: bool, error_std: float = 0.0, bar: tqdm | None = None,
    taken: list[dict[str, float]] | None = None,
) -> Callable[[Tensor, int], Tensor]:
    """x ← x + a(σ) (D(x; σ) − x) after the low-rank steps of `turns`, D the denoiser of GM or LM (Tweedie), which sees
    the images with their phase rotated (`ROTATION`).

    Step, σ, a and the prior's place in the cascade are added to `taken` each time.
    """
    own = turns(schedule, len(priors))
    levels = noise_levels(schedule, sorted(own), error_std)
    rotations = {step: cmath.rect(1, ROTATION * number) for number, step in enumerate(sorted(own))}

    def follow(x: Tensor, step: int) -> Tensor:
        if step not in own:
            return x
        prior = priors[own[step]]
        # raised no further than the prior was trained for
        sigma = max(NOISE_SHARE * schedule.noise(step), min(levels[step], prior.sigma_max))
        if not prior.sigma_min <= sigma <= prior.sigma_max:  # where it was not trained it would only smooth
            return x
        size = step_size(sigma)
        if taken is not None:
            taken.append({"step": step, "sigma": sigma, "step_size": size, "prior": own[step]})
        if bar is not None:
            bar.set_postfix(sigma=f"{sigma:.3g}")
            bar.update()
        rotation = rotations[step]
        return x + size / rotation * prior.change(rotation * x, sigma, periodic)

    return follow


def solve_in_turn(
    problem: Problem, priors: list[Prior], result: OUResult, halfway: Iterate, errors: tuple[float, float], seed: int,
    bar: tqdm | None = None,
) -> tuple[Tensor, Tensor, list[dict[str, float]]]:
    """The later half of the OU's steps from the state `halfway`, with the priors and the noise levels of
    `schedule_with_priors`. With noise the images of the last steps are averaged, see `TAIL`.

    `errors`: held-out error of the OU per real channel, halfway and at its end.

    Returns
    -------
    images `(frames, height, width)`, the last low-rank images, and step, σ, step size and place of every prior that was
    applied.
    """
    schedule = motion_schedule(problem, result.settings.motion_steps)
    taken: list[dict[str, float]] = []
    follow = follow_priors(priors, schedule, problem.periodic, errors[0], bar, taken)
    steps = motion_low_rank(
        halfway, problem.model, problem.measured, result.settings.motion_patches,
        schedule_with_priors(schedule, problem, errors[1]), problem.periodic, seed, follow, schedule.steps // 2,
    )  # fmt: skip
    highest = (1 + TAIL * (1 - put_back(problem))) * schedule.noise(schedule.steps - 1)
    total, count = torch.zeros_like(halfway.low_rank), 0
    for step, state in enumerate(steps, schedule.steps // 2):
        leave_if_stopped()
        if schedule.noise(step) <= highest:
            total, count = total + images_of(problem, state), count + 1
    return total / count, state.low_rank, taken


@dataclass(frozen=True)
class Followed:
    """What came of the priors.

    Attributes
    ----------
    image
        complex `(frames, height, width)` of unit scale.
    low_rank
        the last low-rank images, before samples were put back; mixed in the same proportion as `image`; None if there
        are none.
    schedule
        what was decided; its errors are those of `mri.holdout.missing_error`.
    without
        the images without the held-out samples; None where there are none.
    log
        step, σ, step size and place in the cascade of every prior that was applied to the result.
    passes
        network passes per frame, those of all trials included, but not those of a run that was stopped.
    """

    image: Tensor
    low_rank: Tensor | None
    schedule: Schedule
    without: Tensor | None
    log: tuple[dict[str, float], ...] = ()
    passes: int = 0


def how_far(problem: Problem, held: Tensor, unit: Tensor, tried: Tensor) -> tuple[float, float]:
    """Share of the change from the OU's images to those with the priors that is applied, and the share of the squared
    held-out error that it removes; (0, 0) if the priors are not clearly better. `held`: samples that neither has seen.

    The least-squares fit is mostly too small: on seven rows it was 0.23 to 0.74, and going further gave a higher PSNR
    on six (benchmarks/results/priors.md). So the mean of the fit and 1 is tried first, then the fit.
    """
    samples, noise_std = (problem.model, problem.measured, held), problem.held_out_noise
    fit = fitted_step(*samples, unit, tried, noise_std)
    for far in ((1 + fit) / 2, fit):
        better = improvement(*samples, unit, unit + far * (tried - unit), noise_std)
        if better.share >= MARGIN and (better.is_clear or better.share > MUCH):
            return far, better.share
    return 0.0, 0.0


def held_out_error(problem: Problem, held: Tensor, image: Tensor, noise_std: float) -> float:
    """Standard deviation per real channel of the error in the missing samples, estimated at the samples `held`."""
    error = torch.where(held[:, None], problem.measured - problem.model.kspace(image), 0)
    return missing_error(error, held, problem.model.mask, noise_std)


def within_reach(problem: Problem, change: Tensor) -> Tensor:
    """The part of a change of the images that lies within REACH k-space samples of a sample of any frame.

    Elsewhere, as in the corners of radial scans or the omitted part of partial Fourier, no sample can confirm what a
    prior adds. Of several coils all is kept: their maps spread k-space, so that samples tell of what lies farther away.
    """
    if problem.model.coils > 1:
        return change
    sampled = problem.model.mask.any(dim=0)
    near = max_pool2d(sampled[None].float(), 2 * REACH + 1, 1, REACH)[0] > 0
    return change if near.all() else ifft2c(torch.where(near, fft2c(change), 0))


def cascade_in_turn(
    problem: Problem, priors: list[Prior], result: OUResult, seed: int, bar: tqdm | None = None
) -> Followed:
    """Apply the priors within the OU if they predict held-out samples better than the OU alone, as far as they do.

    They are tried without the held-out samples: all in turn and, if that is rejected, each alone, the last of the
    cascade (LM) first, as long as `PASSES` allows a trial and the final run; the first trial that is clearly better is
    followed. On a CPU of several cores the final run goes on beside the first trial, and is stopped if that is
    rejected. The sets `admission` and `settings` (`mri.holdout`) decide together: all images have the same settings of
    the OU, so `settings` favours none.
    """
    if result.held_out is None or result.without_held_out is None or not result.held_out.admission.any():
        return Followed(result.image, result.low_rank, Schedule(), result.without_held_out)
    assert result.halfway is not None and result.halfway_without is not None and result.low_rank is not None
    held, unit = result.held_out.admission | result.held_out.settings, result.without_held_out
    reduced = problem.restricted(result.held_out.kept)
    # if σ is only an upper bound, too much may be subtracted; the thresholds alone then set the noise levels
    middle, end = (
        held_out_error(problem, held, image, problem.noise_std) for image in (result.halfway_without.low_rank, unit)
    )

    def solve(one: Problem, places: tuple[int, ...], halfway: Iterate) -> tuple[Tensor, Tensor, list[dict[str, float]]]:
        own = [priors[place] for place in places]
        image, low_rank, taken = solve_in_turn(one, own, result, halfway, (middle, end), seed, bar)
        return image, low_rank, [{**step, "prior": places[int(step["prior"])]} for step in taken]

    schedules = [motion_schedule(one, result.settings.motion_steps) for one in (reduced, problem)]
    needed = sum(len(turns(schedule, len(priors))) for schedule in schedules)  # passes of a trial and the final run
    passes, far, share, every = 0, 0.0, 0.0, tuple(range(len(priors)))
    for places in dict.fromkeys([every, *((place,) for place in every[::-1])]):
        if places != every and passes + needed > PASSES:
            break
        if bar is not None:
            bar.total = bar.n + needed
        whole = partial(solve, problem, places, result.halfway)
        # after a rejection a further one is likely: then the final run waits
        with beside(whole, problem.measured.device) if places == every else nullcontext(whole) as final:
            tried, _, trial = solve(reduced, places, result.halfway_without)
            passes += len(trial)
            tried = unit + within_reach(problem, tried - unit)
            if trial:  # without passes, only the thresholds differ: keep the OU's result
                far, share = how_far(problem, held, unit, tried)
            if far:
                image, low_rank, taken = final()
                if not taken:  # no prior was applied: likewise
                    far = 0.0
                break
    before, count = held_out_error(problem, held, unit, problem.held_out_noise), int(held.sum())
    if not far:
        if bar is not None:
            bar.total = bar.n
            bar.refresh()
        schedule = Schedule((), (0.0,) * len(priors), before, count, before, before, 0.0)
        return Followed(result.image, result.low_rank, schedule, unit, passes=passes)
    # on average; 0 of a prior that was left out or does not know the noise levels of its turns
    own = [[one["step_size"] for one in taken if one["prior"] == place] for place in every]
    sizes = tuple(sum(each) / max(len(each), 1) for each in own)
    after, alone = before * (1 - share) ** 0.5, None if places == every else places[0]
    schedule = Schedule((), sizes, before, count, before, after, far, alone)
    image, low_rank = (
        unaided + far * within_reach(problem, aided - unaided)
        for unaided, aided in ((result.image, image), (result.low_rank, low_rank))
    )
    return Followed(image, low_rank, schedule, unit + far * (tried - unit), tuple(taken), passes + len(taken))
