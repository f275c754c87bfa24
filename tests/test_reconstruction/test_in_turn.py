"""OU and priors in turn: which prior follows which step, and that held-out samples decide."""

from dataclasses import replace

import pytest
import torch

from models.ncsnpp import NCSNpp
from models.prior import Prior
from mri.lowrank.along_motion import Schedule
from mri.masks import make_mask
from mri.phantom.scan import simulate_scan
from mri.scan import Scan
from reconstruction.in_turn import GENTLE, NOISE_SHARE, STEP_SIZE, cascade_in_turn, follow_priors, step_size, turns
from reconstruction.optimization_unit import run_optimization_unit
from reconstruction.prepare import prepare
from reconstruction.settings import OUSettings

OU = OUSettings(operator="motion", motion_patches=(6, 4), motion_steps=12)


class Known(Prior):
    """A prior that moves the image by a share of what is left to the truth, or away from it."""

    def __init__(self, network, truth, share, seen):
        super().__init__(network, None, "known", of_scenes=True)
        object.__setattr__(self, "seen", seen)
        object.__setattr__(self, "toward", lambda image: share * (truth - image))

    def change(self, image, sigma, periodic):
        self.seen.append(sigma)
        return self.toward(image)


@pytest.fixture(scope="module")
def network():
    return NCSNpp(nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), sigma_min=0.001, sigma_max=0.2)


@pytest.fixture(scope="module")
def problem():
    heart = simulate_scan("heart", 8, 64, 3, 1, 0.0)
    mask = make_mask("uniform", (8, 64, 64), 6, 8)
    scan = Scan.from_arrays(heart.kspace, mask, noise_std=0.0)
    found = prepare(scan)
    return found, heart.image.to(torch.complex64) / found.scale


@pytest.fixture(scope="module")
def result(problem):
    return run_optimization_unit(problem[0], OU)


def test_gm_first_then_lm_over_the_later_half():
    own = turns(Schedule(0.1, 0.01, 40), 2)
    assert min(own) >= 20 and max(own) == 39 and len(own) == 10
    order = [own[step] for step in sorted(own)]
    assert order == [0] + [1] * 9
    assert set(turns(Schedule(0.1, 0.01, 40), 1).values()) == {0}
    assert [place for _, place in sorted(turns(Schedule(0.1, 0.01, 64), 3).items())] == [0, 0, 1, 1] + [2] * 12


def test_a_prior_gets_the_noise_of_its_step(problem, network):
    seen: list[float] = []
    prior = Known(network, problem[1], 1.0, seen)
    schedule = Schedule(0.1, 0.01, 10)
    follow = follow_priors([prior], schedule, False)
    x = torch.zeros_like(problem[1])
    assert torch.equal(follow(x, schedule.noise(0), 0), x)
    assert torch.allclose(follow(x, schedule.noise(9), 9), STEP_SIZE * problem[1])
    assert seen == [pytest.approx(NOISE_SHARE * 0.01)]
    noisy = Schedule(0.1, 4 * GENTLE / NOISE_SHARE, 10)  # the noisier, the less far it is followed
    assert torch.allclose(follow_priors([prior], noisy, False)(x, noisy.noise(9), 9), STEP_SIZE / 4 * problem[1])
    assert seen.pop() == pytest.approx(4 * GENTLE) and step_size(4 * GENTLE) == STEP_SIZE / 4
    for unknown in (0.9 * prior.sigma_min, 1.1 * prior.sigma_max):
        assert torch.equal(follow(x, unknown / NOISE_SHARE, 9), x) and len(seen) == 1


def error(image, truth):
    return ((image - truth).norm() / truth.norm()).item()


def test_a_prior_that_helps_is_followed_and_one_that_harms_is_not(problem, result, network):
    found, truth = problem
    truth = truth.mT if found.turned else truth
    good = [Known(network, truth, 0.8, []) for _ in range(2)]
    followed = cascade_in_turn(found, good, result, 0)
    schedule = followed.schedule
    assert schedule.step_sizes == (STEP_SIZE, STEP_SIZE) and schedule.error_after < schedule.error_before
    assert error(followed.image, truth) < 0.8 * error(result.image, truth) and followed.without is not None
    assert followed.passes == 2 * len(followed.log) == sum(len(prior.seen) for prior in good)
    assert [one["prior"] for one in followed.log] == sorted(one["prior"] for one in followed.log)
    bad = [Known(network, torch.roll(truth, 9, 1), 0.8, []) for _ in range(2)]
    followed = cascade_in_turn(found, bad, result, 0)
    assert followed.schedule.step_sizes == (0, 0) and torch.equal(followed.image, result.image)
    assert not followed.log and followed.passes == len(bad[0].seen) + len(bad[1].seen) > 0


def test_a_prior_that_knows_no_noise_level_of_its_turns_is_not_called_accepted(problem, result, network):
    found, truth = problem
    truth = truth.mT if found.turned else truth
    elsewhere = NCSNpp(nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), sigma_min=0.5, sigma_max=0.9)
    followed = cascade_in_turn(found, [Known(network, truth, 0.8, []), Known(elsewhere, truth, 0.8, [])], result, 0)
    assert followed.schedule.step_sizes == (STEP_SIZE, 0) and {one["prior"] for one in followed.log} == {0}


def test_without_held_out_samples_nothing_is_followed(problem, result, network):
    prior = Known(network, problem[1], 1.0, [])
    followed = cascade_in_turn(problem[0], [prior], replace(result, held_out=None), 0)
    assert torch.equal(followed.image, result.image) and followed.schedule.held_out == 0
