"""Fitting the constants of the likely error."""

import numpy as np
import pytest
import torch

from benchmarks.fit_likely_error import fit, observed, simulate
from configs.ve.cpu_demo import get_config
from models.prior import load_shipped
from mri.fourier import fft2c
from mri.scan import Scan
from reconstruction.settings import MODELS
from reconstruction.uncertainty import modelled
from run_lib import Job


def test_known_constants_are_found():
    rng = np.random.default_rng(0)
    known, scans = np.array([np.log(0.5), 0.6, 0.3]), []
    for _ in range(4):
        spread, distance = 10 ** rng.uniform(-6, -2, (2, 8, 40, 40))
        squared = modelled(spread, distance, 0.5, 0.6, 0.3) * rng.exponential(size=spread.shape)
        scans.append((np.sqrt(squared), spread, distance))
    assert fit(scans) == pytest.approx(known, abs=0.1)


@pytest.mark.parametrize("number,coils", [(1, {1}), (4, {1, 4, 8})])  # every fifth is a heart
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
    error, spread, distance = observed(scan, reference, Job.from_config(config, 0), priors)
    assert error.shape == spread.shape == distance.shape == reference.image.shape
    assert 0 < np.median(error) < 0.1 and 1.5 * spread.mean() < distance.mean()  # images are of unit scale
    full = Scan.from_arrays(fft2c(reference.image), torch.ones_like(scan.mask), noise_std=0.0)  # nothing to hold out
    assert observed(full, reference, Job.from_config(config, 0), priors) is None
    config.ou.operator = "llr"  # priors do not go on from its result
    assert observed(scan, reference, Job.from_config(config, 0), priors) is None
