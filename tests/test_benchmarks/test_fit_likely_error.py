"""Fitting the constants of the likely error."""

import numpy as np
import pytest
import torch

from benchmarks.fit_likely_error import Constants, Observed, fit, observed, predicted, simulate
from configs.ve.cpu_demo import get_config
from models.prior import load_shipped
from mri.fourier import fft2c
from mri.scan import Scan
from reconstruction.settings import MODELS
from reconstruction.uncertainty import FLOOR, Evidence
from run_lib import Job
from utils.errors import InputError


def test_known_constants_are_found():
    rng = np.random.default_rng(0)
    known, scans = Constants((0.6, 0.3, 0.1), 0.25, 0.5, 0.8), []
    for level in (1e-3, 1e-5, 1e-4, None, None):
        squares = Evidence(*10 ** rng.uniform(-6, -2, (3, 8, 40, 40)))
        one = Observed(squares.spread, squares, level)
        scans.append(one._replace(error=np.sqrt(predicted(one, known) * rng.exponential(size=squares.spread.shape))))
    found = fit(scans)
    assert found.powers == pytest.approx(known.powers, abs=0.03) and found.of_level == pytest.approx(0.25, abs=0.03)
    assert (found.gain, found.gain_scattered) == pytest.approx((known.gain, known.gain_scattered), rel=0.2)
    for kind in (scans[:3], scans[3:]):
        with pytest.raises(InputError, match="give more --scenes"):
            fit(kind)


@pytest.mark.parametrize("number,coils", [(2, {1}), (3, {1, 4, 8})])  # every other one is a heart
def test_scenes_are_repeatable(number, coils):
    (one, reference, said), (other, *_) = simulate(number), simulate(number)
    assert torch.equal(one.kspace, other.kspace) and torch.equal(one.mask, other.mask)
    assert said["coils"] in coils and one.kspace.shape[1] == said["coils"]
    assert reference.image.shape == one.mask.shape and 3 <= said["acceleration"] <= 10


def test_what_the_cascade_leaves_is_observed():
    config = get_config()
    config.sampling.sampler, config.ou.motion_steps = "cascade", 8
    scan, reference, _ = simulate(0)
    priors = [load_shipped(name, "cascade") for name in MODELS]
    error, squares, level = observed(scan, reference, Job.from_config(config, 0), priors)
    assert 0.3 < np.mean(error**2) / level < 3
    assert all(one.shape == error.shape == reference.image.shape for one in squares)
    assert 0 < np.median(error) < 0.1  # images are of unit scale
    assert squares.spread.mean() < 0.1 * squares.brightness.mean()
    assert 100 * FLOOR < np.median(squares.correction) < np.median(squares.brightness) / 10
    full = Scan.from_arrays(fft2c(reference.image), torch.ones_like(scan.mask), noise_std=0.0)  # nothing to hold out
    assert observed(full, reference, Job.from_config(config, 0), priors) is None
    config.ou.operator = "llr"  # priors do not go on from its result
    assert observed(scan, reference, Job.from_config(config, 0), priors) is None
