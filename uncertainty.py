"""Where a reconstruction is likely to be wrong: a standard deviation per pixel and frame, without a reference.

Two measurements of the scan itself make it. *Where*: noise of the size of the remaining error is put on the missing
samples and denoised again; what the prior cannot take away again (moving edges, details that no neighbour shows) is
what it cannot know, there and in the ghosts that the mask makes of it. *How much*: the remaining error on samples that
were hidden (see `trust.find_trust`).
"""

from collections.abc import Callable

import torch
from torch.nn.functional import avg_pool2d

from mri.fourier import ifft2c

Tensor = torch.Tensor

SHARPNESS = 2.5  # error ∝ spread^2.5: denoised noise never spreads evenly less than about ¾ of its mean
NEIGHBOURHOOD = 5  # pixels; a few samples do not give a variance per pixel


def deviation_map(
    kspace: Tensor,
    mask: Tensor,
    sigma: float,
    denoise: Callable[[Tensor, float], Tensor],
    samples: int,
    generator: torch.Generator,
) -> Tensor:
    """Standard deviation of the complex image error: `(frames, height, width)`, real, in the units of the scan.

    Parameters
    ----------
    kspace
        the result, complex `(frames, height, width)`.
    mask
        boolean, same shape: what is measured has no noise put on.
    sigma
        standard deviation of the remaining error per real channel; the map's mean square is 2 σ².
    denoise
        D(x; σ) on k-space.
    samples
        how many times, one pass per frame each; 2 at least.
    """
    noisy = []
    for _ in range(samples):
        noise = torch.view_as_complex(torch.randn(*kspace.shape, 2, generator=generator)).to(kspace)
        denoised = denoise(torch.where(mask, kspace, kspace + sigma * noise), sigma)
        noisy.append(ifft2c(torch.where(mask, kspace, denoised)))
    images = torch.stack(noisy)
    variance = (images - images.mean(dim=0)).abs().square().mean(dim=0)
    variance = avg_pool2d(variance[:, None], NEIGHBOURHOOD, 1, NEIGHBOURHOOD // 2, count_include_pad=False)[:, 0]
    spread = _aliased(variance**SHARPNESS, mask).sqrt()
    return spread * 2**0.5 * sigma / spread.square().mean().sqrt().clamp(min=1e-30)


def _aliased(variance: Tensor, mask: Tensor) -> Tensor:
    """Variance of a white image error of this variance once its measured samples are put right.

    The error that stays is Fᴴ (1 − M) F e, that is e convolved with the point spread h of the missing samples, so its
    variance is that of e convolved with |h|²: what is not known in one place shows as ghosts elsewhere.
    """
    height, width = mask.shape[-2:]
    spread = ifft2c((~mask).to(torch.complex64)).abs().square() / (height * width)
    centred = torch.fft.ifftshift(spread, dim=(-2, -1))
    both = torch.fft.rfft2(variance) * torch.fft.rfft2(centred)
    return torch.fft.irfft2(both, s=(height, width)).clamp(min=0)
