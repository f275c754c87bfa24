"""The forward model y = A x + n, A = M F S, and its parts, each with `forward` and `adjoint`.

x are images `(frames, height, width)`; S multiplies them by the coil sensitivities; F is the centred orthonormal
Fourier transform (`mri.fourier`); M keeps the measured samples. y is `(frames, coils, ky, kx)`; the coil axis is always
there, and for one coil S = 1. The noise n is complex and white with E|n|² = σ².

Because F is orthonormal and ΣS*S = 1, ‖A‖ ≤ 1: `x + Aᴴ(y − A x)` is a gradient step of ½‖A x − y‖² with step length
1. For one coil this step puts the measured samples back exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from mri.fourier import fft2c, ifft2c
from utils.errors import InputError

Tensor = torch.Tensor

CG_ITERATIONS = 50  # of the proximal map, at most
PROJECTION = 0.05  # σ/τ of the proximal map that stands for a projection
CG_TOLERANCE = 1e-5  # of the residual, relative to the first, at which it stops


class Fourier:
    """F: centred orthonormal 2-D Fourier transform of the last two axes; its adjoint is its inverse."""

    def forward(self, image: Tensor) -> Tensor:
        """k-space of images `(..., height, width)`, DC at `(height//2, width//2)`."""
        return fft2c(image)

    def adjoint(self, kspace: Tensor) -> Tensor:
        """Images of k-space `(..., ky, kx)`."""
        return ifft2c(kspace)


@dataclass(frozen=True)
class Sensitivities:
    """S: images to coil images, x → S_c x.

    Attributes
    ----------
    maps
        complex `(coils, height, width)`; ΣS*S = 1 wherever they are not zero.
    """

    maps: Tensor

    def forward(self, image: Tensor) -> Tensor:
        """Coil images `(frames, coils, height, width)` of images `(frames, height, width)`."""
        return image[:, None] * self.maps

    def adjoint(self, coil_images: Tensor) -> Tensor:
        """Combined images `(frames, height, width)`: Σ S_c* x_c."""
        return (coil_images * self.maps.conj()).sum(dim=1)


@dataclass(frozen=True)
class Sampling:
    """M: keeps the measured samples; it is its own adjoint.

    Attributes
    ----------
    mask
        boolean `(frames, ky, kx)`, the same for every coil.
    """

    mask: Tensor

    def forward(self, kspace: Tensor) -> Tensor:
        """k-space `(frames, coils, ky, kx)` with zeros where nothing was measured."""
        return torch.where(self.mask[:, None], kspace, 0)

    adjoint = forward


@dataclass(frozen=True)
class ForwardModel:
    """A = M F S of one scan.

    Attributes
    ----------
    mask
        boolean `(frames, ky, kx)`.
    maps
        complex64 `(coils, height, width)`, ΣS*S = 1; ones for one coil.
    """

    mask: Tensor
    maps: Tensor

    @classmethod
    def of_one_coil(cls, mask: Tensor) -> "ForwardModel":
        """The model of combined data: S = 1."""
        return cls(mask, torch.ones(1, *mask.shape[1:], dtype=torch.complex64, device=mask.device))

    @property
    def coils(self) -> int:
        return len(self.maps)

    def forward(self, image: Tensor) -> Tensor:
        """A x: `(frames, coils, ky, kx)`."""
        return Sampling(self.mask).forward(self.kspace(image))

    def adjoint(self, kspace: Tensor) -> Tensor:
        """Aᴴ y: `(frames, height, width)`."""
        return self.combine(Sampling(self.mask).adjoint(kspace))

    def kspace(self, image: Tensor) -> Tensor:
        """F S x: the k-space of every coil without sampling, `(frames, coils, ky, kx)`."""
        return fft2c(Sensitivities(self.maps).forward(image))

    def combine(self, kspace: Tensor) -> Tensor:
        """Sᴴ Fᴴ k: the combined images of the k-space of every coil."""
        return Sensitivities(self.maps).adjoint(ifft2c(kspace))

    def restricted(self, subset: Tensor) -> "ForwardModel":
        """The model of the measured samples that lie in `subset`, boolean `(frames, ky, kx)`."""
        return replace(self, mask=self.mask & subset)

    def consistent(self, image: Tensor, measured: Tensor) -> Tensor:
        """x + Aᴴ(y − A x): data consistency as a gradient step; for one coil the measured samples are put back."""
        return image + self.adjoint(measured - self.forward(image))

    def projected(self, image: Tensor, measured: Tensor) -> Tensor:
        """The image nearest to x that agrees with the samples: exactly for one coil, nearly for several coils.

        A gradient step suffices where the image is almost consistent; where it is far from it, as at the high noise
        levels of the published sampler, several coils need this.
        """
        if self.coils == 1:
            return self.consistent(image, measured)
        return self.proximal(image, measured, PROJECTION, 1.0, tolerance=1e-3)

    def unmeasured(self, change: Tensor) -> Tensor:
        """(1 − AᴴA) z: the part of a change that leaves A x as it is; exactly so for one coil."""
        return change - self.adjoint(self.forward(change))

    def residual(self, image: Tensor, measured: Tensor) -> float:
        """‖A x − y‖ / ‖y‖."""
        return ((self.forward(image) - measured).norm() / measured.norm()).item()

    def proximal(
        self, image: Tensor, measured: Tensor, noise_std: float, prior_std: float, tolerance: float = CG_TOLERANCE
    ) -> Tensor:
        """argmin over u of ½‖A u − y‖²/σ² + ½‖u − v‖²/τ²: data consistency that allows for the noise.

        For one coil a weighted mean at the measured samples; for several coils conjugate gradients, from v.

        Parameters
        ----------
        image
            v, complex `(frames, height, width)`.
        measured
            y, complex `(frames, coils, ky, kx)`, zero outside the mask.
        noise_std, prior_std
            σ and τ, in the same units.
        tolerance
            residual of the conjugate gradients, relative to the first, at which they stop.
        """
        if noise_std < 0 or prior_std <= 0:
            raise InputError(f"the proximal map needs σ ≥ 0 and τ > 0, not {noise_std:g} and {prior_std:g}.")
        # with w = τ²/(τ² + σ²): (1 − w) u + w AᴴA u = (1 − w) v + w Aᴴ y
        weight = prior_std**2 / (prior_std**2 + noise_std**2)
        gradient = self.adjoint(measured - self.forward(image))
        if self.coils == 1:
            return image + weight * gradient

        def normal(u: Tensor) -> Tensor:
            return (1 - weight) * u + weight * self.adjoint(self.forward(u))

        return image + conjugate_gradients(normal, weight * gradient, tolerance=tolerance)

    def to(self, device: torch.device | str) -> "ForwardModel":
        return ForwardModel(self.mask.to(device), self.maps.to(device))

    def turned(self) -> "ForwardModel":
        """The model of transposed images and k-space."""
        return ForwardModel(self.mask.mT.contiguous(), self.maps.mT.contiguous())


def conjugate_gradients(
    normal: Callable[[Tensor], Tensor], right: Tensor, iterations: int = CG_ITERATIONS, tolerance: float = CG_TOLERANCE
) -> Tensor:
    """Solve N u = b for a Hermitian positive (semi-)definite N, from u = 0, in at most `iterations` steps."""
    solution = torch.zeros_like(right)
    residual = direction = right
    power = first = torch.vdot(right.flatten(), right.flatten()).real
    for _ in range(iterations):
        if power <= tolerance**2 * first:
            break
        image = normal(direction)
        step = power / torch.vdot(direction.flatten(), image.flatten()).real
        solution, residual = solution + step * direction, residual - step * image
        before, power = power, torch.vdot(residual.flatten(), residual.flatten()).real
        direction = residual + power / before * direction
    return solution
