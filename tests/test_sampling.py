from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from datasets import embedded_acquisition
from losses import STEP_SHARE
from models import create_model
from models.checkpoint import save_model
from models.context import Context
from models.convert import named_to_upstream
from models.ncsnpp import NCSNpp
from mri.consistency import data_consistency, scan_scale
from mri.fourier import fft2c, ifft2c
from mri.masks import make_mask
from mri.metrics import evaluate
from mri.weighting import KspaceWeight, to_channels
from optimization_unit import NOISE_FLOORS, OptimizationUnit, optimization_unit_alone, with_noise_floor
from priors import Prior, load_prior
from sampling import few_step_cascade, published_cascade, reconstruct, schedule
from sde_lib import VESDE
from trust import Trust, find_trust
from utils.errors import InputError


@pytest.fixture
def scan(tiny):
    return embedded_acquisition(tiny, 0)


@pytest.fixture
def models(priors):
    return tuple(load_prior(path) for path in priors)


def run(scan, models, config, seed=0):
    return reconstruct(scan.kspace, scan.mask, *models, config, seed)


@pytest.mark.parametrize(
    "start,after,operator",
    [("zero_filled", "both", "hankel"), ("pseudo_reference", "last", "hankel"), ("pseudo_reference", "both", "llr")],
)
def test_result_keeps_the_measured_samples_and_is_repeatable(scan, models, tiny, start, after, operator):
    tiny.sampling.start, tiny.ou.after, tiny.ou.operator = start, after, operator
    result = run(scan, models, tiny)
    assert result.image.dtype == torch.complex64 and result.image.shape == scan.kspace.shape
    assert torch.allclose(fft2c(result.image)[scan.mask], scan.kspace[scan.mask], atol=1e-5)
    assert torch.equal(run(scan, models, tiny).image, result.image)
    assert not torch.equal(run(scan, models, tiny, seed=1).image, result.image)
    assert [step["sigma"] for step in result.log] == sorted((s["sigma"] for s in result.log), reverse=True)
    assert result.log[0]["sigma"] == pytest.approx(4)


def test_units_of_the_input(scan, models, tiny):
    once = run(scan, models, tiny).image
    thousand = reconstruct(1000 * scan.kspace, scan.mask, *models, tiny).image
    assert torch.allclose(thousand, 1000 * once, rtol=1e-3, atol=0.02)


def test_values_outside_the_mask_do_not_matter(scan, models, tiny):
    spoiled = torch.where(scan.mask, scan.kspace, 5)
    result = reconstruct(spoiled, scan.mask, *models, tiny)
    assert torch.equal(result.image, run(scan, models, tiny).image)


def test_network_passes_are_counted(scan, models, tiny, monkeypatch):
    frames = 0
    score = Prior.score

    def counting(self, x, sigma):
        nonlocal frames
        frames += len(x)
        return score(self, x, sigma)

    monkeypatch.setattr(Prior, "score", counting)
    result = run(scan, models, tiny)
    assert frames == 8 * 2 * 4  # 8 passes per iteration, 2 iterations, 4 frames
    assert result.settings["passes_per_frame"] == 16


def test_published_cascade_against_its_formulas(scan, tiny):
    """One iteration with a known score, written out with the symbols of the specification."""

    class Known:
        weight = KspaceWeight(1.0, 0.2, 0.5)

        def __init__(self, factor):
            self.factor = factor

        def score(self, x, sigma):
            return -self.factor * x / (0.25 + sigma**2)

    sampling, gm, lm = tiny.sampling, Known(1.0), Known(0.5)
    sampling.iterations = 1
    y, mask = scan.kspace / scan_scale(scan.kspace, scan.mask), scan.mask
    sde = VESDE(0.01, 4.0, 8)

    class NoUnit:
        follows = staticmethod(lambda last: True)

        def __call__(self, image):
            return image * 0.9

    class Log:
        residual = staticmethod(lambda k: 0.0)
        step = staticmethod(lambda **numbers: None)

    result = published_cascade(
        y, lambda k, std: data_consistency(k, y, mask), NoUnit(), [gm, lm], sde, sampling,
        torch.Generator().manual_seed(3), Log,
    )  # fmt: skip

    generator = torch.Generator().manual_seed(3)
    sigma, sigma_before = 4.0, sde.discrete_sigmas()[6].item()
    k, noise = y, torch.zeros(3, 4, 2, 64, 64)
    for prior in (gm, lm):
        w = prior.weight.on(k)
        x = to_channels(w * k)
        x = x + (sigma**2 - sigma_before**2) * prior.score(x, sigma)
        k = torch.where(mask, y, torch.complex(x[:, 0], x[:, 1]) / w)
        x = to_channels(w * k)
        g = sum(prior.score(x + n, sigma) for n in noise) / 3
        z = torch.randn(3, 4, 2, 64, 64, generator=generator)
        z_norm = torch.stack([z[j, t].norm() for j in range(3) for t in range(4)]).mean()
        g_norm = torch.stack([g[t].norm() for t in range(4)]).mean()
        epsilon = 2 * (0.075 * z_norm / g_norm) ** 2
        x = x + epsilon * g
        noise = (2 * epsilon).sqrt() * z
        k = torch.where(mask, y, torch.complex(x[:, 0], x[:, 1]) / w)
        k = torch.where(mask, y, fft2c(0.9 * ifft2c(k)))
    assert torch.allclose(result, k, atol=1e-4)


def test_soft_data_consistency_lets_noisy_samples_move(scan, models, tiny):
    tiny.sampling.noise_std = 0.1
    result = run(scan, models, tiny)
    difference = (fft2c(result.image) - scan.kspace)[scan.mask]
    assert difference.abs().max() > 1e-3


def test_sizes_that_the_network_cannot_halve(models, tiny):
    tiny.data.image_size = 66
    tiny.sampling.iterations = 1
    for prior in models:
        x = torch.randn(2, 2, 65, 67)
        assert prior.score(x, 0.5).shape == x.shape
    scan = embedded_acquisition(tiny, 0)
    assert run(scan, models, tiny).image.shape == (4, 66, 66)


def test_batches_of_frames_give_the_same_score(priors):
    x = torch.randn(5, 2, 64, 64)
    whole, parts = (load_prior(priors[0], batch_size=n).score(x, 0.3) for n in (16, 2))
    assert torch.allclose(whole, parts, atol=1e-4)


@pytest.mark.parametrize("operator", ["hankel", "llr", "both"])
def test_strength_weakens_the_optimization_unit(scan, tiny, operator):
    tiny.ou.operator = operator
    image = ifft2c(scan.kspace / scan_scale(scan.kspace, scan.mask))
    moved = [(OptimizationUnit(tiny)(image, strength) - image).norm() for strength in (0.0, 0.5, 1.0)]
    assert moved[0] < 1e-5 * image.norm() and moved[0] < moved[1] < moved[2]


@pytest.mark.parametrize("operator", ["hankel", "llr", "both"])
def test_optimization_unit_alone_improves_on_zero_filling(scan, tiny, operator):
    tiny.ou.operator = operator
    image = optimization_unit_alone(scan.kspace, scan.mask, tiny)
    before = evaluate(ifft2c(scan.kspace), scan.reference)["psnr"]
    assert evaluate(image, scan.reference)["psnr"] > before + 5


@pytest.mark.parametrize(
    "field,value,words",
    [
        ("sampling.sampler", "ddim", "unknown"),
        ("sampling.start", "noise", "unknown"),
        ("sampling.iterations", 0, "between 1 and num_scales"),
        ("sampling.iterations", 9, "between 1 and num_scales"),
        ("sampling.sigma_max", 5.0, "leaves the range"),
        ("sampling.sigma_min", 0.001, "leaves the range"),
        ("sampling.copies", 0, "at least 1"),
        ("ou.operator", "tv", "unknown"),
        ("ou.after", "sometimes", "unknown"),
        ("sampling.order", (), "must name"),
        ("sampling.order", ("global", "middle"), "must name"),
        ("sampling.steps", 0, "at least 1"),
        ("sampling.trust_levels", (), "must not be empty"),
        ("sampling.error_gain", 0.0, "above 0"),
        ("sampling.batch_size", 0, "at least 1"),
        ("sampling.samples", 1, "at least 2"),
        ("ou.anneal", 0.0, "above 0"),
        ("ou.rank", 65, "exceeds"),
        ("ou.window", 65, "larger than"),
    ],
)
def test_settings_that_do_not_fit(scan, models, tiny, field, value, words):
    tiny.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=words):
        run(scan, models, tiny)


def test_published_checkpoint_gets_the_published_weight(tiny, tmp_path):
    network = create_model(tiny)
    path = tmp_path / "checkpoint_1.pth"
    shadow = [p.detach() for p in network.parameters() if p.requires_grad]
    torch.save(
        {
            "optimizer": {},
            "model": named_to_upstream(network.state_dict(), network.config),
            "ema": {"decay": 0.999, "num_updates": 1, "shadow_params": shadow},
            "step": 1,
        },
        path,
    )
    prior = load_prior(path)
    assert prior.weight == KspaceWeight.published()
    assert not prior.network.config["centered"]


def test_checkpoint_without_a_weight(tiny, tmp_path):
    save_model(create_model(tiny), tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="no k-space weight"):
        load_prior(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "field,value,words",
    [("sampling.trust_levels", (0.01,), "leaves the range"), ("sampling.trust_levels", (20.0,), "leaves the range"),
     ("ou.patches", (8, 65), "must lie between")],
)  # fmt: skip
def test_settings_that_do_not_fit_the_cascade(scan, models, tiny, field, value, words):
    tiny.sampling.sampler = "cascade"
    tiny.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=words):
        run(scan, models, tiny)


def test_mask_without_acs_to_estimate_from(scan, models, tiny):
    tiny.sampling.sampler = "cascade"
    mask = make_mask("uniform", tuple(scan.mask.shape), 4, 0)
    with pytest.raises(InputError, match="0 ACS lines"):
        reconstruct(scan.kspace, mask, *models, tiny)


# ------------------------------------------------------------------------------------------- few steps


@pytest.fixture
def few(tiny):
    tiny.sampling.sampler, tiny.sampling.start, tiny.sampling.steps = "cascade", "pseudo_reference", 4
    tiny.sampling.trust_levels = (0.1, 0.4)
    tiny.ou.llr_iterations = 10
    return tiny


def denoising_prior(truth, scale):
    """A prior that knows the answer: its denoiser moves half way to the true k-space."""

    class Knowing:
        weight = KspaceWeight(1.0, 0.2, 0.5)
        path, context, role, passes, after_motion = "knowing", None, None, 1, None
        network = SimpleNamespace(config={"sigma_min": 0.01, "sigma_max": 4.0})

        def denoise(self, x, sigma, mask, periodic):
            return 0.5 * (x + self.weight(truth / scale))

    return Knowing()


def test_noise_floor_is_found_on_hidden_samples(scan, few, monkeypatch):
    few.ou.noise_floor = 0.0
    measured = scan.kspace / scan_scale(scan.kspace, scan.mask)
    found = with_noise_floor(few, measured, scan.mask, 0)
    assert found.ou.noise_floor in NOISE_FLOORS and few.ou.noise_floor == 0
    spoiled = torch.where(scan.mask, measured, 9)
    assert with_noise_floor(few, spoiled, scan.mask, 0).ou.noise_floor == found.ou.noise_floor
    monkeypatch.setattr("optimization_unit.NOISE_FLOORS", (10.0, found.ou.noise_floor))
    assert with_noise_floor(few, measured, scan.mask, 0).ou.noise_floor == found.ou.noise_floor
    image = optimization_unit_alone(scan.kspace, scan.mask, few)
    assert torch.equal(image, optimization_unit_alone(scan.kspace, scan.mask, found))


def test_cascade_keeps_the_measured_samples_and_is_repeatable(scan, models, few):
    result = run(scan, models, few)
    assert torch.allclose(fft2c(result.image)[scan.mask], scan.kspace[scan.mask], atol=1e-5)
    assert torch.equal(run(scan, models, few).image, result.image)
    assert result.settings["passes_per_frame"] <= 40


def test_cascade_counts_its_passes(scan, models, few, monkeypatch):
    frames = 0
    score = Prior.score

    def counting(self, x, sigma):
        nonlocal frames
        frames += len(x)
        return score(self, x, sigma)

    monkeypatch.setattr(Prior, "score", counting)
    monkeypatch.setattr("sampling.find_trust", _trust_found_at(0.1, 0.5))
    result = run(scan, models, few)
    assert frames == 4 * len(scan.kspace)
    assert result.settings["passes_per_frame"] == 4 + 2 * 2  # steps, and two levels of two priors


def _trust_found_at(sigma, alpha):
    return lambda *arguments: Trust(sigma, (alpha,), 0.1, 9, 1.0, 0.9)


def test_a_prior_that_does_not_help_is_not_trusted(scan, models, few):
    """A denoiser whose proposals are random explains nothing of the hidden samples: the result is the OU's."""
    generator = torch.Generator().manual_seed(0)
    prior = denoising_prior(torch.randn(scan.kspace.shape, dtype=torch.complex64, generator=generator), 0.1)
    result = reconstruct(scan.kspace, scan.mask, prior, prior, few)
    assert result.settings["trust"]["sigma"] == 0 and result.log == []
    ou = optimization_unit_alone(scan.kspace, scan.mask, few)
    assert torch.allclose(result.image, ou, atol=1e-5)


def test_a_prior_that_knows_is_trusted_and_improves_the_result(scan, few):
    scale = scan_scale(scan.kspace, scan.mask)
    prior = denoising_prior(fft2c(scan.reference), scale)
    trust = find_trust(scan.kspace / scale, scan.mask, [prior, prior], few, 0)
    assert trust.sigma > 0 and trust.alphas == (1,)
    assert trust.error_after == pytest.approx(trust.error_before / 2, rel=1e-3)
    ou = evaluate(optimization_unit_alone(scan.kspace, scan.mask, few), scan.reference)["psnr"]
    for after in ("never", "both"):
        few.ou.after = after
        image = reconstruct(scan.kspace, scan.mask, prior, prior, few).image
        assert evaluate(image, scan.reference)["psnr"] > ou + 2


def test_deterministic_steps_move_by_alpha(scan, few):
    """With a denoiser that always says the same, the cascade ends at x + α (D − x)."""

    class Constant:
        weight, context = KspaceWeight(1.0, 0.2, 0.5), None

    start = fft2c(scan.reference)
    unit = OptimizationUnit(few)
    unit.follows = lambda last: False

    class Log:
        residual = staticmethod(lambda k: 0.0)
        step = staticmethod(lambda **numbers: None)

    steps = schedule(Trust(0.2, (0.3,), 0.1, 9, 1, 1), [Constant(), Constant()], few.sampling.steps)
    assert len(steps) == 4
    arguments = (lambda k, std: k, unit, lambda prior, x, sigma: torch.ones_like(x), steps, 0.0)
    result = few_step_cascade(start, *arguments, torch.Generator(), Log)
    weighted = Constant.weight(start)
    expected = Constant.weight.inverse(weighted + 0.3 * (1 - weighted))
    assert torch.allclose(result, expected, atol=1e-4)


def test_churn_is_seeded_noise(scan, models, few, monkeypatch):
    monkeypatch.setattr("sampling.find_trust", _trust_found_at(0.1, 0.5))
    plain = run(scan, models, few).image
    few.sampling.churn = 0.5
    once, again, other = (run(scan, models, few, seed).image for seed in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other) and not torch.equal(once, plain)


def test_orders_of_the_cascade(scan, models, few, monkeypatch):
    monkeypatch.setattr("sampling.find_trust", _trust_found_at(0.4, 0.9))
    images = []
    for order in (("global", "local"), ("local", "global"), ("global",), ("local",)):
        few.sampling.order = order
        images.append(run(scan, models, few).image)
    assert all(not torch.equal(a, b) for i, a in enumerate(images) for b in images[:i])


@pytest.mark.parametrize(
    "change,words",
    [
        (lambda k, m: (k.abs(), m), "complex"),
        (lambda k, m: (k, m[:, :, 0]), "shape of the k-space"),
        (lambda k, m: (k, m.float()), "boolean"),
        (lambda k, m: (k[:1], m[:1]), "2 frames or more"),
        (lambda k, m: (torch.where(m, k * float("nan"), k), m), "NaN"),
        (lambda k, m: (k, m & (torch.arange(len(m)) > 0)[:, None, None]), "every frame"),
    ],
)
def test_what_is_no_scan(scan, models, tiny, change, words):
    with pytest.raises(InputError, match=words):
        reconstruct(*change(scan.kspace, scan.mask), *models, tiny)


def test_double_precision_is_taken(scan, models, tiny):
    image = reconstruct(scan.kspace.to(torch.complex128), scan.mask, *models, tiny).image
    assert torch.equal(image, run(scan, models, tiny).image)


def test_priors_of_different_kinds_are_refused(scan, models, few):
    few.model.num_scales = 10
    context = Context(own=True)
    network = create_model(few, context).eval()
    other = Prior(network, KspaceWeight(0.0, 1.0, 1.0), "other.safetensors", context=context)
    with pytest.raises(InputError, match="different kinds"):
        reconstruct(scan.kspace, scan.mask, models[0], other, few)


def test_nothing_hidden_is_said_and_costs_no_pass(models, few, scan):
    full = torch.ones_like(scan.mask)
    result = reconstruct(fft2c(scan.reference), full, *models, few)
    assert result.settings["trust"]["hidden"] == 0 and result.settings["passes_per_frame"] == 0
    few.ou.noise_floor = 0.0
    with pytest.raises(InputError, match="no sample to hide"):
        reconstruct(fft2c(scan.reference), full, *models, few)


def context_prior(shares=(0.8, 0.6)):
    """An untrained prior with context and layers in time that does something."""
    torch.manual_seed(0)
    context = Context(offsets=(-1, 1), merge=True, own=True)
    network = NCSNpp(image_size=64, in_channels=2 + context.channels, nf=8, ch_mult=(1, 2), num_res_blocks=1,
                     attn_resolutions=(), sigma_min=1e-4, sigma_max=1.0, centered=True, temporal=True,
                     init_scale=1.0)  # fmt: skip
    network = network.eval().requires_grad_(False)
    return Prior(network, KspaceWeight(0.0, 1.0, 1.0), "context.safetensors", context=context, shares=shares)


def test_a_prior_with_context_takes_the_steps_it_was_trained_through(scan):
    prior, measured = context_prior(), scan.kspace / scan_scale(scan.kspace, scan.mask)
    start = torch.where(scan.mask, measured, 0.01)
    found = prior.denoise(start, 0.1, scan.mask, True)
    assert torch.equal(found[scan.mask], start[scan.mask]) and prior.passes == 2
    one = replace(prior, shares=(1.0,))
    steps = one.denoise(one.denoise(start, 0.1, scan.mask, True), 0.1 * STEP_SHARE, scan.mask, True)
    assert torch.allclose(found, steps, atol=1e-6) and not torch.allclose(found, start, atol=1e-4)


def test_transposed_scan_gives_the_transposed_result(scan, few, monkeypatch):
    """Lines may run along either axis."""
    monkeypatch.setattr("sampling.find_trust", lambda *arguments: Trust(0.1, (1.0, 1.0), 0.1, 9, 1.0, 0.9))
    prior = context_prior()
    one, other = (
        reconstruct(turn(scan.kspace), turn(scan.mask), prior, prior, few) for turn in (lambda x: x, lambda x: x.mT)
    )
    for name in ("image", "start"):
        image = getattr(one, name)
        assert torch.allclose(image, getattr(other, name).mT, atol=1e-5 * image.abs().max())
    assert not torch.equal(one.image, one.start)
