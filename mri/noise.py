"""The noise level of a scan: from noise samples, or from the outermost samples of the readout.

σ is the standard deviation of a complex sample, E|n|² = σ², the same in k-space and, because the Fourier transform is
orthonormal, in the image. A network's σ is per real channel.
"""

import math

import torch

from mri.operators import ForwardModel

Tensor = torch.Tensor

EDGE = 0.06  # share of the readout at each end that holds hardly any signal
CHI_WARNING = 2.0  # see `misfit_warning`; silent with true maps at noise 0 to 0.05 of the peak
MODEL_ERROR = 0.05  # relative residual that a converged reconstruction may leave without noise


def per_channel(noise_std: float) -> float:
    """Standard deviation of the real and of the imaginary part, as networks count σ."""
    return noise_std / math.sqrt(2)


def std_of(samples: Tensor) -> float:
    """σ of complex noise samples of any shape."""
    return samples.abs().square().mean().sqrt().item()


def estimate_noise_std(kspace: Tensor, mask: Tensor) -> float:
    """σ from the outer k-space; signal there, and motion, raise the estimate.

    Two estimates, of which the smaller is taken: the power of the outermost readout samples, and the variance over
    time of outer locations that several frames measured, where what does not move cancels. Both are medians, which few
    large values do not move.

    Parameters
    ----------
    kspace
        complex `(frames, coils, ky, kx)` of white noise and signal, lines along kx.
    mask
        boolean `(frames, ky, kx)`.

    Returns
    -------
    σ in the units of `kspace`.
    """
    height, width = mask.shape[1:]
    columns = (torch.arange(width, device=mask.device) - width // 2).abs()
    rows = (torch.arange(height, device=mask.device) - height // 2).abs()
    far = (rows >= height // 4)[:, None] & (columns >= width // 4)
    outermost = (rows >= height // 4)[:, None] & (columns >= (0.5 - EDGE) * width)
    found = []
    for region in (mask & outermost, mask & far, mask):
        if region.any():
            power = kspace.abs().square().movedim(1, -1)[region]
            found.append(power.median() / _median_of_mean(torch.tensor(2.0)))
            break
    count = mask.sum(dim=0)
    repeated = (count > 1) & far
    if repeated.any():
        mean = kspace.sum(dim=0) / count.clamp(min=1)
        deviation = torch.where(mask[:, None], (kspace - mean).abs().square(), 0).sum(dim=(0, 1))
        freedom = 2.0 * (count - 1) * kspace.shape[1]
        variance = 2 * deviation[repeated] / freedom[repeated]
        found.append((variance / _median_of_mean(freedom[repeated])).median())
    return math.sqrt(min(float(one) for one in found)) if found else 0.0


def _median_of_mean(freedom: Tensor) -> Tensor:
    """Median over mean of a χ² distribution (Wilson and Hilferty 1931)."""
    return (1 - 2 / (9 * freedom)) ** 3


def chi(model: ForwardModel, image: Tensor, measured: Tensor, noise_std: float) -> float:
    """χ = ‖A x − y‖² / (σ² · number of samples): the residual in units of the noise.

    About 1 or below where the model fits; far above where coil maps do not fit the data. Infinite for σ = 0 unless
    the residual vanishes.
    """
    residual = (model.forward(image) - measured).abs().square().sum().item()
    expected = noise_std**2 * model.coils * int(model.mask.sum())
    if expected == 0:
        return math.inf if residual else 0.0
    return residual / expected


def misfit(model: ForwardModel, image: Tensor, measured: Tensor, noise_std: float) -> bool:
    """Whether the residual is larger than the noise and an imperfect convergence explain.

    The residual is compared with `CHI_WARNING` times the noise power, or with `MODEL_ERROR` of the data, whichever is
    larger.
    """
    residual = (model.forward(image) - measured).abs().square().sum().item()
    noise = noise_std**2 * model.coils * int(model.mask.sum())
    return residual > max(CHI_WARNING * noise, MODEL_ERROR**2 * measured.abs().square().sum().item())
