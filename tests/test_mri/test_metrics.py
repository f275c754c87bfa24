"""Scores against hand computations."""

import math

import numpy as np
import pytest
import torch

from mri.metrics import COMMON_SCALE_COLUMNS, PAPER_COLUMNS, edge_time, evaluate, moving_row
from mri.phantom import make_phantom
from utils.errors import InputError


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(12, 64, 0)


def moving_edge(frames=16, size=32, speed=1):
    """A bright block that moves one pixel per frame: every pixel it enters or leaves is a step in time."""
    image = np.full((frames, size, size), 0.1)
    for t in range(frames):
        image[t, 8:24, speed * t : speed * t + 10] = 1
    return image


def test_equal_images(phantom):
    scores = evaluate(phantom, phantom)
    assert tuple(scores) == (*COMMON_SCALE_COLUMNS, *PAPER_COLUMNS)
    assert scores["psnr_common"] == scores["psnr"] == np.inf and scores["psnr_std"] == 0
    for name, value in {"ssim": 1, "ssim_common": 1, "nmse": 0, "mse_e4": 0, "hfen": 0, "xt_error": 0, "gain": 1,
                        "gain_range": 0, "edge_time": 1}.items():  # fmt: skip
        assert scores[name] == pytest.approx(value, abs=1e-9), name


def test_scores_by_hand(phantom):
    generator = torch.Generator().manual_seed(0)
    image = phantom.abs() + 0.02 * torch.randn(phantom.shape, generator=generator)
    scores = evaluate(image, phantom)
    rec, ref = image.abs().double().numpy(), phantom.abs().double().numpy()
    error = (rec - ref) ** 2
    assert scores["psnr_common"] == pytest.approx(-10 * np.log10(error.mean() / ref.max() ** 2))
    assert scores["nmse"] == pytest.approx(error.sum() / (ref**2).sum())
    assert scores["gain"] == pytest.approx((rec * ref).sum() / (rec**2).sum())
    own = [((r / r.max() - f / f.max()) ** 2).mean() for r, f in zip(rec, ref, strict=True)]
    assert scores["mse_e4"] == pytest.approx(1e4 * np.mean(own))
    assert scores["psnr"] == pytest.approx(np.mean([-10 * np.log10(mse) for mse in own]))
    assert scores["psnr_std"] == pytest.approx(np.std([-10 * np.log10(mse) for mse in own]))


def test_a_frame_that_dims_shows_in_the_gain_and_not_in_the_paper_s_scores(phantom):
    dimmed = phantom.clone()
    dimmed[3] *= 0.5
    scores = evaluate(dimmed, phantom)
    assert scores["gain_range"] == pytest.approx(1.0) and scores["gain"] > 1
    assert scores["psnr_common"] < 40 and scores["ssim"] == pytest.approx(1)
    half = evaluate(0.5 * phantom, phantom)
    assert half["gain"] == pytest.approx(2) and half["gain_range"] == pytest.approx(0, abs=1e-6)
    assert half["nmse"] == pytest.approx(0.25) and half["psnr"] > 100


def test_edges_smoothed_in_time_take_longer():
    sharp = moving_edge()
    assert edge_time(sharp, sharp) == pytest.approx(1)
    previous = sharp
    for weight in (0.1, 0.25, 0.33):
        blurred = (1 - 2 * weight) * sharp + weight * (np.roll(sharp, 1, 0) + np.roll(sharp, -1, 0))
        assert edge_time(blurred, sharp) > max(1.05, edge_time(previous, sharp))
        previous = blurred
    noise = 0.02 * np.random.default_rng(0).standard_normal(sharp.shape)
    assert edge_time(sharp + noise, sharp) == pytest.approx(1, abs=0.05)


def test_edge_time_of_a_heart(phantom):
    truth = phantom.abs().numpy()
    blurred = 0.5 * truth + 0.25 * (np.roll(truth, 1, 0) + np.roll(truth, -1, 0))
    assert edge_time(truth, truth) == pytest.approx(1) and edge_time(blurred, truth) > 1.05
    still = np.repeat(truth[:1], 12, axis=0)
    assert np.isnan(edge_time(still, still)) and np.isnan(edge_time(truth[:2], truth[:2]))


def test_rise_time_of_a_step_by_hand():
    """A step within one frame interval rises from 10 to 90 % in 0.8 frames."""
    course = np.zeros((12, 10, 10))
    course[6:, 4, 4] = 1
    # one value half-way doubles it: 1.6 frames
    slow = course.copy()
    slow[6, 4, 4] = 0.5
    assert edge_time(slow, course) == pytest.approx(2)
    assert edge_time(3 * slow, course) == pytest.approx(2)  # whatever the gain
    assert edge_time(1 - slow, 1 - course) == pytest.approx(2)  # also where it becomes darker
    # a reconstruction that does not move gets the window: 2 frames before and after the step
    assert edge_time(np.zeros_like(course), course) == pytest.approx(5 / 0.8)


def test_noise_and_ramps_are_no_edges():
    generator = np.random.default_rng(0)
    still = np.abs(0.5 + 0.02 * generator.standard_normal((16, 48, 48)))
    ramp = np.broadcast_to(np.linspace(0, 1, 16)[:, None, None], (16, 48, 48))
    assert math.isnan(edge_time(still, still)) and math.isnan(edge_time(ramp, ramp))


def test_edge_time_forgives_noise(phantom):
    truth = phantom.abs().double().numpy()
    scores = [
        edge_time(np.abs(truth + 0.02 * np.random.default_rng(seed).standard_normal(truth.shape)), truth)
        for seed in range(5)
    ]
    assert np.mean(scores) == pytest.approx(1, abs=0.04) and np.std(scores) < 0.05


def test_an_empty_frame_needs_an_infinite_gain(phantom):
    dark = phantom.clone()
    dark[2] = 0
    scores = evaluate(dark, phantom)
    assert scores["gain_range"] == math.inf and scores["gain"] == pytest.approx(1)


def test_phase_does_not_matter(phantom):
    noisy = phantom.abs() + 0.02 * torch.rand(phantom.shape, generator=torch.Generator().manual_seed(0))
    turned = evaluate(noisy * torch.exp(torch.tensor(0.7j)), phantom)
    assert turned == pytest.approx(evaluate(noisy, phantom), rel=1e-5)


def test_moving_row_is_where_the_image_changes():
    image = torch.zeros(6, 40, 40)
    image[:, 25, 10:20] = torch.arange(6.0)[:, None]
    assert abs(moving_row(image) - 25) <= 2


def test_odd_sizes_and_other_shapes(phantom):
    odd = phantom[:, :63, :61]
    assert evaluate(odd, odd)["ssim"] == pytest.approx(1)
    with pytest.raises(InputError, match="shape"):
        evaluate(phantom, odd)
