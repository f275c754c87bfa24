"""The Fourier pair of the whole project: orthonormal, centred, over the last two axes.

Zero frequency is at index n//2 of each axis. Because the pair is unitary, the inverse is the adjoint.
"""

import torch

Tensor = torch.Tensor


def fft2c(image: Tensor) -> Tensor:
    """k-space of an image.

    Parameters
    ----------
    image
        complex, `(..., height, width)`, object centre at `(height//2, width//2)`.

    Returns
    -------
    complex k-space of the same shape and norm, DC at `(height//2, width//2)`.
    """
    return torch.fft.fftshift(
        torch.fft.fft2(torch.fft.ifftshift(image, dim=(-2, -1)), norm="ortho"), dim=(-2, -1)
    )


def ifft2c(kspace: Tensor) -> Tensor:
    """Image of a k-space: inverse and adjoint of `fft2c`. Shapes as there."""
    return torch.fft.fftshift(
        torch.fft.ifft2(torch.fft.ifftshift(kspace, dim=(-2, -1)), norm="ortho"), dim=(-2, -1)
    )


def fft1c(values: Tensor, inverse: bool = False) -> Tensor:
    """The same transform, or its inverse, over the last axis alone."""
    transform = torch.fft.ifft if inverse else torch.fft.fft
    return torch.fft.fftshift(transform(torch.fft.ifftshift(values, dim=-1), norm="ortho"), dim=-1)
