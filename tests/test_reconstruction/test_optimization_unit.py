"""The optimization unit: what it chooses on held-out samples, and what it makes of a scan."""

import time
from dataclasses import replace

import pytest
import torch

from models.prior import load_prior
from mri.fourier import fft2c
from mri.holdout import hold_out_sets
from mri.lowrank.along_motion import motion_low_rank
from mri.masks import make_mask
from mri.metrics import evaluate
from mri.phantom import make_phantom, simulate_scan
from mri.scan import Scan
from reconstruction.optimization_unit import (
    OptimizationUnit,
    Solved,
    motion_schedule,
    put_back,
    run_optimization_unit,
    schedule_for,
    shares_centre,
    with_operator,
)
from reconstruction.prepare import prepare
from reconstruction.settings import OUSettings, SamplingSettings
from sampling import reconstruct_problem
from tests.conftest import simple_scan
from utils.errors import InputError
from utils.threads import leave_if_stopped

SHORT = OUSettings(operator="motion", motion_patches=(6,), motion_steps=10)
CASCADE = SamplingSettings(sampler="cascade")


def make_problem(coils=1):
    mask = make_mask("uniform", (8, 64, 64), 4, 8)
    if coils == 1:
        image = make_phantom(8, 64, 3)
        return prepare(Scan.from_arrays(fft2c(image), mask)), image
    found = simulate_scan("simple", 8, 64, 3, coils, 0.002)
    return prepare(Scan.from_arrays(found.kspace, mask, noise_samples=found.noise)), found.image


@pytest.fixture(scope="module")
def problem():
    return make_problem()[0]


@pytest.fixture(scope="module")
def truth():
    return make_phantom(8, 64, 3)


@pytest.mark.parametrize("coils", [1, 4])
def test_what_is_held_out_is_not_seen(coils):
    problem, _ = make_problem(coils)
    result = run_optimization_unit(problem, SHORT)
    assert result.settings == SHORT and not result.is_start and 0.02 < result.gain < 1
    assert torch.equal(result.image, OptimizationUnit(SHORT).solve(problem))
    consistent = problem.model.consistent(result.low_rank, problem.measured)
    assert torch.allclose(result.image, result.low_rank + put_back(problem) * (consistent - result.low_rank), atol=1e-6)
    kept = result.held_out.kept
    assert torch.equal(result.held_out.settings, hold_out_sets(problem.model.mask, 0).settings)
    assert torch.equal(result.without_held_out, OptimizationUnit(SHORT).solve(problem.restricted(kept)))
    assert torch.equal(result.start_without, problem.restricted(kept).view_sharing())


@pytest.mark.parametrize("threads", [1, 2])
def test_what_does_harm_is_left(request, problem, monkeypatch, threads):
    """Motion, then `llr`, then view sharing; on two threads the final run has begun by then, and is stopped."""
    harmful, before, ends = {"motion"}, torch.get_num_threads(), []
    request.addfinalizer(lambda: torch.set_num_threads(before))
    torch.set_num_threads(threads)
    solve = OptimizationUnit.solved

    def spoilt(unit, one, steps=0):
        if unit.operator not in harmful:
            return solve(unit, one, steps)
        if one is problem:  # the final run is the longer one
            for _ in range(60_000):
                leave_if_stopped()
                time.sleep(0.001)
            ends.append("not stopped")
        return Solved(0 * one.view_sharing())

    monkeypatch.setattr(OptimizationUnit, "solved", spoilt)
    result = run_optimization_unit(problem, SHORT)
    assert result.settings.operator == "llr" and not result.is_start and result.gain > 0 and result.low_rank is None
    harmful.add("llr")
    result = run_optimization_unit(problem, SHORT)
    assert result.is_start and torch.equal(result.image, problem.view_sharing()) and result.gain == 0
    assert not ends and torch.get_num_threads() == threads


def test_without_lines_to_hold_out_nothing_is_compared(problem):
    few = problem.restricted(make_mask("uniform", (8, 64, 64), 32, 0))
    result = run_optimization_unit(few, SHORT)
    assert result.gain is None and result.settings == SHORT and not result.held_out


def test_the_noise_ends_the_schedule_and_is_not_put_back():
    mask = make_mask("uniform", (8, 64, 64), 4, 8)
    share = mask.double().mean().item()
    found = simulate_scan("simple", 8, 64, 3, 1, 0.03)
    known = prepare(Scan.from_arrays(found.kspace, mask, noise_std=0.03))
    assert motion_schedule(known).last == pytest.approx(0.85 * known.noise_std * share**0.5)
    assert put_back(known) < 0.05
    assert [schedule_for(share).first for share in (0.5, 0.25, 0.1)] == pytest.approx([0.05, 0.072, 0.1])
    guessed = prepare(Scan.from_arrays(found.kspace, mask))
    assert motion_schedule(guessed).last == pytest.approx(0.75 * guessed.noise_std * share**0.5)
    assert put_back(guessed) == 0.2
    clean = prepare(Scan.from_arrays(fft2c(make_phantom(8, 64, 3)), mask, noise_std=0.0))
    assert put_back(clean) == 1 and motion_schedule(clean).last < 0.01
    assert clean.model.residual(run_optimization_unit(clean, SHORT).image, clean.measured) < 1e-5
    assert motion_schedule(known).steps == round(12 / share) and motion_schedule(known, 7).steps == 7


@pytest.mark.parametrize("coils", [1, 4])
@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_noise_that_is_known_lowers_the_error(noise, coils):
    """The squared error of the low-rank image is below that of images that agree with the noisy samples."""
    mask = make_mask("uniform", (8, 64, 64), 4, 8)
    found = simulate_scan("heart", 8, 64, 3, coils, noise)
    more = {"noise_samples": found.noise} if coils > 1 else {"noise_std": noise}
    problem = prepare(Scan.from_arrays(found.kspace, mask, **more))
    unit, truth = OptimizationUnit(OUSettings(operator="motion")), found.image / problem.scale
    *_, last = unit.along_motion(problem.view_sharing(), problem)

    def error(image):
        return (image.abs() - truth.abs()).square().sum()

    assert error(unit.solve(problem)) < 0.9 * error(last.consistent) < 0.9 * error(problem.view_sharing())


def test_reconstruction_says_what_was_chosen(problem, truth, context_priors):
    models = tuple(load_prior(path) for path in context_priors)
    result = reconstruct_problem(problem, models, SHORT, CASCADE)
    unit = run_optimization_unit(problem, SHORT)
    assert torch.equal(result.start, problem.finished(unit.image)) and result.start_seconds > 0
    assert result.settings["config"]["ou"]["operator"] == "motion"
    assert any("along the motion, 10 steps" in note and "view sharing" in note for note in result.notes)
    assert any("held out for this only" in note for note in result.notes)
    without = reconstruct_problem(problem, models, replace(SHORT, operator="llr"), CASCADE)
    assert any("optimization unit: locally low rank; held-out" in note for note in without.notes)
    assert evaluate(result.start, truth)["psnr"] > evaluate(without.start, truth)["psnr"] + 2


def test_without_the_unit_nothing_is_searched(problem, context_priors):
    models = tuple(load_prior(path) for path in context_priors)
    result = reconstruct_problem(problem, models, replace(SHORT, after="never"), CASCADE)
    assert torch.equal(result.start, problem.finished(problem.view_sharing()))


def test_auto_depends_on_the_sampler():
    assert with_operator(OUSettings(), "published").operator == "hankel"
    assert with_operator(OUSettings(), "cascade").operator == "motion"
    assert with_operator(OUSettings(operator="llr"), "published").operator == "llr"
    with pytest.raises(InputError, match="depends on the sampler"):
        OptimizationUnit(OUSettings())


@pytest.mark.parametrize(
    ("change", "words"),
    [({"motion_patches": (4, 99)}, "motion_patches"), ({"motion_patches": ()}, "motion_patches"),
     ({"motion_steps": -1}, "motion_steps"), ({"motion_steps": 2.5}, "must be a whole number")],
)  # fmt: skip
def test_bad_settings(problem, change, words):
    with pytest.raises(InputError, match=words):
        run_optimization_unit(problem, OUSettings(**{"operator": "motion", **change}))


@pytest.mark.parametrize("steps", [2, 3, 9])
def test_the_later_half_goes_on_as_one_run_would(steps):
    scan, _ = simple_scan(5)
    found = prepare(scan)
    unit = OptimizationUnit(OUSettings(operator="motion", motion_patches=(6, 4), motion_steps=steps))
    start = found.view_sharing()
    *_, one = motion_low_rank(
        start, found.model, found.measured, (6, 4), motion_schedule(found, steps), found.periodic, 0
    )  # fmt: skip
    halves = list(unit.along_motion(start, found))
    assert len(halves) == steps and torch.equal(halves[-1].low_rank, one.low_rank)


def test_a_central_line_that_few_frames_have_is_shared_at_first():
    """Without it the brightness of the other frames drifts: far below view sharing, not beside it."""
    image = make_phantom(16, 64, 3)
    mask = make_mask("uniform", (16, 64, 64), 4, 0)
    problem = prepare(Scan.from_arrays(fft2c(image), mask))
    truth = image.abs() / problem.scale
    errors = [(one.abs() - truth).norm() ** 2 / truth.norm() ** 2
              for one in (problem.view_sharing(), run_optimization_unit(problem, OUSettings(operator="motion")).image)]
    assert errors[1] < 0.5 * errors[0]
    for acceleration, shared in ((2, True), (4, True), (1, False)):
        assert shares_centre(make_mask("uniform", (16, 64, 64), acceleration, 0)) == shared
    mask[:, 32] = True
    assert not shares_centre(mask)
