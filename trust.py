"""At which noise level, and how far, a scan can trust the priors: asked of samples hidden from them."""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from mri.holdout import hide, missing_error
from mri.interleave import pseudo_reference
from mri.masks import is_lines
from mri.weighting import DISTANCE_TO_DC, KspaceWeight
from optimization_unit import OptimizationUnit, with_periodicity
from priors import Prior

Tensor = torch.Tensor


def cascade_start(measured: Tensor, mask: Tensor, config, seed: int) -> Tensor:
    """k-space of unit scale that the few-step cascade starts from: the OU's, or without OU `sampling.start`."""
    if config.ou.after != "never":
        return OptimizationUnit(config, seed).alone(measured, mask, config.data.periodic)
    if config.sampling.start == "zero_filled":
        return measured
    return pseudo_reference(measured, mask, "nearest", periodic=config.data.periodic)[0]


@dataclass(frozen=True)
class Trust:
    """Where the priors enter, as measured on samples hidden from them."""

    sigma: float  # noise level that fits the start's error; 0 when no level helps
    alphas: tuple[float, ...]  # how far to follow a denoiser, 0 … 1: one for all, with context one per prior
    # standard deviation per real channel of the start's error, estimated; a little low where the hidden samples also
    # chose the OU's settings
    error: float
    hidden: int  # samples that were hidden; 0 when the mask leaves none to hide
    error_before: float  # weighted error of the OU on the hidden samples
    error_after: float  # the same after the denoisers


def find_trust(
    measured: Tensor,
    mask: Tensor,
    priors: list[Prior],
    config,
    seed: int,
    bar: tqdm | None = None,
    start: Tensor | None = None,
) -> Trust:
    """Choose σ_0 and α from the scan: hide samples, reconstruct without them, predict them.

    A denoiser proposes a change D − x; α is its least-squares fit to the error on the hidden samples, errors weighted
    by their distance to DC. A gain below a share of the error (`sampling.trust_margin`, `context_margin`) is chance, or
    lies in how hidden samples differ from missing ones, and does not count.

    Priors with context: σ_0 is the error that the hidden samples tell of, times `sampling.error_gain`; each prior in
    turn is asked, from what the one before it left. Of lines the hidden samples are near DC: they tell whether a prior
    helps, but little of how far to follow it (in synthetic scenes, where the fit says 0.2 to 1, the best is 0.95 on
    average, benchmarks/results/priors.md), so one that helps is followed by the mean of the fit and 1. That was
    measured after the OU `llr`; after `motion` a prior is followed by the fit.

    Priors without: their mean proposes at every level of `sampling.trust_levels`, and the level that explains most of
    the error wins.

    Parameters
    ----------
    measured
        complex `(frames, height, width)`, unit scale, 0 outside `mask`.
    bar
        progress bar to move on by one per pass.
    start
        the cascade's start without the hidden samples, where it is known (`optimization_unit.find_settings`).
    """
    config = with_periodicity(config, measured, mask)
    kept, hidden = hide(mask, seed=seed)
    if not hidden.any():
        return Trust(0.0, (), 0.0, 0, 0.0, 0.0)
    if start is None:
        start = cascade_start(torch.where(kept, measured, 0), kept, config, seed)
    question = Question(start, measured, kept, hidden, config)
    ask = _ask_in_turn if all(prior.context is not None for prior in priors) else _ask_at_levels
    return ask(question, priors, bar)


@dataclass
class Question:
    """What the priors are asked: the OU's result without the hidden samples, and those."""

    start: Tensor
    measured: Tensor
    kept: Tensor
    hidden: Tensor
    config: object

    def __post_init__(self) -> None:
        self.error = missing_error(self.measured - self.start, self.hidden, self.kept | self.hidden)
        self.count = int(self.hidden.sum())
        after_motion = self.config.ou.after != "never" and OptimizationUnit(self.config).operator == "motion"
        self.follow_further = is_lines(self.kept | self.hidden) and not after_motion

    def change(self, prior: Prior, kspace: Tensor, sigma: float) -> Tensor:
        """D − x of one prior, as k-space."""
        x = prior.weight(kspace)
        return prior.weight.inverse(prior.denoise(x, sigma, self.kept, self.config.data.periodic) - x)

    def fit(self, change: Tensor, kspace: Tensor, weight: KspaceWeight) -> tuple[float, float, float]:
        """α, and the weighted error on the hidden samples before and after following `change` by α."""
        error, change = weight(self.measured - kspace)[self.hidden], weight(change)[self.hidden]
        alpha = (torch.vdot(change, error).real / change.norm().square().clamp(min=1e-30)).clamp(0, 1)
        return alpha.item(), error.norm().item(), (error - alpha * change).norm().item()


@dataclass(frozen=True)
class Answer:
    """What a prior with context makes of the hidden samples, from what those before it left."""

    kspace: Tensor  # after it
    sigma: float  # noise level left
    alpha: float  # how far it was followed; 0 when it does not help
    before: float  # weighted error on the hidden samples
    after: float  # with the α that fits best


def answer(question: Question, prior: Prior, kspace: Tensor, sigma: float) -> Answer:
    """Ask one prior with context."""
    change = question.change(prior, kspace, sigma)
    fit, before, after = question.fit(change, kspace, DISTANCE_TO_DC)
    if after >= (1 - question.config.sampling.context_margin) * before:
        fit, after = 0.0, before
    # the next prior is asked from where this one is best on the hidden samples: beyond, it would have to mend that
    kspace = torch.where(question.kept, question.measured, kspace + fit * change)
    alpha = (1 + fit) / 2 if question.follow_further and fit > 0 else fit
    return Answer(kspace, sigma * (1 - fit * (1 - prior.remaining)), alpha, before, after)


def _ask_in_turn(question: Question, priors: list[Prior], bar: tqdm | None) -> Trust:
    first = question.config.sampling.error_gain * question.error
    kspace, sigma, answers = question.start, first, []
    for prior in priors:
        answers.append(answer(question, prior, kspace, sigma))
        kspace, sigma = answers[-1].kspace, answers[-1].sigma
        _tell(bar, answers[-1].after / max(answers[0].before, 1e-30), first, answers[-1].alpha)
    alphas = tuple(one.alpha for one in answers)
    errors = (answers[0].before, answers[-1].after)
    return Trust(first if any(alphas) else 0.0, alphas, question.error, question.count, *errors)


def _ask_at_levels(question: Question, priors: list[Prior], bar: tqdm | None) -> Trust:
    weight, margin = priors[-1].weight, question.config.sampling.trust_margin
    before = weight(question.measured - question.start)[question.hidden].norm().item()
    best = Trust(0.0, (0.0,), question.error, question.count, before, before)
    for factor in question.config.sampling.trust_levels:
        sigma = factor * weight.data_std
        change = torch.stack([question.change(prior, question.start, sigma) for prior in priors]).mean(dim=0)
        alpha, before, after = question.fit(change, question.start, weight)
        if after < min(best.error_after, (1 - margin) * before):
            best = Trust(sigma, (alpha,), question.error, question.count, before, after)
        _tell(bar, best.error_after / max(before, 1e-30), best.sigma, best.alphas[0])
    return best


def _tell(bar: tqdm | None, hidden_error: float, sigma: float, alpha: float) -> None:
    if bar is not None:
        bar.set_postfix(hidden_error=f"{hidden_error:.3g}", sigma=f"{sigma:.3g}", alpha=f"{alpha:.2f}")
        bar.update()
