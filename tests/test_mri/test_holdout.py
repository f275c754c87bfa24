import pytest
import torch

from mri.fourier import fft2c
from mri.holdout import (
    LEAST_ERROR,
    SHARE,
    copies_of,
    fitted_step,
    hold_out_sets,
    improvement,
    missing_error,
    missing_power,
    repeats_of,
)
from mri.masks import acs_rows, make_mask
from mri.operators import ForwardModel
from mri.scan import Scan
from reconstruction.notes import report_notes
from reconstruction.optimization_unit import OUResult
from reconstruction.prepare import prepare
from reconstruction.settings import OUSettings


@pytest.mark.parametrize("acceleration,acs", [(32, 0), (4, 1), (1, 8)])
def test_nothing_is_held_out_where_nothing_can_be(acceleration, acs):
    assert not hold_out_sets(make_mask("uniform", (4, 64, 4), acceleration, acs)).report.any()


def test_columns_are_lines_too():
    mask = make_mask("uniform", (16, 96, 64), 4, 8)
    sets, turned = hold_out_sets(mask), hold_out_sets(mask.mT)
    assert torch.equal(turned.report, sets.report.mT) and torch.equal(turned.kept, sets.kept.mT)


def test_copies_of_a_frame_are_held_out_together():
    mask = make_mask("uniform", (16, 96, 8), 4, 8)
    generator = torch.Generator().manual_seed(0)
    measured = torch.randn(8, 2, 96, 8, dtype=torch.complex64, generator=generator).repeat(2, 1, 1, 1)
    measured = torch.where(mask[:, None], measured, 0)
    copies = copies_of(measured, mask)
    assert torch.equal(copies, torch.eye(8).repeat(2, 2) > 0)
    sets = hold_out_sets(mask, 0, copies)
    for held in (sets.settings, sets.admission, sets.report):
        other = torch.roll(held, 8, 0)
        assert held.any() and not (sets.kept & (held | other)).any()
    assert (sets.kept.flatten(1).sum(1) > 0.4 * mask.flatten(1).sum(1)).all()
    assert not hold_out_sets(mask, 0, torch.ones(16, 16) > 0).report.any()  # all frames alike: nothing to predict
    measured[3] *= 1.001
    assert not copies_of(measured, mask)[3, 11]


def moving_disc(frames, beats, noise, seed=0, still_from=1000):
    """K-space `(frames, 1, 96, 64)` of a disc that moves and swells, `beats` times; its phase drifts all the time."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 64), indexing="ij")
    place = torch.arange(frames).clamp(max=still_from)[:, None, None]
    beat = 2 * torch.pi * place * beats / frames
    disc = ((rows - 0.2 * beat.cos()) ** 2 + columns**2).sqrt() < 0.4 + 0.15 * beat.sin()
    image = (disc + 0.3) * torch.polar(torch.tensor(1.0), 0.1 * torch.arange(frames)[:, None, None] + rows)
    white = torch.randn(frames, 1, 96, 64, dtype=torch.complex64, generator=generator)
    return fft2c(image)[:, None] + noise * white


@pytest.mark.parametrize("noise,fading", [(0.0, 1.0), (0.05, 1.0), (0.2, 1.0), (0.0, 0.99)])
def test_a_repeated_heartbeat_is_held_out_together(noise, fading):
    """Two heartbeats of eight frames whose phase and brightness differ: the same lines are held out of both."""
    mask = make_mask("uniform", (16, 96, 64), 4, 8)
    brightness = fading ** torch.arange(16)[:, None, None, None]
    measured = torch.where(mask[:, None], brightness * moving_disc(16, 2, noise), 0)
    copies = repeats_of(measured, mask, noise)
    assert torch.equal(copies, torch.eye(8).repeat(2, 2) > 0)
    sets = hold_out_sets(mask, 0, copies)
    assert sets.different == 8 and hold_out_sets(mask, 0).different == 16
    for held in (sets.settings, sets.admission, sets.report):
        assert held.any() and torch.equal(held, torch.roll(held, 8, 0))
    assert (sets.kept.flatten(1).sum(1) > 0.75 * mask.flatten(1).sum(1)).all()
    if noise == 0.2:  # noise that is not subtracted hides the repeats
        assert not torch.equal(repeats_of(measured, mask, 0.0), copies)


@pytest.mark.parametrize("beats", [1, 2])
def test_a_repeated_heartbeat_is_reported(beats):
    mask = make_mask("uniform", (16, 96, 64), 4, 8)
    measured = torch.where(mask[:, None], moving_disc(16, beats, 0.02), 0)
    problem = prepare(Scan.from_arrays(measured, mask, noise_std=0.02))
    held_out = problem.held_out(0)
    start = problem.restricted(held_out.kept).view_sharing()
    result = OUResult(problem.view_sharing(), OUSettings(), held_out, start, start, is_start=True)
    notes = report_notes(problem, result, start)
    assert ["8 of the 16 frames repeat another one" in note for note in notes] == [True] * (beats - 1)


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.3])
@pytest.mark.parametrize("still_from", [0, 16])
@pytest.mark.parametrize("seed", range(3))
def test_frames_that_stand_still_repeat_nothing(noise, still_from, seed):
    mask = make_mask("uniform", (32, 96, 64), 6, 8)
    measured = torch.where(mask[:, None], moving_disc(32, 1, noise, seed, still_from), 0)
    found = repeats_of(measured, mask, noise)
    # the first and the last still frame lie beside others: they are the same state. Without noise rounding decides
    pairs = (found.sum().item() - len(found)) // 2
    assert noise == 0 or pairs <= 1
    problem = prepare(Scan.from_arrays(measured, mask, noise_std=noise))
    assert problem.held_out(0).report.any()


def test_one_heartbeat_has_no_repeats():
    mask = make_mask("uniform", (16, 96, 64), 4, 8)
    for beats in (1, 0.5):
        measured = torch.where(mask[:, None], moving_disc(16, beats, 0.02), 0)
        assert torch.equal(repeats_of(measured, mask, 0.02), torch.eye(16) > 0)
    few = make_mask("uniform", (16, 96, 64), 4, 2)  # too few ACS lines to tell
    assert torch.equal(repeats_of(moving_disc(16, 2, 0.0), few, 0.0), torch.eye(16) > 0)


def test_many_heartbeats_leave_samples_to_hold_out():
    """Where all repeats together leave out too much, copies alone are held out together."""
    mask = make_mask("random", (64, 96, 64), 4, 16)
    measured = torch.where(mask[:, None], moving_disc(64, 8, 0.02), 0)
    found = repeats_of(measured, mask, 0.02)
    assert found.sum() == 64 * 8
    sets = prepare(Scan.from_arrays(measured, mask, noise_std=0.02)).held_out(0)
    assert sets.report.any() and (sets.kept.flatten(1).sum(1) > 0.4 * mask.flatten(1).sum(1)).all()


def test_acs_rows():
    assert acs_rows(make_mask("uniform", (4, 64, 4), 4, 8)).nonzero().flatten().tolist() == list(range(28, 36))
    assert not acs_rows(make_mask("uniform", (4, 64, 4), 4, 0)).any()


def test_missing_error_sums_over_the_coils():
    """One coil, and the same error spread over two coils."""
    mask = make_mask("uniform", (8, 32, 32), 4, 8)
    held_out = hold_out_sets(mask).report
    generator = torch.Generator().manual_seed(0)
    error = torch.randn(8, 1, 32, 32, dtype=torch.complex64, generator=generator)
    one = missing_error(error, held_out, mask)
    two = missing_error(torch.cat((0.6 * error, 0.8j * error), dim=1), held_out, mask)
    assert one > 0 and two == pytest.approx(one)


@pytest.mark.parametrize(("pattern", "acs"), [("uniform", 8), ("uniform", 0), ("random", 8), ("radial", 0)])
def test_three_disjoint_sets(pattern, acs):
    """Whole lines over all ky (points of radial masks), 5 % each, other ones for another seed, kept in every frame."""
    mask = make_mask(pattern, (16, 96, 64), 6, acs)
    sets = hold_out_sets(mask, 3)
    parts = (sets.settings, sets.admission, sets.report, sets.kept)
    assert torch.equal(sum(part.int() for part in parts), mask.int())
    for part in parts[:3]:
        assert part.sum() / mask.sum() == pytest.approx(SHARE, rel=0.3)
        if pattern != "radial":
            assert torch.equal(part.any(-1, keepdim=True).expand_as(part), part)
            rows = part.any(-1).any(0).nonzero().flatten()
            assert rows.min() < 32 and rows.max() > 64  # over all ky
    assert (sets.kept.flatten(1).sum(1) >= 0.7 * mask.flatten(1).sum(1)).all()
    assert torch.equal(hold_out_sets(mask, 3).settings, sets.settings)
    assert not torch.equal(hold_out_sets(mask, 4).settings, sets.settings)
    if pattern != "radial":
        assert torch.equal(hold_out_sets(mask.mT, 3).report, sets.report.mT)


@pytest.mark.parametrize("mask", [make_mask("uniform", (3, 64, 4), 32, 0), torch.ones(8, 16, 16, dtype=torch.bool)])
def test_no_sets_of_too_few_lines_or_where_nothing_is_missing(mask):
    sets = hold_out_sets(mask)
    assert torch.equal(sets.kept, mask) and not (sets.settings | sets.admission | sets.report).any()


def test_improvement_is_the_share_of_the_error_without_the_noise():
    """Half of the error is 75 % of its square, at any noise; of equal images none is clearly better."""
    generator = torch.Generator().manual_seed(0)
    truth, error = torch.randn(2, 16, 64, 64, dtype=torch.complex64, generator=generator)
    model = ForwardModel.of_one_coil(make_mask("uniform", (16, 64, 64), 4, 8))
    held = hold_out_sets(model.mask).settings
    for sigma in (0.0, 0.3, 1.0):
        noise = sigma * torch.randn(16, 1, 64, 64, dtype=torch.complex64, generator=generator)
        measured = torch.where(model.mask[:, None], fft2c(truth)[:, None] + noise, 0)
        found = improvement(model, measured, held, truth + error, truth + 0.5 * error, sigma)
        assert found.share == pytest.approx(0.75, abs=0.1) and found.is_clear
        worse = improvement(model, measured, held, truth + 0.5 * error, truth + error, sigma)
        assert worse.share < 0 and not worse.is_clear
        same = improvement(model, measured, held, truth + error, truth + error, sigma)
        assert same.share == 0 and not same.is_clear


def test_the_fitted_step_leads_to_the_best_image():
    model = ForwardModel.of_one_coil(make_mask("uniform", (16, 64, 64), 4, 8))
    generator = torch.Generator().manual_seed(3)
    truth, error = (torch.randn(16, 64, 64, dtype=torch.complex64, generator=generator) for _ in range(2))
    samples = (model, torch.where(model.mask[:, None], fft2c(truth)[:, None], 0), hold_out_sets(model.mask).admission)
    for length, step in ((1.0, 1.0), (0.5, 1.0), (2.0, 0.5), (-1.0, 0.0), (0.0, 0.0)):
        simple = truth + error
        assert fitted_step(*samples, simple, simple - length * error, 0.0) == pytest.approx(step, abs=1e-5)


def test_noise_of_the_held_out_samples_is_no_error():
    """A perfect image has no error, whatever the noise of the samples."""
    mask = make_mask("uniform", (16, 64, 64), 4, 8)
    held = hold_out_sets(mask).admission
    noise = 0.1 * torch.randn(16, 1, 64, 64, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    assert missing_error(noise, held, mask, 0.1) < 0.3 * missing_error(noise, held, mask)


@pytest.mark.parametrize("falling", [0, 1, 1.5])
@pytest.mark.parametrize("turned", [False, True])
def test_the_error_of_missing_lines_is_estimated_from_held_out_ones(falling, turned):
    """However the error falls with the distance to DC; of two coils, with noise, and of lines along either axis."""
    mask = make_mask("uniform", (64, 96, 48), 6, 8)
    sets = hold_out_sets(mask)
    held = sets.settings | sets.admission | sets.report
    generator = torch.Generator().manual_seed(0)
    distance = (torch.arange(96) - 48).abs().clamp(min=4)[:, None]
    error = torch.randn(64, 2, 96, 48, dtype=torch.complex64, generator=generator) * (distance / 4.0) ** -falling
    expected = (error.abs().square().sum(1) * ~sets.kept).sum().item() / mask.numel()
    noise = 0.2 * torch.randn(error.shape, dtype=torch.complex64, generator=generator)
    measured = torch.where(held[:, None], error + noise, 0)
    arguments = [one.mT.contiguous() if turned else one for one in (measured, held, sets.kept)]
    found = missing_power(*arguments, 2 * 0.2**2)
    assert found == pytest.approx(expected, rel=0.15)
    # a σ that is too large never says that there is no error
    assert missing_power(*arguments, 1e9) == pytest.approx(LEAST_ERROR * missing_power(*arguments, 0.0))
    if not turned:  # a partial echo: what the readout leaves out counts as missing
        echo = torch.arange(48) >= 12
        partial = missing_power(measured * echo, held & echo, sets.kept & echo, 2 * 0.2**2)
        assert 1.05 * found < partial < 2 * found
