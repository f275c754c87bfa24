"""OU and priors in turn: which prior follows which step, and that held-out samples decide."""

import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from tqdm import tqdm

from models.ncsnpp import NCSNpp
from models.prior import Prior
from mri.fourier import fft2c, ifft2c
from mri.holdout import improvement
from mri.lowrank.along_motion import Schedule, motion_low_rank
from mri.masks import make_mask
from mri.phantom.scan import simulate_scan
from mri.scan import Scan
from mri.weighting import RAMP_FILTER
from reconstruction.calibration import Schedule as Decision
from reconstruction.in_turn import (
    ERROR_SHARE,
    FEW,
    GENTLE,
    NOISE_SHARE,
    REACH,
    ROTATION,
    STEP_SIZE,
    TAIL,
    WITH_NOISE,
    WITHOUT_NOISE,
    cascade_in_turn,
    follow_priors,
    held_out_error,
    how_far,
    noise_levels,
    schedule_with_priors,
    solve_in_turn,
    step_size,
    turns,
    within_reach,
)
from reconstruction.notes import priors_note
from reconstruction.optimization_unit import FLOOR, images_of, motion_schedule, put_back, run_optimization_unit
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


@pytest.fixture(autouse=True)
def one_thread():
    """With more, a run that is stopped because its trial was rejected has called the priors, too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def upright(monkeypatch):
    """`Known` knows the truth in one phase."""
    monkeypatch.setattr("reconstruction.in_turn.ROTATION", 0.0)


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


@pytest.mark.parametrize("noise_std,known,tail", [(0.0, True, 0.0), (0.1, True, TAIL), (0.1, False, 0.8 * TAIL)])
def test_with_noise_the_last_steps_are_averaged(problem, network, noise_std, known, tail):
    """Over a smaller range where σ is an upper bound, and a fifth of the samples is put back."""
    found, truth = problem
    found = replace(found, noise_std=noise_std, noise_known=known)
    ou, count = run_optimization_unit(found, replace(OU, motion_steps=24)), 24
    prior, schedule = Known(network, truth.mT if found.turned else truth, 0.5, []), motion_schedule(found, count)
    steps = motion_low_rank(
        ou.halfway, found.model, found.measured, OU.motion_patches, schedule_with_priors(schedule, found, 0.01),
        found.periodic, 0, follow_priors([prior], schedule, found.periodic), count // 2,
    )  # fmt: skip
    states = list(steps)
    images, last = [images_of(found, state) for state in states], states[-1]
    limit = (1 + tail) * schedule.noise(count - 1)
    averaged = [image for step, image in enumerate(images, count // 2) if schedule.noise(step) <= 1.0001 * limit]
    image, low_rank, _ = solve_in_turn(found, [prior], ou, ou.halfway, (0.0, 0.01), 0)
    assert torch.equal(low_rank, last.low_rank)
    assert (len(averaged) > 1) == (noise_std > 0) and len(averaged) < count // 2
    assert torch.allclose(image, torch.stack(averaged).mean(0), atol=1e-6)


def test_side_by_side_as_one_after_the_other(problem, network):
    """With two threads or more, the runs with and without the held-out samples run at the same time."""
    found, truth = problem
    truth = truth.mT if found.turned else truth

    def run():
        seen = [[], []]
        priors = [Known(network, truth, 0.5, one) for one in seen]
        unit = run_optimization_unit(found, OU)
        return unit, cascade_in_turn(found, priors, unit, 0), [sorted(one) for one in seen]

    one = run()
    torch.set_num_threads(2)
    two = run()
    pairs = [(getattr(one[0], name), getattr(two[0], name)) for name in ("image", "without_held_out")]
    pairs += [(getattr(one[1], name), getattr(two[1], name)) for name in ("image", "without")]
    for alone, at_once in pairs:  # PyTorch's Fourier transforms round differently on two threads
        assert (alone - at_once).norm() < 1e-2 * (alone - truth).norm()
    assert one[1].schedule.followed > 0 and one[1].passes == two[1].passes == sum(map(len, two[2]))
    assert [step["step"] for step in one[1].log] == [step["step"] for step in two[1].log]
    assert np.allclose(one[2][1], two[2][1], rtol=1e-4)


def test_a_run_that_is_rejected_is_stopped(problem, result, network):
    found, truth = problem
    bad = [Known(network, torch.roll(truth, 9, 1), 0.8, []) for _ in range(2)]
    one = cascade_in_turn(found, bad, result, 0)
    torch.set_num_threads(2)
    with tqdm(total=1, file=io.StringIO(), mininterval=0) as bar:
        two = cascade_in_turn(found, bad, result, 0, bar)
        assert torch.get_num_threads() == 2
        bar.refresh()
    assert torch.equal(two.image, result.image) and two.schedule.step_sizes == (0, 0)
    assert one.passes == two.passes


def test_a_prior_gets_the_noise_of_its_step(problem, network):
    seen: list[float] = []
    prior = Known(network, problem[1], 1.0, seen)
    schedule = Schedule(0.1, 0.01, 10)
    follow = follow_priors([prior], schedule, False)
    x = torch.zeros_like(problem[1])
    assert torch.equal(follow(x, 0), x)
    assert torch.allclose(follow(x, 9), STEP_SIZE * problem[1])
    assert seen == [pytest.approx(NOISE_SHARE * 0.01)]
    noisy = Schedule(0.1, 4 * GENTLE / NOISE_SHARE, 10)  # the noisier, the less far it is followed
    assert torch.allclose(follow_priors([prior], noisy, False)(x, 9), STEP_SIZE / 4 * problem[1])
    assert seen.pop() == pytest.approx(4 * GENTLE) and step_size(4 * GENTLE) == STEP_SIZE / 4
    for unknown in (0.9 * prior.sigma_min, 1.1 * prior.sigma_max):
        outside = Schedule(2 * unknown / NOISE_SHARE, unknown / NOISE_SHARE, 10)
        assert torch.equal(follow_priors([prior], outside, False)(x, 9), x) and len(seen) == 1


def test_a_prior_sees_every_phase_and_its_change_is_turned_back(problem, network, monkeypatch):
    phases = []

    class Turned(Known):
        def change(self, image, sigma, periodic):
            phases.append((image.flatten()[0] / x.flatten()[0]).item())
            return 0.5 * image if self.equivariant else image.abs() + 0j

    x = problem[1] + 0.1
    schedule = Schedule(0.008, 0.004, 80)  # σ at which the step size is STEP_SIZE
    upright = STEP_SIZE * 0.5 * x
    monkeypatch.setattr("reconstruction.in_turn.ROTATION", ROTATION)
    prior = Turned(network, problem[1], 1.0, [])
    prior.equivariant = True
    follow = follow_priors([prior], schedule, False)
    for step in turns(schedule, 1):  # where the prior does not depend on the phase, the rotation changes nothing
        assert torch.allclose(follow(x, step) - x, upright, atol=1e-6)
    prior.equivariant, changes = False, []
    for step in turns(schedule, 1):
        changes.append(follow(x, step) - x)
    assert np.abs(phases) == pytest.approx(1, abs=1e-5) and abs(np.mean(phases)) < 0.1
    # what depends on the phase cancels
    assert sum(changes).norm() < 0.1 * sum(change.norm() for change in changes)


def test_the_noise_level_begins_with_the_held_out_error_and_ends_with_the_threshold():
    schedule, steps = Schedule(0.1, 0.01, 40), [21, 23, 39]
    plain = noise_levels(schedule, steps)
    assert plain == {step: NOISE_SHARE * schedule.noise(step) for step in steps}
    assert noise_levels(schedule, steps, plain[21] / ERROR_SHARE / 2) == plain  # an error below the threshold's
    raised = noise_levels(schedule, steps, 3 * plain[21] / ERROR_SHARE)
    assert raised[21] == pytest.approx(3 * plain[21]) and raised[39] == plain[39]
    assert raised[23] == pytest.approx(3**0.5 * plain[23])
    assert noise_levels(schedule, [39], 1.0)[39] == pytest.approx(ERROR_SHARE)


def test_thresholds_between_priors_are_lower_with_noise_and_higher_without(problem):
    found, schedule, error = problem[0], Schedule(0.05, FLOOR, 40), 1.0
    clean = replace(found, noise_std=0.0)
    raised = schedule_with_priors(schedule, clean, error)
    assert (raised.first, raised.last) == pytest.approx((WITHOUT_NOISE * 0.05, WITHOUT_NOISE * FLOOR), rel=1e-4)
    noisy = replace(found, noise_std=1.0)
    assert schedule_with_priors(schedule, noisy, error).last == pytest.approx(WITH_NOISE * FLOOR, rel=1e-3)
    some = [replace(clean, noise_std=by * FLOOR) for by in (4, 8, 16, 32)]
    shares = [schedule_with_priors(schedule, one, error).last / FLOOR for one in (clean, *some, noisy)]
    assert all(one > two for one, two in pairwise(shares))
    # noise that images bring along counts as signal: the factor is 1 where it ends the schedule early
    early = replace(schedule, last=5 * FLOOR)
    assert schedule_with_priors(early, clean, error).last == pytest.approx(early.last, rel=0.02)
    assert schedule_with_priors(early, replace(clean, noise_bound=0.1), error).last >= early.last
    # and where hardly any error is left
    assert schedule_with_priors(schedule, clean, FEW * FLOOR) == schedule
    between = schedule_with_priors(schedule, clean, 2 * FEW * FLOOR)
    assert schedule.last < between.last < raised.last
    radial = replace(clean, model=replace(clean.model, mask=make_mask("radial", tuple(clean.model.mask.shape), 4, 0)))
    assert schedule_with_priors(schedule, radial, error) == schedule


def test_thresholds_alone_are_not_called_a_prior(problem, result, network, monkeypatch):
    """The priors were trained for none of the noise levels, and the thresholds alone would help a lot."""
    found, _ = problem
    elsewhere = NCSNpp(nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), sigma_min=0.5, sigma_max=0.9)
    monkeypatch.setattr("reconstruction.in_turn.how_far", lambda *_: (1.0, 0.5))
    followed = cascade_in_turn(found, [Known(elsewhere, result.image, 0.8, [])] * 2, result, 0)
    assert not followed.schedule.followed and not followed.log and torch.equal(followed.image, result.image)


def test_the_noise_level_is_raised_no_further_than_the_prior_knows(problem, network):
    seen: list[float] = []
    schedule = Schedule(0.1, 0.01, 10)
    follow = follow_priors([Known(network, problem[1], 1.0, seen)], schedule, False, error_std=10.0)
    for step in sorted(turns(schedule, 1)):
        follow(torch.zeros_like(problem[1]), step)
    assert seen[0] == 0.2 and seen[-1] == pytest.approx(NOISE_SHARE * 0.01)  # σ_max of the network; the threshold


def error(image, truth):
    return ((image - truth).norm() / truth.norm()).item()


def test_a_prior_that_helps_is_followed_and_one_that_harms_is_not(problem, result, network):
    found, truth = problem
    truth = truth.mT if found.turned else truth
    good = [Known(network, truth, 0.8, []) for _ in range(2)]
    followed = cascade_in_turn(found, good, result, 0)
    schedule = followed.schedule
    assert all(0 < size <= STEP_SIZE for size in schedule.step_sizes) and schedule.error_after < schedule.error_before
    assert error(followed.image, truth) < 0.8 * error(result.image, truth) and followed.without is not None
    assert followed.passes == 2 * len(followed.log) == sum(len(prior.seen) for prior in good)
    both = result.held_out.admission | result.held_out.settings
    assert schedule.held_out == both.sum()
    # σ begins at half of the error at the held-out samples halfway, which is more than half of the threshold here
    ou, first = motion_schedule(found, OU.motion_steps), followed.log[0]
    levels = noise_levels(ou, sorted(turns(ou, 2)), held_out_error(found, both, result.halfway_without.low_rank, 0.0))
    assert first["sigma"] == pytest.approx(levels[first["step"]])
    assert first["sigma"] > 1.1 * NOISE_SHARE * ou.noise(first["step"])
    assert [one["prior"] for one in followed.log] == sorted(one["prior"] for one in followed.log)
    bad = [Known(network, torch.roll(truth, 9, 1), 0.8, []) for _ in range(2)]
    followed = cascade_in_turn(found, bad, result, 0)
    assert followed.schedule.step_sizes == (0, 0) and torch.equal(followed.image, result.image)
    assert not followed.log and followed.passes == len(bad[0].seen) + len(bad[1].seen) == 3 * len(turns(ou, 2))
    assert cascade_in_turn(found, bad[:1], result, 0).passes == len(turns(ou, 1))  # one prior is tried once


@pytest.mark.parametrize("good", [0, 1])
def test_if_both_are_rejected_the_one_that_helps_is_followed_alone(problem, result, network, good):
    found, truth = problem
    truth = truth.mT if found.turned else truth
    priors = [Known(network, torch.roll(truth, 9, 1), 4.0, []) for _ in range(2)]
    priors[good] = Known(network, truth, 0.3, [])
    followed = cascade_in_turn(found, priors, result, 0)
    sizes, count = followed.schedule.step_sizes, len(turns(motion_schedule(found, OU.motion_steps), 1))
    assert followed.schedule.alone == good and {one["prior"] for one in followed.log} == {good}
    assert sizes[good] > 0 == sizes[1 - good] and followed.passes == (4 - good) * count  # LM is tried before GM
    alone = cascade_in_turn(found, [priors[good]], result, 0)
    assert torch.equal(followed.image, alone.image) and torch.equal(followed.without, alone.without)
    assert followed.schedule.followed == alone.schedule.followed and alone.schedule.alone is None
    words = f"GM and LM together rejected, {('GM', 'LM')[good]} alone accepted (step size {sizes[good]:.2f})"
    assert words in priors_note(followed.schedule, ("global", "local"), found, result)


@pytest.mark.parametrize("limit,trials", [(2, 1), (3, 2), (4, 3)])
def test_a_trial_that_would_need_too_many_passes_is_not_made(problem, result, network, monkeypatch, limit, trials):
    found, truth = problem
    truth = truth.mT if found.turned else truth
    count = len(turns(motion_schedule(found, OU.motion_steps), 1))
    monkeypatch.setattr("reconstruction.in_turn.PASSES", limit * count)
    bad = [Known(network, torch.roll(truth, 9, 1), 4.0, []) for _ in range(2)]
    followed = cascade_in_turn(found, bad, result, 0)
    assert followed.passes == trials * count and torch.equal(followed.image, result.image)


def test_a_prior_that_knows_no_noise_level_of_its_turns_is_not_called_accepted(problem, result, network):
    found, truth = problem
    truth = truth.mT if found.turned else truth
    elsewhere = NCSNpp(nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), sigma_min=0.5, sigma_max=0.9)
    followed = cascade_in_turn(found, [Known(network, truth, 0.8, []), Known(elsewhere, truth, 0.8, [])], result, 0)
    sizes = followed.schedule.step_sizes
    assert sizes[0] > 0 == sizes[1] and {one["prior"] for one in followed.log} == {0}


def test_without_held_out_samples_nothing_is_followed(problem, result, network):
    prior = Known(network, problem[1], 1.0, [])
    followed = cascade_in_turn(problem[0], [prior], replace(result, held_out=None), 0)
    assert torch.equal(followed.image, result.image) and followed.schedule.held_out == 0


def test_how_far_the_priors_are_followed(problem, result):
    """The mean of the fit and 1 where that is better than the OU alone, else the fit, else not at all."""
    found, truth = problem
    truth = truth.mT if found.turned else truth
    held, unit = result.held_out.admission, result.without_held_out
    # the last removes 1 % of the squared error, which is too little
    for length, far in ((1.0, 1.0), (0.5, 1.0), (2.0, 0.75), (4.0, 0.25), (-1.0, 0.0), (0.005, 0.0)):
        decided, share = how_far(found, held, unit, unit + length * (truth - unit))
        assert decided == pytest.approx(far, abs=1e-3)
        assert share == pytest.approx(1 - (1 - far * length) ** 2 if far else 0, abs=1e-2)


def test_less_of_a_change_that_goes_too_far_is_taken(problem, result, network):
    found, truth = problem
    truth = truth.mT if found.turned else truth
    whole = cascade_in_turn(found, [Known(network, truth, 0.8, [])], result, 0)
    beyond = cascade_in_turn(found, [Known(network, truth, 3.4, [])], result, 0)
    assert 0 < beyond.schedule.followed < whole.schedule.followed
    assert error(beyond.image, truth) < error(result.image, truth)
    assert error(beyond.without, truth) < error(result.without_held_out, truth)
    for one in (whole, beyond):  # with the samples put back, the low-rank images are the result
        consistent = found.model.consistent(one.low_rank, found.measured)
        assert torch.allclose(one.image, one.low_rank + put_back(found) * (consistent - one.low_rank), atol=1e-6)


def test_nothing_is_changed_where_no_frame_has_samples(problem):
    found, truth = problem
    change = torch.randn(truth.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(within_reach(found, change), change)  # all lines are in some frame
    mask = torch.zeros(8, 64, 64, dtype=torch.bool)
    mask[:4, 20:40, 20:40], mask[4:, 30:44, 20:40] = True, True
    kept = fft2c(within_reach(replace(found, model=replace(found.model, mask=mask)), change)).abs() > 1e-4
    assert kept[:, 20 - REACH : 44 + REACH, 20 - REACH : 40 + REACH].all()
    assert kept.sum() == 8 * (24 + 2 * REACH) * (20 + 2 * REACH)


def test_what_a_single_line_says_is_not_enough(problem, result):
    """6 % of the squared error removed: clear if in all held-out lines, chance if in one."""
    found, truth = problem
    held, truth = result.held_out.admission, truth.mT if found.turned else truth
    error = torch.randn(truth.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    error = torch.where(held, error / RAMP_FILTER.on(error), 0)  # of lines that weigh the same
    unit = truth - ifft2c(error)
    samples = (found.model, found.measured, held, unit)
    frame, line = held.any(dim=-1).nonzero()[0].tolist()
    one = torch.zeros_like(error)
    one[frame, line] = error[frame, line]
    whole = improvement(*samples, unit + ifft2c(one), 0.0).share
    assert whole > 0.06
    for change, share in ((error, 1.0), (one, whole)):
        tried = unit + (1 - (1 - 0.06 / share) ** 0.5) * ifft2c(change)
        found_share = improvement(*samples, tried, 0.0).share
        assert found_share == pytest.approx(0.06, abs=1e-3)
        assert (how_far(found, held, unit, tried)[0] > 0) == (change is error)


def test_the_corners_of_radial_scans_stay_as_they_are(network):
    heart = simulate_scan("heart", 8, 64, 3, 1, 0.0)
    found = prepare(Scan.from_arrays(heart.kspace, make_mask("radial", (8, 64, 64), 4, 0), noise_std=0.0))
    truth = heart.image.to(torch.complex64) / found.scale
    result = run_optimization_unit(found, OU)
    followed = cascade_in_turn(found, [Known(network, truth.mT if found.turned else truth, 0.8, [])], result, 0)
    assert followed.schedule.followed > 0
    for change in (followed.image - result.image, followed.without - result.without_held_out):
        kspace = fft2c(change).abs()
        assert kspace[:, 32, 32:].max() > 1e-3 and kspace[:, :6, :6].max() < 1e-5


def test_an_overestimated_noise_level_leaves_the_thresholds(problem, result):
    found, held = problem[0], result.held_out.admission
    assert held_out_error(found, held, result.without_held_out, 0.0) > 0
    assert held_out_error(found, held, result.without_held_out, 100.0) == 0


@pytest.mark.parametrize("followed,words", [(0.63, "LM accepted (step size 0.50), 63% of the change applied;"),
                                            (1.0, "LM accepted (step size 0.50);")])  # fmt: skip
def test_the_note_says_how_far_the_priors_were_followed(problem, result, followed, words):
    schedule = Decision((), (0.3, 0.5), 0.02, 100, 0.02, 0.01, followed)
    assert words in priors_note(schedule, ("global", "local"), problem[0], result)
