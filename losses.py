"""What is minimised: denoising score matching, and the error that a cascade leaves; optimizer, average, update."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from models.completion import STEP_SHARE, State, denoise_consistently, tweedie_changes
from models.context import Context
from models.precision import Score
from mri.fourier import fft2c
from mri.holdout import missing_error
from mri.operators import ForwardModel
from mri.weighting import RAMP_FILTER
from sde_lib import VESDE

Tensor = torch.Tensor

EPSILON_T = 1e-5  # smallest training time, as published
SMALL_ERROR = 0.005  # σ_c of `completion_loss`, in units of the scan's scale
BETAS, EPSILON, GRADIENT_CLIP = (0.9, 0.999), 1e-8, 1.0  # of Adam, as published


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


def scene_loss(score: Score, states: Sequence[State], clean: Sequence[Tensor], sigmas: Sequence[float],
               context: Context) -> Tensor:
    """`dsm_loss` of images with their neighbours: Σ ‖D(x; σ) − x₀‖²/σ², where D(x; σ) = x + σ² s(x; σ).

    Parameters
    ----------
    states
        noisy scenes x of unit scale.
    clean
        x₀ of each, complex `(frames, height, width)`.
    sigmas
        of each, per real channel.
    """
    losses = []
    for shape in dict.fromkeys(state.image.shape[1:] for state in states):  # those of one size share a pass
        own = [i for i, state in enumerate(states) if state.image.shape[1:] == shape]
        changes = tweedie_changes(score, [states[i] for i in own], context, [sigmas[i] for i in own])
        errors = [(states[i].image + change - clean[i]) / sigmas[i] for i, change in zip(own, changes, strict=True)]
        losses += [torch.view_as_real(error).square().sum() for error in errors]
    return torch.stack(losses).sum()


@dataclass(frozen=True)
class PreparedScene:
    """A scan of unit scale and the OU's result: what the cascade starts from.

    Attributes
    ----------
    truth
        coil images of the known samples, complex64 `(frames, coils, height, width)`; their k-space is 0 where the truth
        is unknown.
    start
        images that the OU makes of the samples in `mask`, complex64 `(frames, height, width)`.
    mask
        boolean `(frames, ky, kx)`: samples given to the OU.
    known
        boolean `(frames, ky, kx)`: samples whose truth is known; all in a synthetic scene.
    maps
        complex64 `(coils, height, width)`; ones for one coil.
    """

    truth: Tensor
    start: Tensor
    mask: Tensor
    known: Tensor
    maps: Tensor
    periodic: bool

    @property
    def state(self) -> State:
        """As a prior sees it."""
        return State(self.start, ForwardModel(self.mask, self.maps), self.periodic)

    def error(self, image: Tensor | None = None) -> Tensor:
        """k-space error of images (default: the start) at the missing samples whose truth is known, else 0."""
        image = self.start if image is None else image
        difference = fft2c(image[:, None] * self.maps - self.truth)
        return torch.where((self.known & ~self.mask)[:, None], difference, 0)

    def error_std(self) -> float:
        """Standard deviation per real channel and pixel of the start's error; an estimate where not all is known."""
        if self.known.all():
            return missing_std(self.error(), self.mask.numel()).item()
        return missing_error(-self.error(), self.known & ~self.mask, self.known)

    def missing_square(self, image: Tensor | None = None) -> Tensor:
        """Squared error of images (default: the start), summed over the missing samples whose truth is known.

        Held-out samples are weighted by their distance to DC: errors near DC, where few samples are missing, would
        dominate otherwise.
        """
        error = self.error(image)
        if not self.known.all():
            error = RAMP_FILTER(error)
        return torch.view_as_real(error).square().sum()


def missing_std(error: Tensor, pixels: int) -> Tensor:
    """Standard deviation per real channel of an image error, from its k-space at the missing samples."""
    return (error.abs().square().sum() / (2 * pixels)).sqrt().clamp(min=1e-6)


def completion_loss(
    score: Score, scenes: Sequence[PreparedScene], sigma_scales: Sequence[float], context: Context, steps: int,
    lowest: float = 0.0,
) -> Tensor:
    """Squared error at the missing samples whose truth is known, after each of `steps` steps: `(steps,)`.

    Divide by `completion_size`: then a score that knows nothing (s = 0) gives 1. The squared error of a scan counts by
    1/(σ² + σ_c²), σ of its start. Undivided, the few worst scans would dominate; divided by σ² alone, the noise of the
    best ones. The steps follow each other as in use, with `STEP_SHARE` of σ each time, and are trained through.

    Parameters
    ----------
    sigma_scales
        of each scan, the factor between its σ and the σ that the network is given at the first step.
    lowest
        smallest σ that the network is given.
    """
    weights, losses = _weights(scenes), []
    sigmas = [scene.error_std() * scale for scene, scale in zip(scenes, sigma_scales, strict=True)]
    states = [scene.state for scene in scenes]
    for _ in range(steps):
        states = denoise_consistently(score, states, context, sigmas, lowest)
        errors = [n * scene.missing_square(s.image) for n, scene, s in zip(weights, scenes, states, strict=True)]
        losses.append(torch.stack(errors).sum())
        sigmas = [STEP_SHARE * sigma for sigma in sigmas]
    return torch.stack(losses)


def completion_size(scenes: Sequence[PreparedScene]) -> Tensor:
    """The same of the scans as they come."""
    weights = _weights(scenes)
    return torch.stack([n * scene.missing_square() for n, scene in zip(weights, scenes, strict=True)]).sum()


def _weights(scenes: Sequence[PreparedScene]) -> list[float]:
    return [1 / (scene.error_std() ** 2 + SMALL_ERROR**2) for scene in scenes]


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


def make_optimizer(parameters: list[Tensor], lr: float) -> torch.optim.Adam:
    """Adam with the published constants."""
    return torch.optim.Adam(parameters, lr=lr, betas=BETAS, eps=EPSILON)


def optimize(
    optimizer: torch.optim.Adam, parameters: list[Tensor], optim: Any, step: int, last_step: int | None = None
) -> float:
    """One update after `backward`: the rate of this step, gradient clipping. Returns the gradient norm.

    The rate warms up linearly, then stays or, with `optim.schedule` cosine, falls to 0 at `last_step`. `optim` are
    `training.settings.OptimSettings`.
    """
    rate = optim.lr * min((step + 1) / max(optim.warmup, 1), 1.0)
    if optim.schedule == "cosine" and last_step:
        rate *= 0.5 * (1 + math.cos(math.pi * min(step / last_step, 1.0)))
    for group in optimizer.param_groups:
        group["lr"] = rate
    norm = torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)
    optimizer.step()
    return norm.item()
