"""The variance-exploding SDE (Song et al. 2021, appendix C): dx = √(dσ²(t)/dt) dw."""

import math

import torch

from utils.errors import InputError

Tensor = torch.Tensor


class VESDE:
    """σ(t) = σ_min (σ_max/σ_min)^t for t in [0, 1], and its N discrete levels.

    Parameters
    ----------
    sigma_min, sigma_max
        noise levels in the units of the data (weighted k-space, see `KspaceWeight.data_std`).
    num_scales
        N, number of discrete levels of the sampler.
    """

    def __init__(self, sigma_min: float, sigma_max: float, num_scales: int = 1000) -> None:
        if not 0 < sigma_min < sigma_max:
            raise InputError(f"σ must satisfy 0 < sigma_min < sigma_max, not {sigma_min:g} and {sigma_max:g}.")
        if num_scales < 2:
            raise InputError(f"num_scales must be at least 2, not {num_scales}.")
        self.sigma_min, self.sigma_max, self.num_scales = sigma_min, sigma_max, num_scales

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise at time t: x(t) = x(0) + σ(t) z."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def discrete_sigmas(self) -> Tensor:
        """σ_0 = σ_min … σ_{N−1} = σ_max, evenly spaced in log σ: float32 `(num_scales,)`."""
        return torch.exp(torch.linspace(math.log(self.sigma_min), math.log(self.sigma_max), self.num_scales))
