import pytest
import torch

from mri.consistency import data_consistency, data_residual, scan_scale
from mri.fourier import fft2c
from mri.masks import make_mask
from mri.phantom import make_phantom
from utils.errors import InputError


def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 8, 6, dtype=torch.complex128, generator=generator), make_mask("uniform", (3, 8, 6), 2, 2)


def test_hard():
    (estimate, measured), mask = pair()
    result = data_consistency(estimate, measured, mask)
    assert torch.equal(result[mask], measured[mask]) and torch.equal(result[~mask], estimate[~mask])
    assert data_residual(result, measured, mask) == 0
    assert data_residual(torch.where(mask, 0, estimate), measured, mask) == pytest.approx(1)


@pytest.mark.parametrize("noise_std", [0.1, 1.0, 5.0])
def test_soft_minimises_its_objective(noise_std):
    (estimate, measured), mask = pair()
    prior_std = torch.linspace(0.5, 2, 6, dtype=torch.float64)
    result = data_consistency(estimate, measured, mask, noise_std, prior_std).requires_grad_()
    fidelity = (result - measured).abs().square() / noise_std**2 * mask
    ((result - estimate).abs().square() / prior_std**2 + fidelity).sum().backward()
    assert result.grad.abs().max() < 1e-9


def test_soft_tends_to_hard():
    (estimate, measured), mask = pair()
    hard = data_consistency(estimate, measured, mask)
    assert torch.allclose(data_consistency(estimate, measured, mask, 1e-6), hard)


@pytest.mark.parametrize("acceleration", [2, 4, 8])
def test_scale_barely_depends_on_the_sampling(acceleration):
    image = 7.0 * make_phantom(16, 64, 1)
    mask = make_mask("uniform", (16, 64, 64), acceleration, 8)
    full = scan_scale(fft2c(image), torch.ones_like(mask))
    scale = scan_scale(torch.where(mask, fft2c(image), 0), mask)
    assert scale == pytest.approx(full, rel=0.05)
    assert 0.4 * 7 < scale < 1.2 * 7
    assert scan_scale(torch.where(mask, fft2c(image), 99), mask) == scale


def test_zero_scan():
    (_, measured), mask = pair()
    with pytest.raises(InputError, match="zero"):
        scan_scale(torch.where(mask, 0, measured), mask)
