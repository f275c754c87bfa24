from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.calibration import agreement, calibration
from mri.fourier import ifft2c
from mri.masks import make_mask
from mri.phantom.scan import simulate_scan
from mri.scan import Scan
from reconstruction.prepare import prepare
from reconstruction.settings import OUSettings, SamplingSettings
from reconstruction.uncertainty import (
    BRIGHTNESS,
    CORRECTION,
    ESTIMATED,
    GAIN,
    GAIN_SCATTERED,
    LEAST,
    LEAST_CORRECTION,
    LEVEL,
    SPREAD,
    evidence,
    held_out_level,
    likely_error,
)
from sampling import reconstruct_problem
from tests.conftest import simple_scan


def test_more_where_the_samples_do_not_decide_where_low_rank_is_far_and_where_there_is_signal():
    generator = torch.Generator().manual_seed(0)
    image, one, other, third = torch.randn(4, 4, 64, 64, dtype=torch.complex64, generator=generator)
    differences = {"without": 0.01 * one, "alone": 0.01 * third, "low_rank": 0.005 * other}

    def ratio(brighter=1.0, priors=True, **larger):
        """Likely error of the right half to that of the left one, with differences this many times larger there."""
        right = (torch.arange(64) >= 32).float()
        shown = image * (1 + (brighter - 1) * right)
        images = {name: shown + d * (1 + (larger.get(name, 1) - 1) * right) for name, d in differences.items()}
        if not priors:
            images["alone"] = None
        deviation = likely_error(shown, **images)
        assert deviation.shape == image.shape and deviation.isfinite().all()
        return (deviation[..., 40:].mean() / deviation[..., :24].mean()).item()

    assert ratio() == pytest.approx(1, rel=0.03)
    assert ratio(priors=False) == pytest.approx(1, rel=0.03)
    assert ratio(without=4) == pytest.approx(4 ** (SPREAD * 2 / 3), rel=0.03)  # in the frame and averaged over time
    assert ratio(alone=4) == pytest.approx(4 ** (SPREAD / 3), rel=0.03)
    assert ratio(priors=False, without=4) == pytest.approx(4**SPREAD, rel=0.03)
    assert ratio(low_rank=4) == pytest.approx(4**CORRECTION, rel=0.03)
    assert ratio(brighter=4) == pytest.approx(4**BRIGHTNESS, rel=0.03)


def test_frames_lend_each_other_their_spread():
    image = torch.zeros(16, 32, 32, dtype=torch.complex64)
    without = image + 0.01
    without[0] = 0.002
    for alone, of_frame in ((image + 0.01, 1 / 3), (None, 2 / 3)):
        deviation = likely_error(image, without, alone, image + 0.1)
        ratio = (deviation[0].mean() / deviation[1].mean()).item()
        assert ratio == pytest.approx(0.2 ** (SPREAD * of_frame), rel=0.02)  # 0.2 ^ SPREAD, if each frame stood alone


def test_the_likely_error_is_where_the_error_is(context_priors):
    """Of a scan of another generator than the scenes of the fit."""
    scan, reference = simple_scan(8, 64, "uniform", 8)
    result = reconstruct_problem(
        prepare(Scan.from_arrays(scan.kspace, scan.mask)), (None, None), OUSettings(),
        SamplingSettings(sampler="cascade"),
    )  # fmt: skip
    error = (result.image - reference.image).abs().numpy()
    found = agreement(result.error_std.numpy(), error)
    assert found["rank_correlation"] > 0.4 and found["auc"] > 0.75
    ratio = np.sqrt(np.mean(np.square(error))) / result.error_std.square().mean().sqrt().item()
    assert 0.4 < ratio < 2.5


@pytest.mark.parametrize("coils,noise_std", [(1, 0.0), (1, 0.005), (3, 0.003)])
def test_the_level_is_that_of_the_error_left(coils, noise_std):
    """Images that are wrong where the samples of each are missing, at random."""
    heart = simulate_scan("heart", 16, 64, 0, coils, 0.0)
    generator = torch.Generator().manual_seed(0)
    mask = make_mask("uniform", (16, 64, 64), 6, 8)
    problem = prepare(Scan.from_arrays(heart.kspace, mask, coil_maps=heart.maps, noise_std=noise_std))
    truth, wrong = heart.image / problem.scale, torch.randn(16, 64, 64, dtype=torch.complex64, generator=generator)
    noise = problem.noise_std * torch.randn(problem.measured.shape, dtype=torch.complex64, generator=generator)
    problem = replace(problem, measured=torch.where(mask[:, None], problem.model.kspace(truth) + noise, 0))
    held_out = problem.held_out(0)
    images = [truth + ifft2c(torch.where(seen, 0, 0.02 * wrong)) for seen in (mask, held_out.kept)]
    level = held_out_level(problem, held_out, *images)
    assert level == pytest.approx((images[0] - truth).abs().square().mean().item(), rel=0.3)
    if noise_std:  # an upper bound: less is subtracted
        bound = held_out_level(replace(problem, noise_known=False), held_out, *images)
        missing = (~held_out.kept).float().mean().item()
        assert bound - level == pytest.approx((1 - ESTIMATED) * coils * problem.noise_std**2 * missing, rel=0.01)
    far = held_out_level(problem, held_out, images[1] + 1, images[1])  # what changed explains more than there is
    same = held_out_level(problem, held_out, images[1], images[1])
    assert far == pytest.approx(LEAST * same)
    spokes = replace(problem, model=replace(problem.model, mask=make_mask("radial", (16, 64, 64), 6, 0)))
    assert held_out_level(spokes, spokes.held_out(0), *images) is None


def test_the_level_of_the_held_out_samples_counts():
    image, generator = torch.zeros(4, 32, 32, dtype=torch.complex64), torch.Generator().manual_seed(0)
    other = 0.01 * torch.randn(image.shape, dtype=torch.complex64, generator=generator)
    low, high = (likely_error(image, other, None, 0.3 * other, level) for level in (1e-4, 1e-2))
    assert torch.allclose(high / low, torch.tensor(100 ** (LEVEL / 2)))


def test_where_hardly_anything_is_put_back_the_spread_is_the_lower_bound():
    image, generator = torch.ones(4, 32, 32, dtype=torch.complex64), torch.Generator().manual_seed(0)
    without = image + 0.02 * torch.randn(image.shape, dtype=torch.complex64, generator=generator)
    none, little, much = (likely_error(image, without, None, image + far) for far in (0.0, 1e-4, 0.1))
    assert torch.equal(none, little) and (much > 1.5 * none).all()
    found = evidence(image, without, None, image)
    assert torch.equal(found.correction, LEAST_CORRECTION * found.spread)


@pytest.mark.parametrize("level,gain", [(1e-4, GAIN), (None, GAIN_SCATTERED)])
def test_the_size_is_that_of_the_product(level, gain):
    """Equal everywhere: 0.01 from both others, 0.001 from low rank, brightness 0.5."""
    image = torch.full((4, 32, 32), 0.5, dtype=torch.complex64)
    found = likely_error(image, image + 0.01, image - 0.01, image + 0.001, level)
    product = 1e-4**SPREAD * 1e-6**CORRECTION * 0.25**BRIGHTNESS
    expected = (gain * product * ((level / product) ** LEVEL if level else 1)) ** 0.5
    assert torch.allclose(found, torch.tensor(expected), rtol=0.01) and 0.002 < expected < 0.03


def test_agreement_of_known_maps():
    rng = np.random.default_rng(0)
    error = rng.uniform(0, 1, (4, 32, 32))
    for sign, rank, area in ((1, 1, 1), (-1, -1, 0)):
        found = agreement(sign * error**2, error)
        assert found["rank_correlation"] == pytest.approx(rank) and found["auc"] == pytest.approx(area)
    deviation = np.broadcast_to(np.linspace(1, 3, 32), error.shape)  # exactly right, yet single draws rank poorly
    found = agreement(deviation, deviation * rng.standard_normal(error.shape))
    assert found["rank_correlation"] < 0.5 and found["rank_correlation_3x3"] > 0.7
    chance = agreement(rng.uniform(0, 1, error.shape), error)
    assert abs(chance["rank_correlation"]) < 0.06 and abs(chance["auc"] - 0.5) < 0.1


def test_calibration_of_a_known_error_map():
    rng = np.random.default_rng(0)
    deviation = rng.uniform(0.5, 2, (4, 64, 64))
    error = deviation * rng.standard_normal(deviation.shape)
    groups = calibration(deviation, error)
    assert len(groups) == 10 and all(g["error"] == pytest.approx(g["predicted"], rel=0.1) for g in groups)
    flat = calibration(deviation, np.ones_like(deviation))
    assert {round(g["error"], 6) for g in flat} == {1}
