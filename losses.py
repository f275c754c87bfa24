"""Denoising score matching, the optimizer, and one training step."""

from collections.abc import Callable

import torch

from sde_lib import VESDE

Tensor = torch.Tensor
Score = Callable[[Tensor, Tensor], Tensor]

EPSILON_T = 1e-5  # smallest training time, as published


def dsm_loss(score: Score, x: Tensor, sde: VESDE, generator: torch.Generator | None = None) -> Tensor:
    """E ‖σ s(x + σ z, σ) + z‖² per element, t uniform (Song et al. 2021, eq. 7, λ = σ²).

    A score that knows nothing (s = 0) gives 1; the loss is the fraction of the noise left unexplained.

    Parameters
    ----------
    score
        maps noisy data `(batch, channels, height, width)` and σ `(batch,)` to scores of the data's shape.
    x
        clean data of that shape.
    """
    t = torch.rand(x.shape[0], generator=generator).to(x.device) * (1 - EPSILON_T) + EPSILON_T
    z = torch.randn(x.shape, generator=generator).to(x)
    sigma = sde.sigma(t)
    level = sigma[:, None, None, None]
    return (level * score(x + level * z, sigma) + z).square().mean()


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


def optimize(optimizer: torch.optim.Adam, parameters: list[Tensor], optim, step: int) -> float:
    """One update after `backward`: linear warm-up of the rate, gradient clipping. Returns the gradient norm."""
    for group in optimizer.param_groups:
        group["lr"] = optim.lr * min((step + 1) / max(optim.warmup, 1), 1.0)
    norm = torch.nn.utils.clip_grad_norm_(parameters, optim.grad_clip)
    optimizer.step()
    return norm.item()
