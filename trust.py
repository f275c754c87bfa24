"""At which noise level, and how far, a scan can trust the priors: asked of samples hidden from them."""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from mri.holdout import hide
from mri.interleave import pseudo_reference
from mri.weighting import KspaceWeight
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
    alpha: float  # how far to follow the denoiser, 0 … 1
    error: float  # standard deviation per real channel of the start's error, estimated
    hidden: int  # samples that were hidden; 0 when the mask leaves none to hide
    error_before: float  # weighted error of the OU on the hidden samples
    error_after: float  # the same after the denoiser


def find_trust(
    measured: Tensor, mask: Tensor, priors: list[Prior], config, seed: int, bar: tqdm | None = None
) -> Trust:
    """Choose σ_0 and α from the scan: hide samples, reconstruct without them, predict them.

    At every level tried, a denoiser proposes a change D − x of the OU's result x; α is its least-squares fit to
    the error on the hidden samples, errors weighted by their distance to DC. The level that explains most of that
    error wins, if it explains `sampling.trust_margin` of it. Priors without context: the levels are
    `sampling.trust_levels`, the proposal is their mean. Priors with context: the levels are `sampling.error_levels`
    times the error that the hidden samples tell of, and the first prior proposes.

    Parameters
    ----------
    measured
        complex `(frames, height, width)`, unit scale, 0 outside `mask`.
    bar
        progress bar to move on by one per level.
    """
    config = with_periodicity(config, measured, mask)
    kept, hidden = hide(mask, seed=seed)
    if not hidden.any():
        return Trust(0.0, 0.0, 0.0, 0, 0.0, 0.0)
    start = cascade_start(torch.where(kept, measured, 0), kept, config, seed)
    with_context = all(prior.context is not None for prior in priors)
    weight = KspaceWeight(power=1.0, gain=1.0, data_std=1.0) if with_context else priors[-1].weight
    error = weight(measured - start)[hidden]
    before = error.norm().item()
    estimate = missing_error(measured - start, hidden, mask)
    count = int(hidden.sum())
    best = Trust(0.0, 0.0, estimate, count, before, before)
    if with_context:
        level, factors = estimate, config.sampling.error_levels
    else:
        level, factors = priors[-1].weight.data_std, config.sampling.trust_levels
    for factor in factors:
        asked = priors[:1] if with_context else priors
        proposal = torch.stack([
            _proposed_change(prior, start, factor * level, kept, config.data.periodic) for prior in asked
        ]).mean(dim=0)
        change = weight(proposal)[hidden]
        alpha = (torch.vdot(change, error).real / change.norm().square().clamp(min=1e-30)).clamp(0, 1)
        after = (error - alpha * change).norm().item()
        # a gain smaller than the margin is chance, or lies in how hidden samples differ from missing ones
        if after < min(best.error_after, (1 - config.sampling.trust_margin) * before):
            best = Trust(factor * level, alpha.item(), estimate, count, before, after)
        if bar is not None:
            told = {"hidden_error": best.error_after / max(before, 1e-30), "sigma": best.sigma, "alpha": best.alpha}
            bar.set_postfix({name: f"{value:.3g}" for name, value in told.items()})
            bar.update()
    return best


def missing_error(error: Tensor, hidden: Tensor, mask: Tensor) -> float:
    """Standard deviation per real channel and pixel of the image error in the missing samples.

    Estimated from the error on the hidden ones, whose mean square is taken to fall as 1/r² with the distance r to
    DC, as that of the signal itself does.
    """
    weight = KspaceWeight(power=1.0, gain=1.0, data_std=1.0)
    level = weight(error)[hidden].abs().square().mean()
    falling = weight.on(error).expand(error.shape)[~mask].square().reciprocal().sum()
    return (level * falling / (2 * error.numel())).sqrt().item()


def _proposed_change(prior: Prior, kspace: Tensor, sigma: float, mask: Tensor, periodic: bool) -> Tensor:
    """D − x of one prior, as k-space."""
    x = prior.weight(kspace)
    return prior.weight.inverse(prior.denoise(x, sigma, mask, periodic) - x)
