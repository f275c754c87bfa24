"""The optimization unit: what it chooses on held-out samples, and what it makes of a scan."""

from dataclasses import replace

import pytest
import torch

from models.prior import load_prior, load_shipped
from mri.fourier import fft2c
from mri.holdout import hold_out
from mri.masks import make_mask
from mri.metrics import evaluate
from mri.phantom import make_phantom, simulate_scan
from mri.scan import Scan
from reconstruction.optimization_unit import (
    OptimizationUnit,
    choose_settings,
    run_optimization_unit,
    with_operator,
)
from reconstruction.prepare import prepare
from reconstruction.settings import OUSettings, SamplingSettings
from sampling import reconstruct_problem
from utils.errors import InputError

SHORT = OUSettings(operator="motion", motion_patches=(6,), motion_steps=10, motion_last=0.002)
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
def test_patch_and_steps_are_chosen_on_held_out_samples(coils):
    problem, _ = make_problem(coils)
    settings = replace(SHORT, motion_patches=(6, 8))
    chosen, without, gain = choose_settings(problem, settings, 0)
    assert chosen.operator == "motion" and chosen.motion_patch in (6, 8) and chosen.motion_taken % 5 == 0
    assert 0.02 < gain < 1
    kept, _ = hold_out(problem.model.mask, seed=0)
    assert torch.equal(without, OptimizationUnit(chosen).solve(problem.restricted(kept)))
    result = run_optimization_unit(problem, settings)
    assert torch.equal(result.image, run_optimization_unit(problem, chosen).image)
    assert result.settings == chosen and torch.equal(result.without_held_out, without)
    other = replace(chosen, motion_taken=chosen.motion_taken - 1)  # both given: nothing is searched
    assert not torch.equal(result.image, run_optimization_unit(problem, other).image)
    given = replace(settings, motion_patch=8, motion_taken=10)
    assert choose_settings(problem, given, 0) == (given, None, None)


def test_the_search_ends_where_nothing_better_comes(problem, monkeypatch):
    """The largest patch first; a size ends after two looks without improvement, all with a size that is no better."""
    settings = replace(SHORT, motion_patches=(4, 8, 6), motion_steps=30)
    looks = iter([100, 50, 40, 41, 42, 60, 45, 44, 43, 42, 41])  # llr; 8: best at step 10; 6: 30 steps
    taken = []

    def along(self, start, problem, patch):
        for _ in range(30):
            taken.append(patch)
            yield start

    monkeypatch.setattr("reconstruction.optimization_unit.held_out_error", lambda *_: next(looks))
    monkeypatch.setattr(OptimizationUnit, "along_motion", along)
    chosen, _, gain = choose_settings(problem, settings, 0)
    assert (chosen.motion_patch, chosen.motion_taken) == (8, 10) and gain == pytest.approx(0.6)
    assert taken == [8] * 20 + [6] * 30  # 4 is not tried


def test_motion_tracking_is_used_only_if_it_lowers_the_held_out_error(problem, monkeypatch):
    monkeypatch.setattr("reconstruction.optimization_unit.MOTION_MARGIN", 0.999)
    chosen, without, _ = choose_settings(problem, SHORT, 0)
    assert chosen.operator == "llr"
    kept, _ = hold_out(problem.model.mask, seed=0)
    assert torch.equal(without, OptimizationUnit(chosen).solve(problem.restricted(kept)))
    monkeypatch.undo()
    rows = torch.arange(64)[:, None]
    no_acs = problem.restricted((rows // 4 != 7) & (rows // 4 != 8))
    chosen, without, _ = choose_settings(no_acs, SHORT, 0)  # no line can be held out
    assert chosen.operator == "llr" and without is None


def test_reconstruction_says_what_was_chosen(problem, truth, context_priors):
    models = tuple(load_prior(path) for path in context_priors)
    result = reconstruct_problem(problem, models, SHORT, CASCADE)
    unit = run_optimization_unit(problem, SHORT)
    assert torch.equal(result.start, problem.finished(unit.image)) and result.start_seconds > 0
    told = result.settings["config"]["ou"]
    assert told["operator"] == "motion" and told["motion_patch"] == 6 and 0 < told["motion_taken"] <= 10
    assert any("low rank along the motion, patches 6×6" in note and "against llr" in note for note in result.notes)
    without = reconstruct_problem(problem, models, replace(SHORT, operator="llr"), CASCADE)
    assert any(note == "optimization unit: llr" for note in without.notes)
    assert evaluate(result.start, truth)["psnr"] > evaluate(without.start, truth)["psnr"] + 2


def test_a_prior_for_after_the_motion_takes_the_place_of_the_other(problem, context_priors):
    one, other = (load_prior(path) for path in context_priors)
    both = replace(one, after_motion=replace(one, path="after_motion"))
    used = reconstruct_problem(problem, (both, other), SHORT, CASCADE).settings["checkpoints"]
    assert used == ["after_motion", other.path]
    llr = replace(SHORT, operator="llr")
    assert reconstruct_problem(problem, (both, other), llr, CASCADE).settings["checkpoints"] == [one.path, other.path]
    gm, lm = (load_shipped(name, "cascade") for name in ("global", "local"))
    assert gm.after_motion.path.endswith("motion/global.safetensors") and lm.after_motion is None
    assert load_shipped("global", "published").after_motion is None


def test_without_the_unit_nothing_is_searched(problem, context_priors):
    models = tuple(load_prior(path) for path in context_priors)
    result = reconstruct_problem(problem, models, replace(SHORT, after="never"), CASCADE)
    assert result.settings["config"]["ou"]["motion_taken"] == 0
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
     ({"motion_last": 0.0}, "motion_last"), ({"motion_last": 1.0}, "motion_first"), ({"motion_steps": 0}, "steps"),
     ({"motion_patch": 97}, "motion_patch"), ({"motion_patch": 4, "motion_taken": 41}, "motion_taken"),
     ({"motion_taken": 5}, "give both"), ({"motion_patch": 2.5}, "must be a whole number")],
)  # fmt: skip
def test_bad_settings(problem, change, words):
    with pytest.raises(InputError, match=words):
        run_optimization_unit(problem, OUSettings(**{"operator": "motion", **change}))
