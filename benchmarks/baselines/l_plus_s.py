"""Low rank plus sparse: a background that repeats itself, and a motion with few temporal frequencies."""

import torch

from benchmarks.baselines.pogm import pogm
from benchmarks.baselines.unit_scale import solve_at_unit_scale
from mri.fourier import fft2c, ifft2c
from mri.interleave import pseudo_reference

Tensor = torch.Tensor

STRENGTHS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)  # λ_S, in units of the scan's scale
LOW_RANK = 1.0  # λ_L = LOW_RANK · λ_S · σ₁


def l_plus_s(
    kspace: Tensor, mask: Tensor, strength: float, periodic: bool = False, iterations: int = 100
) -> Tensor:
    """min over L, S of ½‖M F (L + S) − y‖² + λ_L ‖L‖_* + λ_S ‖T S‖₁ (Otazo, Candès & Sodickson 2015).

    L as a (time × space) Casorati matrix, T the orthonormal temporal Fourier transform. By POGM, as
    Lin & Fessler 2019, from L = the nearest-in-time merge, S = 0.

    Parameters
    ----------
    kspace, mask
        complex and boolean `(frames, height, width)`.
    strength
        λ_S, in units of the scan's scale; λ_L = `LOW_RANK` · λ_S · σ₁, σ₁ the largest singular value of the
        start. Tied, so that one number is swept, as for the other methods.
    periodic
        whether the last frame is a neighbour of the first, for the start alone (T always takes it so).

    Returns
    -------
    L + S with the measured samples put back, complex `(frames, height, width)`, in the scan's units.
    """

    def solve(measured: Tensor) -> Tensor:
        start = ifft2c(pseudo_reference(measured, mask, "nearest", periodic=periodic)[0])
        largest = torch.linalg.matrix_norm(start.flatten(1), 2).item()
        lambda_l, lambda_s = LOW_RANK * strength * largest, strength

        def gradient(parts: Tensor) -> Tensor:
            residual = ifft2c(torch.where(mask, fft2c(parts.sum(dim=0)) - measured, 0))
            return torch.stack((residual, residual))

        def prox(parts: Tensor, gamma: float) -> Tensor:
            low_rank = shrink_singular_values(parts[0], gamma * lambda_l)
            return torch.stack((low_rank, shrink_temporal_spectrum(parts[1], gamma * lambda_s)))

        # both parts see the same data: the Lipschitz constant is 2
        parts = pogm(gradient, prox, torch.stack((start, torch.zeros_like(start))), 0.5, iterations)
        return parts.sum(dim=0)

    return solve_at_unit_scale(solve, kspace, mask)


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
