"""Random numbers for simulated images."""

import math

import torch
from torch.nn.functional import interpolate

Tensor = torch.Tensor


class Draw:
    """Random numbers of one scene, drawn on the CPU so that every device draws the same scene."""

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.generator, self.device = torch.Generator().manual_seed(seed), device

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def integer(self, low: int, high: int) -> int:
        """From low to high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def coin(self, probability: float) -> bool:
        return self.uniform(0, 1) < probability

    def choice(self, options):
        return options[self.integer(0, len(options) - 1)]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)

    def smooth(self, shape: tuple[int, int], cells: float) -> Tensor:
        """Smooth noise of unit variance with about `cells` bumps along the height: `shape`."""
        height, width = shape
        rows = max(2, min(round(cells), height))
        columns = max(2, min(round(cells * width / height), width))
        field = interpolate(self.normal(1, 1, rows, columns), shape, mode="bicubic", align_corners=True)[0, 0]
        return field / field.std().clamp(min=1e-6)
