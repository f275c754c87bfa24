"""Temporal total variation: every pixel changes in few steps."""

import torch

from benchmarks.baselines.unit_scale import solve_at_unit_scale
from mri.consistency import data_consistency
from mri.fourier import fft2c, ifft2c
from mri.interleave import pseudo_reference

Tensor = torch.Tensor

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # λ, in units of the scan's scale
BALANCE = 0.01  # τ·λ; 400 iterations then come within 1 % of the minimum, phantom and rat cine, all strengths


def temporal_tv(
    kspace: Tensor, mask: Tensor, strength: float, periodic: bool = False, iterations: int = 400
) -> Tensor:
    """min over x of ½‖M F x − y‖² + λ ‖D x‖₁, D the differences of successive frames, complex.

    By the primal-dual method of Chambolle & Pock 2011, in which the data term's proximal map is exact, from
    the nearest-in-time merge.

    Parameters
    ----------
    kspace, mask
        complex and boolean `(frames, height, width)`.
    strength
        λ, in units of the scan's scale.
    periodic
        whether the last frame is a neighbour of the first: then D has that difference too.

    Returns
    -------
    complex `(frames, height, width)`, in the scan's units, the measured samples put back.
    """

    def solve(measured: Tensor) -> Tensor:
        start = ifft2c(pseudo_reference(measured, mask, "nearest", periodic=periodic)[0])
        return minimise(start, measured, mask, strength, periodic, iterations)

    return solve_at_unit_scale(solve, kspace, mask)


def minimise(
    start: Tensor, measured: Tensor, mask: Tensor, strength: float, periodic: bool, iterations: int
) -> Tensor:
    """The minimiser x, `(frames, height, width)`, from x = `start`; p is the dual variable, |p| ≤ λ."""
    x = relaxed = start
    p = torch.zeros_like(differences(x, periodic))
    tau = BALANCE / strength  # p goes up to λ: the larger λ, the longer its steps σ must be
    sigma = 1 / (4 * tau)  # ‖D‖² ≤ 4
    for _ in range(iterations):
        p = p + sigma * differences(relaxed, periodic)
        p = p / (p.abs() / strength).clamp(min=1)
        previous = x
        moved = fft2c(x - tau * differences_adjoint(p, periodic))
        # argmin over k of ½‖M k − y‖² + ‖k − moved‖² / (2τ): soft data consistency
        x = ifft2c(data_consistency(moved, measured, mask, noise_std=1.0, prior_std=tau**0.5))
        relaxed = 2 * x - previous
    return x


def differences(image: Tensor, periodic: bool) -> Tensor:
    """D: x[t+1] − x[t], `(frames − 1, height, width)`; `periodic`: also x[0] − x[−1], `(frames, …)`."""
    if periodic:
        return torch.roll(image, -1, 0) - image
    return image[1:] - image[:-1]


def differences_adjoint(difference: Tensor, periodic: bool) -> Tensor:
    """Dᴴ: from the shape that `differences` returns to `(frames, height, width)`."""
    if periodic:
        return torch.roll(difference, 1, 0) - difference
    edge = torch.zeros_like(difference[:1])
    return torch.cat((edge, difference)) - torch.cat((difference, edge))
