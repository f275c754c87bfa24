import pytest
import torch

from mri.fourier import fft2c, ifft2c


@pytest.mark.parametrize("size", [(8, 8), (12, 10), (7, 9)])
def test_adjoint_and_inverse(size):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, *size, dtype=torch.complex128, generator=generator)
    left, right = torch.vdot(fft2c(x).flatten(), y.flatten()), torch.vdot(x.flatten(), ifft2c(y).flatten())
    assert torch.allclose(left, right)
    assert torch.allclose(ifft2c(fft2c(x)), x)
    assert torch.allclose(fft2c(x).norm(), x.norm())


@pytest.mark.parametrize("size", [(8, 8), (12, 10), (7, 9)])
def test_dc_is_at_half(size):
    kspace = fft2c(torch.ones(size, dtype=torch.complex128))
    assert kspace.abs().argmax() == (size[0] // 2) * size[1] + size[1] // 2
    centre = torch.zeros(size, dtype=torch.complex128)
    centre[size[0] // 2, size[1] // 2] = 1
    assert torch.allclose(fft2c(centre), torch.full_like(centre, (size[0] * size[1]) ** -0.5))
