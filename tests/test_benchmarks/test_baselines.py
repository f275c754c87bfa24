"""The baselines: data consistency, the optimality conditions of their problems, and agreement with BART."""

import math
from functools import partial

import pytest
import torch

from benchmarks import speed
from benchmarks.baselines import bart, l_plus_s, llr, temporal_tv
from benchmarks.baselines.fillings import nearest_merge, zero_filled
from benchmarks.baselines.pogm import pogm
from mri.fourier import fft2c, ifft2c
from mri.lowrank.hankel import HankelLowRank
from mri.masks import make_mask
from mri.metrics import evaluate
from mri.noise import chi
from mri.phantom import make_phantom, simulate_scan
from mri.scan import Scan
from reconstruction.prepare import prepare
from reconstruction.settings import PrepareSettings

needs_bart = pytest.mark.skipif(bart.why_not() is not None, reason=f"{bart.why_not()}")
COILS = (1, 4)


def make_problem(coils, periodic=None):
    """The prepared problem and the true images.

    One coil without noise: 8 frames of 64×48, not square, so that no axis can be taken for another. Several coils with
    noise: 5 frames of 64×64.
    """
    settings = PrepareSettings(periodic=periodic)
    if coils == 1:
        kspace = fft2c(make_phantom(8, 64, 3))[:, :, 8:56] * (48 / 64) ** 0.5
        mask = make_mask("uniform", tuple(kspace.shape), 4, 8)
        return prepare(Scan.from_arrays(kspace, mask, noise_std=0.0), settings), ifft2c(kspace)
    found = simulate_scan("simple", 5, 64, 3, coils, 0.01)
    mask = make_mask("uniform", tuple(found.image.shape), 4, 8)
    return prepare(Scan.from_arrays(found.kspace, mask, noise_samples=found.noise), settings), found.image


BASELINES = {
    "nearest_merge": nearest_merge,
    "l_plus_s": partial(l_plus_s.l_plus_s, strength=0.001, iterations=40),
    "llr": partial(llr.llr, strength=0.005, iterations=40),
    "temporal_tv": partial(temporal_tv.temporal_tv, strength=0.01, iterations=40),
    "bart_llr": partial(bart.bart_llr, strength=0.002, iterations=80),
    "bart_tv": partial(bart.bart_tv, strength=0.01, iterations=40),
}


@pytest.mark.parametrize("coils", COILS)
@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_bart if "bart" in n else ()) for n in BASELINES])
def test_a_baseline_improves_and_agrees_with_the_measured_data(name, coils):
    problem, reference = make_problem(coils)
    image = BASELINES[name](problem)
    assert image.shape == reference.shape and image.dtype == torch.complex64
    if coils == 1:
        mask = problem.model.mask
        assert torch.allclose(fft2c(image)[mask], problem.measured[:, 0][mask], atol=1e-5)
    elif name != "nearest_merge":  # which does not fit the coils to the data
        assert 0.5 < chi(problem.model, image, problem.measured, problem.noise_std) < 1.5
    score, before = (evaluate(problem.finished(x), reference) for x in (image, zero_filled(problem)))
    assert score["psnr"] > before["psnr"] + 5 and score["nmse"] < before["nmse"] / 5


def residual(image, problem):
    """Aᴴ(y − A x): minus the gradient of the data term."""
    return problem.model.adjoint(problem.measured - problem.model.forward(image))


@pytest.mark.parametrize("coils,strength", [(1, 0.003), (1, 0.03), (4, 0.03)])
def test_temporal_tv_is_the_minimum(coils, strength):
    """Optimal iff the residual is Dᴴ p with |p| ≤ λ and Re⟨p, D x⟩ = λ ‖D x‖₁."""
    problem, _ = make_problem(coils, periodic=False)
    x = temporal_tv.minimise(problem.view_sharing(), problem, strength, 1000)
    r = residual(x, problem)
    p = -r.cumsum(0)[:-1]
    assert r.sum(0).abs().max() < 0.05 * strength  # in the range of Dᴴ
    assert p.abs().max() < 1.02 * strength
    dx = temporal_tv.differences(x, False)
    assert (p.conj() * dx).real.sum() > 0.995 * strength * dx.abs().sum()
    early = temporal_tv.minimise(problem.view_sharing(), problem, strength, 400)
    assert tv_objective(early, problem, strength) < 1.002 * tv_objective(x, problem, strength)


def tv_objective(x, problem, strength):
    data = (problem.model.forward(x) - problem.measured).abs().square().sum() / 2
    return (data + strength * temporal_tv.differences(x, problem.periodic).abs().sum()).item()


@pytest.mark.parametrize("periodic", [False, True])
def test_differences_and_their_adjoint(periodic):
    x = torch.randn(5, 4, 3, dtype=torch.complex128)
    y = torch.randn_like(temporal_tv.differences(x, periodic))
    forward = torch.vdot(temporal_tv.differences(x, periodic).flatten(), y.flatten())
    adjoint = torch.vdot(x.flatten(), temporal_tv.differences_adjoint(y, periodic).flatten())
    assert torch.allclose(forward, adjoint)


@needs_bart
@pytest.mark.parametrize("coils", COILS)
def test_bart_solves_the_same_problem_in_the_same_orientation_and_scale(coils):
    problem, _ = make_problem(coils, periodic=True)  # BART's differences wrap around
    own = temporal_tv.minimise(problem.view_sharing(), problem, 0.01, 400)
    theirs = bart.pics(problem.measured, problem.model, ["-R", "T:1024:0:0.01", "-i", "400"])
    assert (own - theirs).norm() < 0.02 * own.norm()
    values = [tv_objective(x, problem, 0.01) for x in (own, theirs)]
    assert values[0] == pytest.approx(values[1], rel=0.01)


@pytest.mark.parametrize("coils", COILS)
def test_l_plus_s_is_the_minimum(coils):
    """Optimal iff the residual r has ‖r‖₂ ≤ λ_L, |T r| ≤ λ_S, ⟨r, L⟩ = λ_L ‖L‖_* and ⟨T r, T S⟩ = λ_S ‖T S‖₁."""
    problem, _ = make_problem(coils)
    lambda_l, lambda_s = 0.5, 0.02
    low_rank, sparse = l_plus_s.separate(nearest_merge(problem), problem, lambda_l, lambda_s, 400)
    r = residual(low_rank + sparse, problem)
    assert torch.linalg.matrix_norm(r.flatten(1), 2) < 1.02 * lambda_l
    nuclear = torch.linalg.svdvals(low_rank.flatten(1)).sum()
    assert (r.conj() * low_rank).real.sum() > 0.98 * lambda_l * nuclear > 0
    spectrum, of_residual = (torch.fft.fft(x, dim=0, norm="ortho") for x in (sparse, r))
    assert of_residual.abs().max() < 1.02 * lambda_s
    assert (of_residual.conj() * spectrum).real.sum() > 0.98 * lambda_s * spectrum.abs().sum() > 0


@needs_bart
def test_llr_and_bart_solve_the_same_problem():
    problem, _ = make_problem(4)
    pixels, frames = 8 * 8, problem.frames
    patches = problem.measured[0, 0].numel() / pixels
    gain = pixels**0.5 + frames**0.5 + math.log(patches * max(pixels, frames)) ** 0.5  # see `bart_llr`
    own, theirs = llr.llr(problem, gain * 5e-4, iterations=400), bart.bart_llr(problem, 5e-4, iterations=400)
    assert (own - theirs).norm() < 0.03 * theirs.norm()
    assert (llr.llr(problem, 5e-4, iterations=400) - theirs).norm() > 0.2 * theirs.norm()  # without the gain


def test_pogm_finds_the_lasso_and_is_ahead_of_plain_gradient_steps():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(30, 20, dtype=torch.float64, generator=generator)
    b = torch.randn(30, dtype=torch.float64, generator=generator)
    step = 1 / torch.linalg.matrix_norm(a, 2).item() ** 2

    def shrink(x, gamma):
        return x.sign() * (x.abs() - gamma * 2).clamp(min=0)

    def objective(x):
        return ((a @ x - b).square().sum() / 2 + 2 * x.abs().sum()).item()

    x = pogm(lambda x: a.T @ (a @ x - b), shrink, torch.zeros(20, dtype=torch.float64), step, 1000)
    correlation = a.T @ (b - a @ x)
    assert correlation.abs().max() < 2 + 1e-6
    assert torch.allclose(correlation[x != 0], 2 * x.sign()[x != 0], atol=1e-6) and (x == 0).any()
    early = pogm(lambda x: a.T @ (a @ x - b), shrink, torch.zeros(20, dtype=torch.float64), step, 15)
    plain = torch.zeros(20, dtype=torch.float64)
    for _ in range(15):
        plain = shrink(plain - step * a.T @ (a @ plain - b), step)
    assert objective(x) <= objective(early) < objective(plain)


def test_the_published_ou_step_agrees_with_the_circular_one_but_for_the_edge():
    image = nearest_merge(make_problem(1)[0])
    assert torch.allclose(speed.published_step(image, 4, 8 * 16), image, atol=1e-4)
    published = speed.published_step(image, 4, 30)
    circular = HankelLowRank(4, 30, sweeps=0)(image)
    assert (published - circular).norm() < 0.3 * (published - image).norm() < 0.1 * image.norm()
