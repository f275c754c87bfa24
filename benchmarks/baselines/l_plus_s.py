"""Low rank plus sparse: a background that repeats itself, and a motion with few temporal frequencies."""

import torch

from benchmarks.baselines.pogm import pogm
from reconstruction.optimization_unit import with_samples
from reconstruction.prepare import Problem

Tensor = torch.Tensor

STRENGTHS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)  # λ_L, in units of the start's largest singular value
SPARSE = 0.0025  # λ_S, in units of the scan's scale: Otazo's for cine


def l_plus_s(problem: Problem, strength: float, iterations: int = 200) -> Tensor:
    """min over L, S of ½‖A (L + S) − y‖² + λ_L ‖L‖_* + λ_S ‖T S‖₁ (Otazo, Candès & Sodickson 2015).

    L as a (time × space) Casorati matrix, T the orthonormal temporal Fourier transform. By POGM, as Lin & Fessler 2019,
    from L = view sharing, S = 0.

    Parameters
    ----------
    strength
        λ_L, in units of the largest singular value of the start. λ_S stays: the ratio of the two decides what is
        background and what is motion, and on phantoms it matters more than their size, by up to 3 dB.

    Returns
    -------
    L + S, without noise data consistent, complex `(frames, height, width)` of unit scale.
    """
    start = problem.view_sharing()
    largest = torch.linalg.matrix_norm(start.flatten(1), 2).item()
    parts = separate(start, problem, strength * largest, SPARSE, iterations)
    return with_samples(problem, parts.sum(dim=0))


def separate(start: Tensor, problem: Problem, lambda_l: float, lambda_s: float, iterations: int) -> Tensor:
    """The minimiser (L, S), `(2, frames, height, width)`, from L = `start`, S = 0."""
    model, measured = problem.model, problem.measured

    def gradient(parts: Tensor) -> Tensor:
        residual = model.adjoint(model.forward(parts.sum(dim=0)) - measured)
        return torch.stack((residual, residual))

    def prox(parts: Tensor, gamma: float) -> Tensor:
        low_rank = shrink_singular_values(parts[0], gamma * lambda_l)
        return torch.stack((low_rank, shrink_temporal_spectrum(parts[1], gamma * lambda_s)))

    # both parts see the same data: the Lipschitz constant is 2
    return pogm(gradient, prox, torch.stack((start, torch.zeros_like(start))), 0.5, iterations)


def shrink_singular_values(image: Tensor, threshold: float) -> Tensor:
    """Proximal map of threshold · ‖Casorati matrix of `image`‖_*; `(frames, height, width)`."""
    u, singular, vh = torch.linalg.svd(image.flatten(1), full_matrices=False)
    return ((u * (singular - threshold).clamp(min=0)) @ vh).reshape(image.shape)


def shrink_temporal_spectrum(image: Tensor, threshold: float) -> Tensor:
    """Proximal map of threshold · ‖temporal spectrum of `image`‖₁; `(frames, height, width)`."""
    spectrum = torch.fft.fft(image, dim=0, norm="ortho")
    return torch.fft.ifft(soft_threshold(spectrum, threshold), dim=0, norm="ortho")


def soft_threshold(value: Tensor, threshold: float) -> Tensor:
    """Complex values drawn towards 0 by `threshold`."""
    magnitude = value.abs().clamp(min=torch.finfo(value.real.dtype).tiny)
    return value * (1 - threshold / magnitude).clamp(min=0)
