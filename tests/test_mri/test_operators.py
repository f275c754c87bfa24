"""Every operator against ⟨Ax, y⟩ = ⟨x, Aᴴy⟩, and the proximal map against the minimum it stands for."""

import pytest
import torch

from mri.fourier import fft2c
from mri.masks import make_mask
from mri.operators import ForwardModel, Fourier, Sampling, Sensitivities, conjugate_gradients
from utils.errors import InputError

SIZES = [(1, 8, 8), (1, 9, 7), (3, 8, 10), (4, 11, 9)]  # coils, height, width; even and odd


def random(*shape, seed=0):
    return torch.randn(shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def model_of(coils, height, width, frames=3):
    mask = torch.rand(frames, height, width, generator=torch.Generator().manual_seed(5)) < 0.4
    if coils == 1:
        return ForwardModel(mask, torch.ones(1, height, width, dtype=torch.complex128))
    maps = random(coils, height, width, seed=7)
    return ForwardModel(mask, maps / maps.abs().square().sum(dim=0).sqrt())


def assert_adjoint(forward, adjoint, x, y):
    left, right = torch.vdot(y.flatten(), forward(x).flatten()), torch.vdot(adjoint(y).flatten(), x.flatten())
    assert torch.allclose(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("coils,height,width", SIZES)
def test_adjoints(coils, height, width):
    model = model_of(coils, height, width)
    x, y = random(3, height, width), random(3, coils, height, width, seed=1)
    assert_adjoint(Fourier().forward, Fourier().adjoint, y, random(*y.shape, seed=2))
    s, m = Sensitivities(model.maps), Sampling(model.mask)
    assert_adjoint(s.forward, s.adjoint, x, y)
    assert_adjoint(m.forward, m.adjoint, y, random(*y.shape, seed=2))
    assert_adjoint(model.forward, model.adjoint, x, y)
    assert_adjoint(model.kspace, model.combine, x, y)
    subset = torch.rand(model.mask.shape, generator=torch.Generator().manual_seed(9)) < 0.5
    part = model.restricted(subset)
    assert_adjoint(part.forward, part.adjoint, x, y)
    assert torch.equal(part.forward(x), torch.where(subset[:, None], model.forward(x), 0))


@pytest.mark.parametrize("coils,height,width", SIZES)
def test_norm_is_at_most_one(coils, height, width):
    model, x = model_of(coils, height, width), random(3, height, width)
    for _ in range(200):
        x = model.adjoint(model.forward(x))
        norm = x.norm()
        x = x / norm
    assert norm <= 1 + 1e-10


def test_zero_frequency_is_at_half_the_size():
    for n in (8, 9):
        constant = torch.ones(1, n, n, dtype=torch.complex128)
        kspace = Fourier().forward(constant)
        assert kspace.abs().argmax() == (n // 2) * n + n // 2 and kspace.abs().sum() == pytest.approx(n)


def test_consistency_puts_the_samples_of_one_coil_back():
    model, x = model_of(1, 9, 8), random(3, 9, 8)
    y = model.forward(random(3, 9, 8, seed=4))
    found = fft2c(model.consistent(x, y))
    assert torch.allclose(found, torch.where(model.mask, y[:, 0], fft2c(x)))
    change = random(3, 9, 8, seed=6)
    assert torch.allclose(model.forward(model.unmeasured(change)), torch.zeros_like(y), atol=1e-12)
    assert torch.allclose(model.unmeasured(model.unmeasured(change)), model.unmeasured(change))


@pytest.mark.parametrize("coils", [1, 4])
def test_consistency_is_a_gradient_step(coils):
    model, x = model_of(coils, 7, 8), random(3, 7, 8).requires_grad_(True)
    y = model.forward(random(3, 7, 8, seed=4))
    loss = (model.forward(x) - y).abs().square().sum() / 2
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.allclose(model.consistent(x.detach(), y), x.detach() - gradient)


@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("noise,prior", [(0.1, 1.0), (1.0, 1.0), (3.0, 0.2)])
def test_proximal_map_against_brute_force(coils, noise, prior):
    """argmin of ½‖Au − y‖²/σ² + ½‖u − v‖²/τ² by the normal equations of the whole, written out as a matrix."""
    model, v = model_of(coils, 4, 5, frames=1), random(1, 4, 5)
    y = Sampling(model.mask).forward(random(1, coils, 4, 5, seed=3))
    units = torch.eye(20, dtype=torch.complex128).reshape(20, 1, 4, 5)
    matrix = torch.stack([model.forward(unit).flatten() for unit in units], dim=1)
    left = matrix.mH @ matrix / noise**2 + torch.eye(20) / prior**2
    right = matrix.mH @ y.flatten() / noise**2 + v.flatten() / prior**2
    expected = torch.linalg.solve(left, right).reshape(1, 4, 5)
    found = model.proximal(v, y, noise, prior)
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_proximal_map_of_one_coil_is_a_weighted_mean():
    model, v = model_of(1, 8, 9), random(3, 8, 9)
    y = model.forward(random(3, 8, 9, seed=2))
    found = fft2c(model.proximal(v, y, 0.5, 1.0))
    mean = (fft2c(v) / 1.0 + y[:, 0] / 0.25) / (1 / 1.0 + 1 / 0.25)
    assert torch.allclose(found, torch.where(model.mask, mean, fft2c(v)))
    assert torch.allclose(model.proximal(v, y, 0.0, 1.0), model.consistent(v, y))
    with pytest.raises(InputError, match="τ > 0"):
        model.proximal(v, y, 0.5, 0.0)


def test_proximal_map_at_scan_size_converges():
    """At the accuracy that its iterations promise, for single precision and lines."""
    mask = make_mask("uniform", (4, 32, 32), 4, 4)
    maps = random(4, 32, 32).to(torch.complex64)
    model = ForwardModel(mask, maps / maps.abs().square().sum(0).sqrt())
    v, y = random(4, 32, 32, seed=1).to(torch.complex64), model.forward(random(4, 32, 32, seed=2).to(torch.complex64))
    u = model.proximal(v, y, 0.3, 1.0)
    gradient = model.adjoint(model.forward(u) - y) / 0.3**2 + (u - v)
    start = model.adjoint(model.forward(v) - y) / 0.3**2
    assert gradient.norm() < 1e-3 * start.norm()


def test_conjugate_gradients_solve():
    a = random(6, 6)
    matrix = a @ a.mH + torch.eye(6)
    right = random(6, seed=3)
    found = conjugate_gradients(lambda u: matrix @ u, right, iterations=50)
    assert torch.allclose(found, torch.linalg.solve(matrix, right), rtol=1e-4, atol=1e-5)
    assert torch.equal(conjugate_gradients(lambda u: matrix @ u, torch.zeros(6, dtype=torch.complex128)), right * 0)


def test_one_coil_and_turned():
    mask = make_mask("uniform", (3, 8, 6), 2, 2)
    model = ForwardModel.of_one_coil(mask)
    assert model.coils == 1 and torch.equal(model.maps, torch.ones(1, 8, 6, dtype=torch.complex64))
    x = random(3, 8, 6).to(torch.complex64)
    assert torch.allclose(model.turned().forward(x.mT), model.forward(x).mT, atol=1e-6)
    assert model.residual(x, 2 * model.forward(x)) == pytest.approx(0.5)
