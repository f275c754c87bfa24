"""A simulated acquisition of a phantom: coils, k-space and noise."""

import math
from dataclasses import dataclass

import torch

from mri.fourier import fft2c
from mri.phantom.coils import make_coil_maps
from mri.phantom.heart import make_heart
from mri.phantom.simple import make_phantom
from utils.errors import InputError

Tensor = torch.Tensor

SCENES = {"simple": make_phantom, "heart": make_heart}
NOISE_SAMPLES = 4096  # per coil


@dataclass(frozen=True)
class PhantomScan:
    """A fully sampled multi-coil scan of a phantom, and the truth behind it."""

    kspace: Tensor  # complex64 (frames, coils, ky, kx), with noise; DC at n//2
    noise: Tensor  # complex64 (coils, NOISE_SAMPLES), noise alone, of the standard deviation of that in `kspace`
    maps: Tensor  # complex64 (coils, height, width), sum of squares 1
    image: Tensor  # complex64 (frames, height, width), without noise; largest magnitude 1


def simulate_scan(scene: str, frames: int, size: int, seed: int, coils: int, noise: float) -> PhantomScan:
    """Acquire a phantom with receive coils and noise: kspace_c = F (S_c · image) + n_c.

    Parameters
    ----------
    scene
        `heart` (`make_heart`) or `simple` (`make_phantom`).
    frames, size, seed
        As in `make_heart` and `make_phantom`. The seed also chooses the coils and the noise.
    coils
        Number of receive coils, at least 1. One coil has uniform sensitivity.
    noise
        Standard deviation of the complex white noise, E|n|² = noise², equal in all coils, as a fraction of the largest
        magnitude of the image. F is unitary, so this is also the noise of a pixel of each coil's image.

    Returns
    -------
    The scan. The same arguments give the same bits. Without noise, `noise` is exactly zero.

    Raises
    ------
    InputError
        For an unknown scene, or sizes, coils or noise out of range.
    """
    if scene not in SCENES:
        raise InputError(f"there is no scene {scene!r}; choose one of {', '.join(SCENES)}.")
    if not 0 <= noise < math.inf:
        raise InputError(f"a noise level of {noise} cannot be simulated; give a number of at least 0.")
    image = SCENES[scene](frames, size, seed)
    maps = make_coil_maps(coils, size, size, seed)
    kspace = fft2c(maps * image[:, None])
    generator = torch.Generator().manual_seed(seed)

    def white(*shape: int) -> Tensor:
        return noise * torch.randn(shape, dtype=torch.complex64, generator=generator)  # E|randn|² = 1

    return PhantomScan(kspace + white(*kspace.shape), white(coils, NOISE_SAMPLES), maps, image)
