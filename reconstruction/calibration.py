"""Noise level and step size of each prior, cross-validated on held-out samples: priors that follow the OU."""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from models.prior import Prior
from mri.holdout import fitted_step, held_out_weight, improvement, missing_error
from mri.masks import is_lines
from reconstruction.optimization_unit import OUResult
from reconstruction.prepare import Problem

Tensor = torch.Tensor

ERROR_GAIN = 1.25  # σ given to the first prior, in units of the estimated error, which falls short
MARGIN = 0.01  # share of the squared held-out error that a prior must remove to be used


@dataclass(frozen=True)
class Step:
    """One step of the cascade: x ← x + step_size (D(x; σ) − x)."""

    prior: int  # its place in the cascade
    sigma: float
    step_size: float


@dataclass(frozen=True)
class Schedule:
    """Which prior is used, at which σ, how far.

    Attributes
    ----------
    steps
        of the priors that are used, in order.
    step_sizes
        of every prior, in turn with the OU the mean over its turns; 0 where it is rejected, left out, or knows none of
        the noise levels.
    error_std
        standard deviation per real channel of the start's error, estimated from the held-out samples.
    held_out
        number of held-out samples; 0 where the mask leaves none.
    error_before, error_after
        held-out error of the start, and after the priors; the noise of the samples is subtracted. Weighted as in
        `fit_prior`, or of priors in turn with the OU as `error_std`.
    followed
        share of the change from the start that is applied; below 1 only for priors in turn with the OU.
    alone
        place of the prior that is followed alone, because all together were rejected; else None.
    """

    steps: tuple[Step, ...] = ()
    step_sizes: tuple[float, ...] = ()
    error_std: float = 0.0
    held_out: int = 0
    error_before: float = 0.0
    error_after: float = 0.0
    followed: float = 0.0
    alone: int | None = None


@dataclass(frozen=True)
class HeldOutProblem:
    """What the priors are tested on: the OU's result without the held-out samples, and those."""

    reduced: Problem
    start: Tensor
    held: Tensor  # boolean (frames, ky, kx)
    problem: Problem  # with all samples
    follow_further: bool  # see `fit_prior`

    @property
    def count(self) -> int:
        return int(self.held.sum())

    def error(self, image: Tensor) -> Tensor:
        """y − A x at the held-out samples, else 0: `(frames, coils, ky, kx)`."""
        difference = self.problem.measured - self.reduced.model.kspace(image)
        return torch.where(self.held[:, None], difference, 0)

    def start_error_std(self) -> float:
        """Standard deviation per real channel of the start's error in the missing samples."""
        return missing_error(self.error(self.start), self.held, self.problem.model.mask, self.problem.held_out_noise)


@dataclass(frozen=True)
class PriorFit:
    """What one prior does to the held-out error."""

    image: Tensor  # after it
    sigma: float  # noise level left
    step_size: float  # 0 where it is rejected
    before: float
    after: float


def calibrate(
    problem: Problem, priors: list[Prior], result: OUResult, after_motion: bool, bar: tqdm | None = None
) -> tuple[Schedule, Tensor | None]:
    """Cross-validate the priors on the held-out samples for admission, in the order of the cascade.

    σ of the first prior is the start's held-out error times `ERROR_GAIN`. Each prior proposes a change D(x; σ) − x;
    its step size is the least-squares fit to the held-out error. A prior is rejected unless it removes `MARGIN` of the
    squared error, and more than two standard errors: less is chance, or lies in how held-out samples differ from
    missing ones.

    Parameters
    ----------
    result
        of the OU, with its images without the held-out samples.
    after_motion
        whether the OU followed the motion, see `fit_prior`.

    Returns
    -------
    the schedule, and the images after the accepted priors without the held-out samples (None where there are none).
    """
    if result.held_out is None or result.without_held_out is None or not result.held_out.admission.any():
        return Schedule(), result.without_held_out
    held, reduced, start = result.held_out.admission, problem.restricted(result.held_out.kept), result.without_held_out
    lines = is_lines(problem.model.mask)
    test = HeldOutProblem(reduced, start, held, problem, lines and not after_motion)
    error_std = test.start_error_std()
    image, sigma, fits, steps = start, ERROR_GAIN * error_std, [], []
    level = sigma
    for place, prior in enumerate(priors):
        fit = fit_prior(test, prior, image, sigma)
        if fit.step_size > 0:
            steps.append(Step(place, level, fit.step_size))
        level *= 1 - fit.step_size * (1 - prior.remaining)
        image, sigma = fit.image, fit.sigma
        fits.append(fit)
        if bar is not None:
            share = fit.after / max(fits[0].before, 1e-30)
            bar.set_postfix(held_out_error=f"{share:.3g}", sigma=f"{sigma:.3g}", step_size=f"{fit.step_size:.2f}")
            bar.update()
    sizes = tuple(fit.step_size for fit in fits)
    followed = float(any(sizes))
    schedule = Schedule(tuple(steps), sizes, error_std, test.count, fits[0].before, fits[-1].after, followed)
    return schedule, image


def fit_prior(test: HeldOutProblem, prior: Prior, image: Tensor, sigma: float) -> PriorFit:
    """Fit the step size of one prior with context.

    For masks of lines the held-out samples lie near DC: they show whether a prior helps, but hardly how far to follow
    it. In synthetic scenes the fit says 0.2 to 1 where the best is 0.95 on average (benchmarks/results/priors.md), so
    an accepted prior is followed by the mean of the fit and 1. That was measured after the OU `llr`; after `motion` the
    fit is used.
    """
    reduced, problem = test.reduced, test.problem
    change = reduced.model.unmeasured(prior.denoise(image, reduced.model, sigma, reduced.periodic) - image)
    samples = (problem.model, problem.measured, test.held)
    fit = fitted_step(*samples, image, image + change, problem.held_out_noise)
    # the next prior continues from the best image, not from the longer step
    best = image + fit * change
    gain = improvement(*samples, image, best, problem.held_out_noise)
    error = test.error(image)
    weight = held_out_weight(error, test.held, problem.held_out_noise)
    noise = problem.held_out_noise**2 * len(problem.model.maps) * (weight.square() * test.held).sum().item()
    before = max((weight * error).norm().square().item() - noise, 0.0) ** 0.5
    after = before * max(1 - gain.share, 0.0) ** 0.5
    if not gain.is_clear or gain.share < MARGIN:
        fit, after, best = 0.0, before, image
    step_size = (1 + fit) / 2 if test.follow_further and fit > 0 else fit
    return PriorFit(best, sigma * (1 - fit * (1 - prior.remaining)), step_size, before, after)
