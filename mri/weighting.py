"""Weighted k-space: what the networks see (paper, section 2.3; WKGM)."""

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch

from utils.errors import InputError

Tensor = torch.Tensor

PART = 256  # frames read at a time
FLOOR = 0.5  # samples; keeps the weight above zero at DC, so that weighting can be undone


@dataclass(frozen=True)
class KspaceWeight:
    """w(r) = gain · max(r, ½)^power, r the distance to DC in samples; multiplies a scan of unit scale.

    `gain` is chosen so that the weighted training data have standard deviation `data_std` per real channel:
    noise levels of the diffusion then mean the same for every scan, size and Fourier convention.
    """

    power: float
    gain: float
    data_std: float

    @classmethod
    def none(cls) -> "KspaceWeight":
        """No weight, of networks that see images."""
        return cls(power=0.0, gain=1.0, data_std=1.0)

    @classmethod
    def fit(cls, kspace: Tensor | np.ndarray, power: float, data_std: float) -> "KspaceWeight":
        """The weight under which `kspace` `(N, height, width)`, of scans of unit scale, has `data_std`.

        Read in parts, so that it may be memory-mapped.
        """
        unit, total, count = cls(power, 1.0, data_std), 0.0, 0
        for first in range(0, len(kspace), PART):
            part = kspace[first : first + PART]
            part = torch.from_numpy(part.copy()) if isinstance(part, np.ndarray) else part
            total += unit(part).abs().double().square().sum().item()
            count += part.numel()
        std = math.sqrt(total / (2 * count)) if count else 0.0
        if not math.isfinite(std) or std == 0:
            raise InputError("the k-space to weight is empty, zero or not finite; check the training scans.")
        return cls(power, data_std / std, data_std)

    @classmethod
    def published(cls) -> "KspaceWeight":
        """The published w = 0.011·r/96 on the unnormalised FFT of 192×192 images, in orthonormal units."""
        return cls(power=1.0, gain=0.011 / 96 * 192, data_std=0.036)

    def on(self, kspace: Tensor) -> Tensor:
        """The weight on the grid of `kspace`: float32 `(height, width)`."""
        height, width = kspace.shape[-2:]
        ky = torch.arange(height, device=kspace.device) - height // 2
        kx = torch.arange(width, device=kspace.device) - width // 2
        radius = torch.sqrt((ky[:, None] ** 2 + kx[None, :] ** 2).float())
        return self.gain * radius.clamp(min=FLOOR) ** self.power

    def __call__(self, kspace: Tensor) -> Tensor:
        """Weighted k-space; complex `(..., height, width)`."""
        return kspace * self.on(kspace)

    def inverse(self, weighted: Tensor) -> Tensor:
        """k-space of weighted k-space."""
        return weighted / self.on(weighted)

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


# weight of errors at held-out samples: without it, errors near DC, which is never missing, would dominate
RAMP_FILTER = KspaceWeight(power=1.0, gain=1.0, data_std=1.0)


def to_channels(kspace: Tensor) -> Tensor:
    """complex `(frames, height, width)` → real `(frames, 2, height, width)`."""
    return torch.stack((kspace.real, kspace.imag), dim=1)


def from_channels(channels: Tensor) -> Tensor:
    """real `(frames, 2, height, width)` → complex `(frames, height, width)`."""
    return torch.complex(channels[:, 0].contiguous(), channels[:, 1].contiguous())
