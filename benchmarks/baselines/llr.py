"""Locally low rank: the time courses in a small patch are linear combinations of few."""

import torch

from mri.lowrank.locally import fista_locally_low_rank
from reconstruction.prepare import Problem

Tensor = torch.Tensor

STRENGTHS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)  # λ, in units of the scan's scale


def llr(problem: Problem, strength: float, patch: int = 8, iterations: int = 100) -> Tensor:
    """min over x of ½‖A x − y‖² + λ Σ ‖(time × space) matrix of each patch of x‖_* (Trzasko & Manduca 2011).

    By FISTA with a new patch grid each iteration, from view sharing.

    Parameters
    ----------
    strength
        λ, in units of the scan's scale.
    patch
        its side, pixels.

    Returns
    -------
    complex `(frames, height, width)` of unit scale, data consistent.
    """
    noise_floor = strength / (patch + problem.frames**0.5)  # from which the solver computes λ again
    start = problem.view_sharing()
    return fista_locally_low_rank(start, problem.model, problem.measured, noise_floor, (patch,), iterations)
