"""Denoising score matching, the optimizer, and one training step."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from datasets import SceneBatch
from mri.fourier import fft2c
from mri.weighting import from_channels
from sde_lib import VESDE

Tensor = torch.Tensor
Score = Callable[[Tensor, Tensor], Tensor]

EPSILON_T = 1e-5  # smallest training time, as published
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


def denoise(score: Score, batch: SceneBatch) -> Tensor:
    """D = x + σ² s of the frames of a batch: complex `(batch, height, width)`."""
    channels = score(batch.x.contiguous(memory_format=torch.channels_last), batch.sigma)
    return batch.image + batch.sigma[:, None, None] ** 2 * from_channels(channels.float())


def completion_loss(score: Score, batch: SceneBatch) -> Tensor:
    """Squared error on the missing samples whose truth is known that the denoiser D = x + σ² s leaves.

    To be divided by `completion_size`: then 1 for a score that knows nothing (s = 0). The squared error of a frame
    counts by 1/(σ² + σ_c²): undivided, the few worst frames decide; divided by σ² alone, those that have hardly any
    error, and that of noise.
    """
    return _missing_error(denoise(score, batch), batch)


def completion_size(batch: SceneBatch) -> Tensor:
    """The same of the frames as they come."""
    return _missing_error(batch.image, batch)


def _missing_error(image: Tensor, batch: SceneBatch) -> Tensor:
    error = batch.weight * fft2c(image - batch.truth)
    return (torch.view_as_real(error).square().sum(dim=(1, 2, 3)) / (batch.sigma**2 + SMALL_ERROR**2)).sum()


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
