"""At which noise level the priors start, and how far each is followed: cross-validated on held-out samples."""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from models.prior import Prior
from mri.holdout import hold_out, missing_error
from mri.masks import is_lines
from mri.weighting import RAMP_FILTER
from reconstruction.prepare import Problem

Tensor = torch.Tensor

ERROR_GAIN = 1.25  # σ given to the first prior, in units of the estimated error, which falls short
MARGIN = 0.005  # share of the held-out error that a prior must remove to be used


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
        of every prior; 0 where it is rejected.
    error_std
        standard deviation per real channel of the start's error, estimated from the held-out samples. Somewhat low
        where the same samples chose the OU's settings.
    held_out
        number of held-out samples; 0 where the mask leaves none.
    error_before, error_after
        ramp-weighted held-out error of the start, and after the priors.
    """

    steps: tuple[Step, ...] = ()
    step_sizes: tuple[float, ...] = ()
    error_std: float = 0.0
    held_out: int = 0
    error_before: float = 0.0
    error_after: float = 0.0

    def remaining_error(self, priors: list[Prior]) -> float:
        """Standard deviation per real channel of the error that the priors leave, as in their training."""
        left = ERROR_GAIN * self.error_std
        for step in self.steps:
            left *= 1 - step.step_size * (1 - priors[step.prior].remaining)
        return left


@dataclass(frozen=True)
class HeldOutProblem:
    """What the priors are tested on: the OU's result without the held-out samples, and those."""

    reduced: Problem
    start: Tensor
    held: Tensor  # boolean (frames, ky, kx)
    measured: Tensor  # y of all samples
    follow_further: bool  # see `fit_prior`

    @property
    def count(self) -> int:
        return int(self.held.sum())

    def error(self, image: Tensor) -> Tensor:
        """y − A x at the held-out samples, else 0: `(frames, coils, ky, kx)`."""
        difference = self.measured - self.reduced.model.kspace(image)
        return torch.where(self.held[:, None], difference, 0)

    def start_error_std(self) -> float:
        """Standard deviation per real channel of the start's error in the missing samples."""
        return missing_error(self.error(self.start), self.held, self.reduced.model.mask | self.held)


@dataclass(frozen=True)
class PriorFit:
    """What one prior does to the held-out error."""

    image: Tensor  # after it
    sigma: float  # noise level left
    step_size: float  # 0 where it is rejected
    before: float
    after: float


def calibrate(
    problem: Problem,
    priors: list[Prior],
    start: Tensor,
    after_motion: bool,
    seed: int,
    bar: tqdm | None = None,
) -> Schedule:
    """Cross-validate the priors on held-out samples, in the order of the cascade.

    σ of the first prior is the start's held-out error times `ERROR_GAIN`. Each prior proposes a change D(x; σ) − x;
    its step size is the least-squares fit to the held-out error, weighted by the distance to DC. A prior that removes
    less than `MARGIN` of the error is rejected: that is chance, or lies in how held-out samples differ from missing
    ones.

    Parameters
    ----------
    start
        images of the OU without the held-out samples (`mri.holdout.hold_out` with `seed`).
    after_motion
        whether the OU followed the motion, see `fit_prior`.
    """
    kept, held = hold_out(problem.model.mask, seed=seed)
    if not held.any():
        return Schedule()
    lines = is_lines(problem.model.mask)
    test = HeldOutProblem(problem.restricted(kept), start, held, problem.measured, lines and not after_motion)
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
    return Schedule(tuple(steps), sizes, error_std, test.count, fits[0].before, fits[-1].after)


def fit_prior(test: HeldOutProblem, prior: Prior, image: Tensor, sigma: float) -> PriorFit:
    """Fit the step size of one prior with context.

    For masks of lines the held-out samples lie near DC: they show whether a prior helps, but hardly how far to follow
    it. In synthetic scenes the fit says 0.2 to 1 where the best is 0.95 on average (benchmarks/results/priors.md), so
    an accepted prior is followed by the mean of the fit and 1. That was measured after the OU `llr`; after `motion` the
    fit is used.
    """
    reduced = test.reduced
    change = prior.denoise(image, reduced.model, sigma, reduced.periodic) - image
    held = test.held[:, None]
    error = RAMP_FILTER(test.error(image))
    effect = RAMP_FILTER(torch.where(held, reduced.model.kspace(change), 0))
    overlap = torch.vdot(effect.flatten(), error.flatten()).real
    fit = (overlap / effect.norm().square().clamp(min=1e-30)).clamp(0, 1).item()
    # the next prior continues from the best image, not from the longer step
    best = reduced.model.consistent(image + fit * change, reduced.measured)
    # with several coils the gradient step changes the held-out samples too, so the error is measured after it
    before, after = error.norm().item(), RAMP_FILTER(test.error(best)).norm().item()
    if after >= (1 - MARGIN) * before:
        fit, after, best = 0.0, before, image
    step_size = (1 + fit) / 2 if test.follow_further and fit > 0 else fit
    return PriorFit(best, sigma * (1 - fit * (1 - prior.remaining)), step_size, before, after)
