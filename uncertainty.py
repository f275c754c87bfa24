"""Where a reconstruction is likely to be wrong: a standard deviation per pixel and frame, without a reference.

Two measurements of the scan itself make it. *Where*: noise of the size of the remaining error is put on the missing
samples and denoised again; what the prior cannot take away again (moving edges, details that no neighbour shows) is
what it cannot know. *How much*: the remaining error on samples that were hidden (see `sampling.find_trust`).
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
    spread = variance ** (SHARPNESS / 2)
    return spread * 2**0.5 * sigma / spread.square().mean().sqrt().clamp(min=1e-30)
