"""OU and priors in turn, within one iteration: the cascade of the paper with priors of moving scenes.

The OU exploits what repeats along the motion, the priors what moving images look like. In the later half of the OU's
steps a prior is applied after every second one, at the noise level that corresponds to the step's threshold: GM first,
where the level is high, LM at the end. Data consistency follows each time.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tqdm import tqdm

from models.prior import Prior
from mri.holdout import improvement, missing_error
from mri.lowrank.along_motion import Iterate, motion_low_rank
from mri.lowrank.along_motion import Schedule as LowRankSchedule
from reconstruction.calibration import Schedule
from reconstruction.optimization_unit import OUResult, motion_schedule, put_back
from reconstruction.prepare import Problem

Tensor = torch.Tensor

EVERY = 2  # steps of the OU from one prior to the next
EARLY = 0.125  # share of the turns for each prior but the last
NOISE_SHARE = 0.5  # σ per real channel that a prior is given, of the step's noise level ν per pixel
STEP_SIZE = 0.5  # how far a prior is followed: wholly, it smooths (benchmarks/results/priors.md)
GENTLE = 0.006  # σ above which it is followed less far, as 1/σ: the more noise, the more it smooths
MARGIN = 0.02  # share of the squared held-out error that the priors must remove, by two standard errors: less is chance
MUCH = 0.1  # share that is no chance, though a few lines of unlike energy have a large standard error


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


def follow_priors(
    priors: list[Prior], schedule: LowRankSchedule, periodic: bool, bar: tqdm | None = None,
    taken: list[dict[str, float]] | None = None,
) -> Callable[[Tensor, float, int], Tensor]:
    """x ← x + a(σ) (D(x; σ) − x) after the low-rank steps of `turns`, D the denoiser of GM or LM (Tweedie).

    Step, σ, a and the prior's place in the cascade are added to `taken` each time.
    """
    own = turns(schedule, len(priors))

    def follow(x: Tensor, nu: float, step: int) -> Tensor:
        if step not in own:
            return x
        prior, sigma = priors[own[step]], NOISE_SHARE * nu
        if not prior.sigma_min <= sigma <= prior.sigma_max:  # where it was not trained it would only smooth
            return x
        size = step_size(sigma)
        if taken is not None:
            taken.append({"step": step, "sigma": sigma, "step_size": size, "prior": own[step]})
        if bar is not None:
            bar.set_postfix(sigma=f"{sigma:.3g}")
            bar.update()
        return x + size * prior.change(x, sigma, periodic)

    return follow


def solve_in_turn(
    problem: Problem, priors: list[Prior], result: OUResult, halfway: Iterate, seed: int, bar: tqdm | None = None
) -> tuple[Tensor, list[dict[str, float]]]:
    """The later half of the OU's steps from the state `halfway`, with the priors.

    Returns
    -------
    images `(frames, height, width)`, and step, σ, step size and place of every prior that was applied.
    """
    schedule = motion_schedule(problem, result.settings.motion_steps)
    taken: list[dict[str, float]] = []
    follow = follow_priors(priors, schedule, problem.periodic, bar, taken)
    steps = motion_low_rank(
        halfway, problem.model, problem.measured, result.settings.motion_patches, schedule, problem.periodic, seed,
        follow, schedule.steps // 2,
    )  # fmt: skip
    (last,) = deque(steps, maxlen=1)
    return last.low_rank + put_back(problem) * (last.consistent - last.low_rank), taken


@dataclass(frozen=True)
class Followed:
    """What came of the priors.

    Attributes
    ----------
    image
        complex `(frames, height, width)` of unit scale.
    schedule
        what was decided; its errors are those of `mri.holdout.missing_error`.
    without
        the images without the held-out samples; None where there are none.
    log
        step, σ, step size and place in the cascade of every prior that was applied to the result.
    passes
        network passes per frame, those of the trial included.
    """

    image: Tensor
    schedule: Schedule
    without: Tensor | None
    log: tuple[dict[str, float], ...] = ()
    passes: int = 0


def cascade_in_turn(
    problem: Problem, priors: list[Prior], result: OUResult, seed: int, bar: tqdm | None = None
) -> Followed:
    """Follow the priors within the OU where that predicts held-out samples better than the OU alone.

    Tried without the held-out samples first; the samples for admission decide (`mri.holdout.hold_out_sets`).
    """
    if result.held_out is None or result.without_held_out is None or not result.held_out.admission.any():
        return Followed(result.image, Schedule(), result.without_held_out)
    assert result.halfway is not None and result.halfway_without is not None
    held, reduced = result.held_out.admission, problem.restricted(result.held_out.kept)
    if bar is not None:
        schedules = (motion_schedule(one, result.settings.motion_steps) for one in (reduced, problem))
        bar.total = sum(len(turns(schedule, len(priors))) for schedule in schedules)
    without, tried = solve_in_turn(reduced, priors, result, result.halfway_without, seed, bar)
    noise_std = problem.held_out_noise
    better = improvement(problem.model, problem.measured, held, result.without_held_out, without, noise_std)
    error = torch.where(held[:, None], problem.measured - reduced.model.kspace(result.without_held_out), 0)
    before = missing_error(error, held, problem.model.mask, noise_std)
    count = int(held.sum())
    if better.share < MARGIN or not (better.is_clear or better.share > MUCH):
        schedule = Schedule((), (0.0,) * len(priors), before, count, before, before)
        return Followed(result.image, schedule, result.without_held_out, passes=len(tried))
    image, taken = solve_in_turn(problem, priors, result, result.halfway, seed, bar)
    # on average; 0 of a prior that does not know the noise levels of its turns
    own = [[one["step_size"] for one in taken if one["prior"] == place] for place in range(len(priors))]
    sizes = tuple(sum(each) / max(len(each), 1) for each in own)
    schedule = Schedule((), sizes, before, count, before, before * (1 - better.share) ** 0.5)
    return Followed(image, schedule, without, tuple(taken), len(tried) + len(taken))
