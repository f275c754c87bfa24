"""What is minimised, by denoising score matching of frames and of moving scenes; optimizer, average, update."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from models.completion import State, tweedie_changes
from models.context import Context
from models.precision import Score
from sde_lib import VESDE

Tensor = torch.Tensor

EPSILON_T = 1e-5  # smallest training time, as published
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
