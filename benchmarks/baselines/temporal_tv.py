"""Temporal total variation: the time course of a pixel is piecewise constant."""

import torch

from reconstruction.optimization_unit import with_samples
from reconstruction.prepare import Problem

Tensor = torch.Tensor

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # λ, in units of the scan's scale
BALANCE = 0.01  # τ·λ; 400 iterations then come within 1 % of the minimum, phantom and rat cine, all strengths


def temporal_tv(problem: Problem, strength: float, iterations: int = 400) -> Tensor:
    """min over x of ½‖A x − y‖² + λ ‖D x‖₁, D the differences of successive frames, complex.

    By the primal-dual method of Chambolle & Pock 2011, with the data term's proximal map, from view sharing.

    Parameters
    ----------
    strength
        λ, in units of the scan's scale.

    Returns
    -------
    complex `(frames, height, width)` of unit scale; without noise data consistent.
    """
    image = minimise(problem.view_sharing(), problem, strength, iterations)
    return with_samples(problem, image)


def minimise(start: Tensor, problem: Problem, strength: float, iterations: int) -> Tensor:
    """The minimiser x, `(frames, height, width)`, from x = `start`; p is the dual variable, |p| ≤ λ."""
    periodic = problem.periodic
    x = relaxed = start
    p = torch.zeros_like(differences(x, periodic))
    tau = BALANCE / strength  # p goes up to λ: the larger λ, the longer its steps σ must be
    sigma = 1 / (4 * tau)  # ‖D‖² ≤ 4
    for _ in range(iterations):
        p = p + sigma * differences(relaxed, periodic)
        p = p / (p.abs() / strength).clamp(min=1)
        previous = x
        # argmin over u of ½‖A u − y‖² + ‖u − v‖² / (2τ)
        moved = x - tau * differences_adjoint(p, periodic)
        x = problem.model.proximal(moved, problem.measured, 1.0, tau**0.5, tolerance=1e-3)
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
