"""Where a reconstruction is likely to be wrong: a standard deviation per pixel and frame, without a reference.

Two measurements of the scan itself make it. *Where*: noise of the size of the remaining error is put on what was not
measured and denoised again. What the prior cannot remove (moving edges, details that no neighbour shows) is uncertain,
there and in the aliases of that place. *How much*: the remaining error on held-out samples
(`reconstruction.calibration`).
"""

from collections.abc import Callable

import torch
from torch.nn.functional import avg_pool2d

from mri.fourier import ifft2c
from mri.operators import ForwardModel

Tensor = torch.Tensor

SHARPNESS = 2.5  # error ∝ spread^2.5: the spread of denoised noise is more even than the error
NEIGHBOURHOOD = 5  # pixels; a few samples do not give a variance per pixel


def error_map(
    image: Tensor,
    model: ForwardModel,
    sigma: float,
    denoise: Callable[[Tensor, float], Tensor],
    samples: int,
    generator: torch.Generator,
    noise_std: float = 0.0,
) -> Tensor:
    """Standard deviation of the complex image error: real `(frames, height, width)`, in the units of the image.

    Parameters
    ----------
    image
        the result, complex `(frames, height, width)`.
    model
        A; what was measured gets no noise.
    sigma
        standard deviation of the remaining error per real channel; the map's mean square is 2 σ², and the noise.
    denoise
        D(x; σ) of images, data consistent.
    samples
        how often, one pass per frame each; at least 2.
    noise_std
        σ per pixel of the measurement noise that the result keeps.
    """
    denoised = []
    for _ in range(samples):
        noise = torch.view_as_complex(torch.randn(*image.shape, 2, generator=generator)).to(image)
        noisy = image + model.unmeasured(sigma * ifft2c(noise))
        denoised.append(image + model.unmeasured(denoise(noisy, sigma) - image))
    images = torch.stack(denoised)
    variance = (images - images.mean(dim=0)).abs().square().mean(dim=0)
    variance = avg_pool2d(variance[:, None], NEIGHBOURHOOD, 1, NEIGHBOURHOOD // 2, count_include_pad=False)[:, 0]
    spread = aliased_variance(variance**SHARPNESS, model).sqrt()
    spread = spread * 2**0.5 * sigma / spread.square().mean().sqrt().clamp(min=1e-30)
    return (spread.square() + noise_std**2).sqrt()


def aliased_variance(variance: Tensor, model: ForwardModel) -> Tensor:
    """Variance of (1 − AᴴA) e for a white error e of this variance, `(frames, height, width)`.

    (1 − AᴴA) e = Σ_c S_c* (h ∗ S_c e), h the point spread function of the missing samples. The variance is therefore
    Σ_cd S_c* S_d (|h|² ∗ S_c S_d* v): uncertainty in one place reaches its aliases.
    """
    height, width = model.mask.shape[-2:]
    spread = ifft2c((~model.mask).to(torch.complex64)).abs().square() / (height * width)
    transfer = torch.fft.fft2(torch.fft.ifftshift(spread, dim=(-2, -1)))
    total = torch.zeros_like(variance)
    for c, first in enumerate(model.maps):
        for d, second in enumerate(model.maps[: c + 1]):
            pair = first * second.conj()
            smeared = torch.fft.ifft2(torch.fft.fft2(pair * variance) * transfer)
            total += (1 if c == d else 2) * (pair.conj() * smeared).real
    return total.clamp(min=0)
