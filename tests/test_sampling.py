"""The samplers against their formulas, and what `reconstruct` promises, with one coil and with several."""

from dataclasses import replace

import pytest
import torch

from configs.default import get_default_configs
from models.checkpoint import save_model
from models.completion import STEP_SHARE
from models.context import Context
from models.convert import named_to_upstream
from models.prior import Prior, load_prior
from mri.fourier import fft2c, ifft2c
from mri.masks import make_mask
from mri.metrics import evaluate
from mri.operators import ForwardModel
from mri.weighting import KspaceWeight, to_channels
from reconstruction.calibration import Schedule, Step, calibrate
from reconstruction.optimization_unit import OptimizationUnit, run_optimization_unit
from reconstruction.prepare import prepare
from reconstruction.settings import OUSettings, SamplingSettings
from sampling import cascade, published_cascade, reconstruct, reconstruct_problem
from sde_lib import VESDE
from tests.conftest import simple_scan, tiny_config, tiny_network
from utils.errors import InputError

PUBLISHED = SamplingSettings(num_scales=8, iterations=2)
CASCADE = SamplingSettings(sampler="cascade")
FAST = OUSettings(operator="llr", llr_iterations=10)
HANKEL = OUSettings(rank=12, window=4)


@pytest.fixture
def models(priors):
    return tuple(load_prior(path) for path in priors)


@pytest.fixture
def context_models(context_priors):
    return tuple(load_prior(path) for path in context_priors)


def run(scan, models, ou=HANKEL, sampling=PUBLISHED, seed=0):
    return reconstruct_problem(prepare(scan), models, ou, sampling, seed)


def truth_psnr(image, reference):
    return evaluate(image, reference.image)["psnr"]


@pytest.mark.parametrize(
    "start,after,operator",
    [("zero_filled", "both", "hankel"), ("pseudo_reference", "last", "hankel"), ("pseudo_reference", "both", "llr")],
)
def test_published_sampler_keeps_the_measured_samples_and_is_repeatable(models, start, after, operator):
    scan, _ = simple_scan()
    ou, sampling = replace(HANKEL, after=after, operator=operator), replace(PUBLISHED, start=start)
    result = run(scan, models, ou, sampling)
    assert result.image.dtype == torch.complex64 and result.image.shape == scan.mask.shape
    assert torch.allclose(fft2c(result.image)[scan.mask], scan.kspace[:, 0][scan.mask], atol=1e-5)
    assert torch.equal(run(scan, models, ou, sampling).image, result.image)
    assert not torch.equal(run(scan, models, ou, sampling, seed=1).image, result.image)
    assert [step["sigma"] for step in result.log] == sorted((s["sigma"] for s in result.log), reverse=True)
    assert result.log[0]["sigma"] == pytest.approx(4)


def test_reconstruct_takes_arrays_and_a_configuration(models):
    scan, _ = simple_scan()
    config = tiny_config()
    image = reconstruct(scan.kspace[:, 0], scan.mask, *models, config).image
    assert torch.equal(image, reconstruct(scan.kspace, scan.mask, *models, config).image)
    double = reconstruct(scan.kspace.to(torch.complex128), scan.mask, *models, config).image
    assert torch.equal(double, image)
    spoiled = torch.where(scan.mask[:, None], scan.kspace, 5)
    assert torch.equal(reconstruct(spoiled, scan.mask, *models, config).image, image)
    thousand = reconstruct(1000 * scan.kspace, scan.mask, *models, config).image
    assert torch.allclose(thousand, 1000 * image, rtol=1e-3, atol=0.02)


def test_network_passes_are_counted(models, context_models, monkeypatch):
    frames = 0
    own = Prior._run

    def counting(self, x, *rest):
        nonlocal frames
        frames += len(x)
        return own(self, x, *rest)

    monkeypatch.setattr(Prior, "_run", counting)
    scan, _ = simple_scan(5)
    for chosen, ou, sampling in ((models, HANKEL, PUBLISHED), (context_models, FAST, CASCADE)):
        frames = 0
        result = run(scan, chosen, ou, sampling)
        assert frames == result.settings["passes_per_frame"] * 5 > 0
        if sampling is PUBLISHED:
            assert frames == 8 * 2 * 5  # 8 passes per iteration, 2 iterations


class Log:
    def step(self, **numbers):
        pass


def test_published_cascade_against_its_formulas():
    """One iteration with a known score, written out in k-space with the symbols of the specification."""

    class Known:
        weight = KspaceWeight(1.0, 0.2, 0.5)

        def __init__(self, factor):
            self.factor = factor

        def score(self, x, sigma):
            return -self.factor * x / (0.25 + sigma**2)

    problem = prepare(simple_scan()[0])
    gm, lm = Known(1.0), Known(0.5)
    y, mask = problem.measured[:, 0], problem.model.mask
    sde = VESDE(0.01, 4.0, 8)

    class Unit:
        def runs_after(self, last):
            return True

        def __call__(self, image):
            return image * 0.9

    result = published_cascade(
        ifft2c(y), problem.model, problem.measured, [gm, lm], sde, replace(PUBLISHED, iterations=1), Unit(),
        torch.Generator().manual_seed(3), Log(),
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
    assert torch.allclose(fft2c(result), k, atol=1e-4)


@pytest.mark.parametrize("coils", [1, 3])
def test_cascade_against_its_formula(coils):
    """Two steps of known denoisers, written out."""
    generator = torch.Generator().manual_seed(0)
    x, target = torch.randn(2, 4, 16, 16, dtype=torch.complex64, generator=generator)
    maps = torch.randn(coils, 16, 16, dtype=torch.complex64, generator=generator)
    maps = maps / maps.abs().square().sum(0).sqrt()
    A = ForwardModel(make_mask("uniform", (4, 16, 16), 2, 4), maps)
    y = A.forward(target)

    class Known:
        def denoise(self, image, model, sigma, periodic):
            assert model is A and periodic
            return image + sigma * (target - image)

    class Unit:
        def runs_after(self, last):
            return last

        def __call__(self, image, strength):
            return (1 - 0.1 * strength) * image

    steps = (Step(0, 0.5, 0.8), Step(1, 0.25, 0.6))
    result = cascade(x, A, y, [Known(), Known()], steps, Unit(), True, Log())
    expected = x + A.unmeasured(0.8 * 0.5 * (target - x))
    expected = expected + A.unmeasured(0.6 * 0.25 * (target - expected))
    expected = expected + A.unmeasured(0.95 * expected - expected)
    assert torch.allclose(result, expected, atol=1e-5)


def test_sizes_that_the_network_cannot_halve(models):
    for prior in models:
        x = torch.randn(2, 2, 65, 67)
        assert prior.score(x, 0.5).shape == x.shape
    scan, _ = simple_scan(size=66)
    assert run(scan, models, sampling=replace(PUBLISHED, iterations=1)).image.shape == (4, 66, 66)


def test_batches_of_frames_give_the_same_score(priors):
    x = torch.randn(5, 2, 64, 64)
    whole, parts = (load_prior(priors[0], batch_size=n).score(x, 0.3) for n in (16, 2))
    assert torch.allclose(whole, parts, atol=1e-4)


@pytest.mark.parametrize(
    "change,words",
    [
        ({"sampler": "ddim"}, "unknown"),
        ({"start": "noise"}, "unknown"),
        ({"iterations": 0}, "at least 1"),
        ({"iterations": 9}, "at most sampling.num_scales"),
        ({"order": ()}, "must name"),
        ({"order": ("global", "middle")}, "must name"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_sampling_settings_that_do_not_fit(models, change, words):
    with pytest.raises(InputError, match=words):
        run(simple_scan()[0], models, sampling=replace(PUBLISHED, **change))


@pytest.mark.parametrize(
    "change,words",
    [
        ({"operator": "tv"}, "unknown"),
        ({"operator": "both"}, "unknown"),
        ({"after": "sometimes"}, "unknown"),
        ({"rank": 65}, "exceeds"),
        ({"window": 65, "rank": 0}, "larger than"),
        ({"operator": "motion", "motion_patches": (4, 65)}, "at most 64 pixels"),
    ],
)
def test_optimization_unit_settings_that_do_not_fit(models, change, words):
    with pytest.raises(InputError, match=words):
        run(simple_scan()[0], models, replace(HANKEL, **change))


def test_published_checkpoint_gets_the_published_weight(tmp_path):
    network = tiny_network(init_scale=0.0)
    path = tmp_path / "checkpoint_1.pth"
    shadow = [p.detach() for p in network.parameters() if p.requires_grad]
    torch.save(
        {
            "optimizer": {},
            "model": named_to_upstream(network.state_dict(), network.architecture),
            "ema": {"decay": 0.999, "num_updates": 1, "shadow_params": shadow},
            "step": 1,
        },
        path,
    )
    prior = load_prior(path)
    assert prior.weight == KspaceWeight.published()
    assert not prior.network.architecture["centered"]


def test_checkpoint_without_a_weight(tmp_path):
    save_model(tiny_network(), tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="no k-space weight"):
        load_prior(tmp_path / "m.safetensors")


@pytest.mark.parametrize("acs", [0, 1])
def test_masks_with_hardly_a_centre_are_reconstructed(context_models, acs):
    """Not worse than view sharing, and nothing is refused."""
    scan, reference = simple_scan(8, acs=acs)
    result = run(scan, context_models, FAST, CASCADE)
    shared = prepare(scan).finished(prepare(scan).view_sharing())
    assert truth_psnr(result.image, reference) >= truth_psnr(shared, reference)


def test_priors_of_the_wrong_kind_are_refused(models, context_models):
    scan, _ = simple_scan()
    with pytest.raises(InputError, match="add --sampler published"):
        run(scan, models, FAST, CASCADE)
    with pytest.raises(InputError, match="use --sampler cascade"):
        run(scan, context_models)
    other = replace(models[1], weight=replace(models[1].weight, data_std=0.1))
    with pytest.raises(InputError, match="differ in their noise levels or in data_std"):
        run(scan, (models[0], other))
    with pytest.raises(InputError, match="swap them"):
        run(scan, context_models[::-1], FAST, CASCADE)


# ---------------------------------------------------------------------------------------------- cascade


def knowing_prior(truth, remaining=0.5):
    """A prior that knows the answer: its denoiser moves half way to the truth `(frames, height, width)`."""

    class Knowing:
        path, role, passes, of_scenes, context = "knowing", None, 1, False, Context()
        network = tiny_network()

        def denoise(self, image, model, sigma, periodic):
            return image + model.unmeasured(0.5 * (truth - image))

    prior = Knowing()
    prior.remaining = remaining
    return prior


def test_cascade_keeps_the_measured_samples_and_is_repeatable(context_models):
    scan, _ = simple_scan(5)
    result = run(scan, context_models, FAST, CASCADE)
    assert torch.allclose(fft2c(result.image)[scan.mask], scan.kspace[:, 0][scan.mask], atol=1e-5)
    assert torch.equal(run(scan, context_models, FAST, CASCADE).image, result.image)


def test_a_prior_that_does_not_help_is_rejected():
    """A denoiser whose proposals are random explains nothing of the held-out samples: the result is the OU's."""
    scan, _ = simple_scan()
    generator = torch.Generator().manual_seed(0)
    prior = knowing_prior(torch.randn(scan.mask.shape, dtype=torch.complex64, generator=generator))
    result = run(scan, (prior, prior), FAST, CASCADE)
    assert result.settings["calibration"]["step_sizes"] == (0, 0) and result.log == []
    assert torch.equal(result.image, result.start)
    assert any("GM and LM rejected" in note for note in result.notes)


def test_a_prior_that_knows_is_accepted_and_improves_the_result():
    scan, reference = simple_scan()
    problem = prepare(scan)
    prior = knowing_prior(reference.image / problem.scale)
    unit = run_optimization_unit(problem, FAST)
    start = unit.image
    schedule, _ = calibrate(problem, [prior, prior], unit, True)
    assert schedule.held_out > 0
    ou = truth_psnr(problem.finished(start), reference)
    for after in ("never", "both"):
        result = run(scan, (prior, prior), replace(FAST, after=after), CASCADE)
        sizes = result.settings["calibration"]["step_sizes"]
        assert all(size == pytest.approx(1, abs=1e-3) for size in sizes)
        assert truth_psnr(result.image, reference) > ou + 2
    assert any("GM accepted (step size 1.00)" in note and "lower than with the" in note for note in result.notes)


def test_orders_of_the_cascade(context_models, monkeypatch):
    def schedule(problem, priors, *rest):
        steps = tuple(Step(place, 0.1, 0.9) for place in range(len(priors)))
        return Schedule(steps, (0.9,) * len(priors), 0.1, 9, 1.0, 0.9), None

    monkeypatch.setattr("sampling.calibrate", schedule)
    scan, _ = simple_scan(5)
    orders = (("global", "local"), ("local", "global"), ("global",), ("local",))
    images = [run(scan, context_models, FAST, replace(CASCADE, order=order)).image for order in orders]
    assert all(not torch.equal(a, b) for i, a in enumerate(images) for b in images[:i])


def test_fully_sampled_scan_holds_nothing_out_and_costs_no_pass(context_models):
    scan, _ = simple_scan(5, acceleration=1)
    result = run(scan, context_models, FAST, CASCADE)
    assert result.settings["calibration"]["held_out"] == 0 and result.settings["passes_per_frame"] == 0
    assert sum("no samples can be held out: the scan is fully sampled" in note for note in result.notes) == 3
    assert result.error_std is None


def test_checkpoints_are_loaded_first_and_a_mixed_pair_is_reported(context_models):
    scan, _ = simple_scan(5, acceleration=1)
    with pytest.raises(InputError, match="global_model is 'gm.safetensors'; load it with"):
        reconstruct(scan.kspace, scan.mask, "gm.safetensors")
    for models, count in ((context_models, 0), ((context_models[0], None), 1)):
        notes = run(scan, models, FAST, CASCADE).notes
        assert sum("one was given, the other is the shipped one" in note for note in notes) == count


def test_a_prior_takes_the_steps_it_was_trained_through(context_models):
    prior = replace(context_models[0], shares=(0.8, 0.6))
    problem = prepare(simple_scan(5)[0])
    start = problem.view_sharing()
    found = prior.denoise(start, problem.model, 0.1, True)
    assert torch.allclose(problem.model.forward(found), problem.measured, atol=1e-5) and prior.passes == 2
    one = replace(prior, shares=(1.0,))
    first = one.denoise(start, problem.model, 0.1, True)
    second = one.denoise(first, problem.model, 0.1 * STEP_SHARE, True)
    assert torch.allclose(found, second, atol=1e-6) and not torch.allclose(found, start, atol=1e-4)


@pytest.mark.parametrize("coils", [1, 3])
def test_transposed_scan_gives_the_transposed_result(coils, context_models, monkeypatch):
    """Lines may run along either axis."""
    schedule = Schedule((Step(0, 0.1, 1.0), Step(1, 0.1, 1.0)), (1.0, 1.0), 0.1, 9, 1.0, 0.9)
    monkeypatch.setattr("sampling.calibrate", lambda *arguments: (schedule, None))
    scan, reference = simple_scan(5)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(coils, 1, 1, dtype=torch.complex64, generator=generator)
    ramp = torch.linspace(0.5, 1, 64)[None, :, None] ** torch.arange(1, coils + 1)[:, None, None]
    kspace = torch.where(scan.mask[:, None], fft2c(reference.image[:, None] * weights * ramp), 0)
    config = get_default_configs()
    config.sampling.sampler, config.ou.operator, config.ou.llr_iterations = "cascade", "llr", 10
    one, other = (
        reconstruct(turn(kspace), turn(scan.mask), *context_models, config) for turn in (lambda x: x, lambda x: x.mT)
    )
    for name in ("image", "start", "maps"):
        image = getattr(one, name)
        assert torch.allclose(image, getattr(other, name).mT, atol=1e-3 * image.abs().max().item())
    assert not torch.equal(one.image, one.start)


@pytest.mark.parametrize("operator", ["hankel", "llr"])
def test_strength_weakens_the_optimization_unit(operator):
    problem = prepare(simple_scan()[0])
    image = problem.model.adjoint(problem.measured)
    unit = [OptimizationUnit(replace(HANKEL, operator=operator)) for _ in range(3)]
    moved = [(u(image, s) - image).norm() for u, s in zip(unit, (0.0, 0.5, 1.0), strict=True)]
    assert moved[0] < 1e-5 * image.norm() and moved[0] < moved[1] < moved[2]


@pytest.mark.parametrize("operator", ["hankel", "llr", "motion"])
def test_optimization_unit_improves_on_zero_filling(operator):
    scan, reference = simple_scan()
    problem = prepare(scan)
    result = run_optimization_unit(problem, replace(HANKEL, operator=operator, motion_patches=(4,), motion_steps=10))
    before = truth_psnr(problem.finished(problem.model.adjoint(problem.measured)), reference)
    assert truth_psnr(problem.finished(result.image), reference) > before + 5
