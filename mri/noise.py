"""The noise level of a scan: from noise samples, or from the outermost samples of the readout.

σ is the standard deviation of a complex sample, E|n|² = σ², the same in k-space and, because the Fourier transform is
orthonormal, in the image. A network's σ is per real channel.
"""

import math

import torch
from torch.nn.functional import avg_pool2d

from mri.fourier import ifft2c
from mri.operators import ForwardModel

Tensor = torch.Tensor

EDGE = 0.06  # share of the readout at each end that holds hardly any signal
ENOUGH = 50  # fewest samples, or degrees of freedom, for a median: with two it can be far too low
BLOCK, DARKEST = 12, 0.1  # pixels; share of the blocks of that size that count as dark
CHI_WARNING = 2.0  # see `misfit_warning`; silent with true maps at noise 0 to 0.05 of the peak
MODEL_ERROR = 0.05  # relative residual that a converged reconstruction may leave without noise


def per_channel(noise_std: float) -> float:
    """Standard deviation of the real and of the imaginary part, as networks count σ."""
    return noise_std / math.sqrt(2)


def std_of(samples: Tensor) -> float:
    """σ of complex noise samples of any shape."""
    return samples.abs().square().mean().sqrt().item()


def estimate_noise_std(kspace: Tensor, mask: Tensor) -> float:
    """σ from the scan itself: usually an upper bound, because signal and motion raise it.

    The smallest of four estimates, each of which contains signal of another kind:

    1. the power of the outermost readout samples;
    2. the variance over time of outer locations that several frames measured, where what does not move cancels;
    3. the difference of neighbouring frames at the outermost locations that both measured, where slow motion cancels;
    4. the power of the darkest part of the temporal mean image.

    The first three are medians over the samples, which few large values do not move, and root mean squares over the
    coils. The second needs ENOUGH degrees of freedom and the third ENOUGH samples; otherwise they are omitted.

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
    ky = ((torch.arange(height, device=mask.device) - height // 2).abs() / height)[:, None]
    kx = (torch.arange(width, device=mask.device) - width // 2).abs() / width
    far, outermost = (ky >= 0.25) & (kx >= 0.25), (ky >= 0.25) & (kx >= 0.5 - EDGE)
    found = []
    for region in (mask & outermost, mask & far, mask):
        if region.any():
            found.append(_median_power(kspace, region))
            break
    count = mask.sum(dim=0)
    mean = torch.where(mask[:, None], kspace, 0).sum(dim=0) / count.clamp(min=1)
    repeated = (count > 1) & far
    if (count[repeated] - 1).sum() >= ENOUGH:
        deviation = torch.where(mask[:, None], (kspace - mean).abs().square(), 0).sum(dim=0)
        freedom = 2.0 * (count[repeated] - 1)
        variance = 2 * deviation[:, repeated] / freedom
        found.append((variance / _median_of_mean(freedom)).median(dim=1).values.mean())
    differ = (kspace[1:] != kspace[:-1]).flatten(1).any(dim=1)  # a frame that is a copy says nothing of the noise
    both = mask[1:] & mask[:-1] & differ[:, None, None] & (torch.hypot(ky, kx) > 0.5 - 1.5 * EDGE)
    if both.sum() >= ENOUGH:
        found.append(_median_power((kspace[1:] - kspace[:-1]) / math.sqrt(2), both))
    if min(height, width) >= 2 * BLOCK:
        power = avg_pool2d(ifft2c(mean).abs().square()[:, None], BLOCK, BLOCK // 2).flatten(1)
        noise = torch.where(count > 0, 1 / count.clamp(min=1), 0).double().mean().item()  # variance of a pixel over σ²
        found.append(torch.quantile(power, DARKEST, dim=1).mean() / noise)
    return math.sqrt(min(float(one) for one in found)) if found else 0.0


def _median_power(kspace: Tensor, region: Tensor) -> Tensor:
    """σ² of complex noise from the median of |k|² in a region, boolean `(frames, ky, kx)`, as the mean over coils."""
    power = kspace.abs().square().movedim(1, -1)[region]
    return (power.median(dim=0).values / _median_of_mean(torch.tensor(2.0))).mean()


def _median_of_mean(freedom: Tensor) -> Tensor:
    """Median over mean of a χ² distribution (Wilson and Hilferty 1931)."""
    return (1 - 2 / (9 * freedom)) ** 3


def chi(model: ForwardModel, image: Tensor, measured: Tensor, noise_std: float) -> float:
    """χ² = ‖A x − y‖² / (σ² · number of samples), a reduced chi-squared: the residual in units of the noise.

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
