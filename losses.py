"""What is minimised: denoising score matching, and the error that a cascade leaves; optimizer, average, update."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from datasets import PreparedScene
from models.context import Context, neighbours
from models.precision import Score
from mri.fourier import fft2c, ifft2c
from mri.weighting import from_channels, to_channels
from sde_lib import VESDE

Tensor = torch.Tensor

EPSILON_T = 1e-5  # smallest training time, as published
STEP_SHARE = 0.9  # of σ that the next step of a cascade is told, in training and in use
SMALL_ERROR = 0.005  # σ_c of `completion_loss`, in units of the scan's scale


class NoisyBatch(NamedTuple):
    """Clean data and the noise to add to it."""

    x: Tensor  # (batch, channels, height, width)
    z: Tensor  # standard normal, same shape
    sigma: Tensor  # (batch,)


def draw_noise(x: Tensor, sde: VESDE, generator: torch.Generator | None = None) -> NoisyBatch:
    """`x` with noise of levels σ(t), t uniform."""
    t = torch.rand(x.shape[0], generator=generator).to(x.device) * (1 - EPSILON_T) + EPSILON_T
    return NoisyBatch(x, torch.randn(x.shape, generator=generator).to(x), sde.sigma(t))


def dsm_loss(score: Score, batch: NoisyBatch) -> Tensor:
    """Σ ‖σ s(x + σ z, σ) + z‖² (Song et al. 2021, eq. 7, λ = σ²), to be divided by the number of elements.

    Per element, a score that knows nothing (s = 0) gives 1: the loss is the fraction of the noise left unexplained.

    Parameters
    ----------
    score
        maps noisy data `(batch, channels, height, width)` and σ `(batch,)` to scores of the data's shape.
    """
    level = batch.sigma[:, None, None, None]
    noisy = (batch.x + level * batch.z).contiguous(memory_format=torch.channels_last)
    return (level * score(noisy, batch.sigma) + batch.z).square().sum()


def advance(
    score: Score, scans: Sequence[PreparedScene], context: Context, sigmas: Sequence[float]
) -> list[PreparedScene]:
    """One step of a cascade on whole scans: D = x + σ² s(x, σ), then the measured samples put back.

    Parameters
    ----------
    score
        of x with its context channels, σ and the neighbours of every frame.
    sigmas
        of each scan, as the network is told it.
    """
    found = list(scans)
    for width in {scan.start.shape[-1] for scan in scans}:  # those of one width in one pass
        numbers = [i for i, scan in enumerate(scans) if scan.start.shape[-1] == width]
        changes = _changes(score, [scans[i] for i in numbers], context, [sigmas[i] for i in numbers])
        for i, change in zip(numbers, changes, strict=True):
            change = ifft2c(torch.where(scans[i].mask, 0, fft2c(change)))
            found[i] = replace(scans[i], start=scans[i].start + change)
    return found


def _changes(
    score: Score, scans: Sequence[PreparedScene], context: Context, sigmas: Sequence[float]
) -> Sequence[Tensor]:
    """σ² s(x, σ) of scans of one size, as images."""
    channels, indices, first = [], [], 0
    for scan, sigma in zip(scans, sigmas, strict=True):
        seen = context(scan.start, scan.mask, sigma, scan.periodic)
        channels.append(torch.cat([to_channels(scan.start), seen], dim=1))
        indices.append(first + neighbours(len(scan.start), scan.periodic, scan.start.device))
        first += len(scan.start)
    x = torch.cat(channels).contiguous(memory_format=torch.channels_last)
    levels = torch.cat([x.new_full((len(scan.start),), s) for scan, s in zip(scans, sigmas, strict=True)])
    change = levels[:, None, None] ** 2 * from_channels(score(x, levels, torch.cat(indices, dim=1)).float())
    return change.split([len(scan.start) for scan in scans])


def completion_loss(
    score: Score, scans: Sequence[PreparedScene], told: Sequence[float], context: Context, steps: int
) -> Tensor:
    """Squared error on the missing samples whose truth is known, left after each of `steps` steps: `(steps,)`.

    To be divided by `completion_size`: then 1 for a score that knows nothing (s = 0). The squared error of a scan
    counts by 1/(σ² + σ_c²), σ of its start: undivided, the few worst scans decide; divided by σ² alone, those that have
    hardly any error, and that of noise. The steps follow each other as in use, each told STEP_SHARE of the σ of the one
    before, and are trained through.

    Parameters
    ----------
    told
        factor between each scan's σ and what the network is told at the first step.
    """
    counts, losses = _counts(scans), []
    sigmas = [scan.error_std() * factor for scan, factor in zip(scans, told, strict=True)]
    for _ in range(steps):
        scans = advance(score, scans, context, sigmas)
        losses.append(_missing_error(scans, counts))
        sigmas = [STEP_SHARE * sigma for sigma in sigmas]
    return torch.stack(losses)


def completion_size(scans: Sequence[PreparedScene]) -> Tensor:
    """The same of the scans as they come."""
    return _missing_error(scans, _counts(scans))


def _counts(scans: Sequence[PreparedScene]) -> list[float]:
    return [1 / (scan.error_std() ** 2 + SMALL_ERROR**2) for scan in scans]


def _missing_error(scans: Sequence[PreparedScene], counts: list[float]) -> Tensor:
    return torch.stack([n * scan.missing_square() for scan, n in zip(scans, counts, strict=True)]).sum()


class ExponentialMovingAverage:
    """Running average of a network's trainable parameters, with the published warm-up of the decay."""

    def __init__(self, parameters: list[Tensor], decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        self.shadow_params = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, parameters: list[Tensor]) -> None:
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(self.shadow_params, [p.detach() for p in parameters], 1 - decay)

    @torch.no_grad()
    def copy_to(self, parameters: list[Tensor]) -> None:
        for parameter, shadow in zip(parameters, self.shadow_params, strict=True):
            parameter.copy_(shadow)

    def state_dict(self) -> dict:
        return {"decay": self.decay, "num_updates": self.num_updates, "shadow_params": self.shadow_params}

    def load_state_dict(self, state: dict) -> None:
        self.decay, self.num_updates = state["decay"], state["num_updates"]
        self.shadow_params = [s.clone() for s in state["shadow_params"]]


def make_optimizer(parameters: list[Tensor], optim) -> torch.optim.Adam:
    """Adam with the published constants of `config.optim`."""
    return torch.optim.Adam(parameters, lr=optim.lr, betas=(optim.beta1, 0.999), eps=optim.eps)


def optimize(
    optimizer: torch.optim.Adam, parameters: list[Tensor], optim, step: int, last_step: int | None = None
) -> float:
    """One update after `backward`: the rate of this step, gradient clipping. Returns the gradient norm.

    The rate warms up linearly, then stays or, with `optim.schedule` cosine, falls to 0 at `last_step`.
    """
    rate = optim.lr * min((step + 1) / max(optim.warmup, 1), 1.0)
    if optim.schedule == "cosine" and last_step:
        rate *= 0.5 * (1 + math.cos(math.pi * min(step / last_step, 1.0)))
    for group in optimizer.param_groups:
        group["lr"] = rate
    norm = torch.nn.utils.clip_grad_norm_(parameters, optim.grad_clip)
    optimizer.step()
    return norm.item()
