"""Prepared scenes: how they are made, kept, drawn and scored, with one coil and with several."""

import copy
from dataclasses import replace

import pytest
import torch

from datasets import SceneFrames, augment_scene
from losses import completion_loss, completion_size
from models.completion import STEP_SHARE, denoise_consistently
from models.context import Context
from mri.fourier import fft2c, ifft2c
from mri.masks import is_lines, make_mask
from mri.operators import ForwardModel
from mri.phantom import make_phantom, simulate_scan
from mri.scan import Scan
from reconstruction.prepare import prepare
from reconstruction.settings import OUSettings, PrepareSettings
from training.scene_files import SceneFile, advance_scene, prepare_held_out, prepare_scene

CONTEXT = Context(offsets=(-1, 1), mean=True, merge=True, own=True, near=True)


@pytest.fixture(scope="module")
def scene():
    return prepare_scene(3, 64, "llr")


def test_scenes_in_one_file(scene, tmp_path):
    """Whole, in order, each alone; what a kill left behind the last one does not count and is written over."""
    path = tmp_path / "scenes.npy"
    names = ("truth", "start", "mask", "known")
    others = [replace(scene, **{name: getattr(scene, name)[:k] for name in names}, periodic=False) for k in (2, 5)]
    file = SceneFile(path)
    assert len(file) == 0
    for one in (scene, others[0]):
        file.append(one)
    with open(path, "ab") as tail:
        tail.write(b"cut off")
    file = copy.deepcopy(SceneFile(path))  # as a worker process gets it
    assert len(file) == 2
    file.append(others[1])
    assert len(file) == 3 and len(SceneFile(path)) == 3
    for written, read in zip((scene, *others), (file[0], file[1], file[2]), strict=True):
        assert read.periodic == written.periodic
        assert all(torch.equal(getattr(read, name), getattr(written, name)) for name in (*names, "maps"))
    with pytest.raises(ValueError, match="holds frames of"):
        file.append(prepare_scene(4, 80, "llr"))
    assert len(SceneFile(path)) == 3


def test_prepared_scene_is_consistent(scene):
    error = fft2c(scene.start - scene.truth[:, 0]).abs()
    assert error[scene.mask].mean() < 0.5 * error[~scene.mask].mean()  # noise alone where it was measured
    assert 0 < scene.error_std() < 0.2


def test_a_scene_begun_along_the_motion_is_the_same_scene_with_a_better_start():
    plain, followed = prepare_scene(6, 64, "llr"), prepare_scene(6, 64, "motion")
    assert torch.equal(followed.truth, plain.truth) and torch.equal(followed.mask, plain.mask)
    kept = (fft2c(followed.start) - fft2c(plain.start))[plain.mask]
    assert kept.abs().max() < 1e-4  # the measured samples
    assert followed.missing_square() < 0.7 * plain.missing_square()


def test_augmentation_keeps_measured_samples_measured(scene):
    """What k-space allows exactly: a start without error on its mask has none on the moved mask, and else where."""
    exact = ifft2c(torch.where(scene.mask, fft2c(scene.truth[:, 0]), fft2c(scene.start) + 0.1))
    moved = 0
    for seed in range(8):
        changed = replace(scene, start=exact)
        result = augment_scene(changed, torch.Generator().manual_seed(seed))
        truth, start, mask = result.truth[:, 0], result.start, result.mask
        assert result.known.all()
        error = fft2c(start - truth).abs()
        assert error[mask].max() < 1e-4 and error[~mask].mean() > 0.05
        assert mask.sum() == scene.mask.sum()
        moved += not torch.equal(mask, scene.mask)
        ratio = (start - truth).norm() / (exact - scene.truth[:, 0]).norm()
        assert 1 / 1.26 < ratio < 1.26
    assert moved > 4


def test_context_images_add_up_and_wrap():
    torch.manual_seed(0)
    image = torch.randn(6, 64, 64, dtype=torch.complex64)
    mask = make_mask("uniform", (6, 64, 64), 3, 4)
    model = ForwardModel.of_one_coil(mask)
    context = CONTEXT(image, model, 0.5)
    assert CONTEXT.images == ["-1", "+1", "mean", "merge", "own", "near"]
    assert context.shape == (6, CONTEXT.channels, 64, 64)
    assert context[0, :2].abs().max() == 0  # nothing before the first frame
    assert CONTEXT(image, model, 0.5, periodic=True)[0, :2].abs().max() > 0
    parts = [torch.complex(context[:, i], context[:, i + 1]) for i in range(0, 12, 2)]
    assert max(part.abs().max() for part in parts[:4]) <= 10 + 1e-4
    rest = fft2c(image - parts[4] - parts[5]).abs() > 1e-4  # R = 3: own and both neighbours have every line
    assert not rest[1:-1].any() and rest[0].any()
    assert Context.from_mapping(CONTEXT.to_dict()) == CONTEXT and Context().channels == 0
    assert Context()(image, model, 0.5).shape == (6, 0, 64, 64)


def test_merge_is_the_nearest_measured_sample():
    image = torch.arange(1.0, 5)[:, None, None] * torch.ones(4, 32, 32, dtype=torch.complex64)
    mask = make_mask("uniform", (4, 32, 32), 2, 0)
    merge = Context(merge=True)(image, ForwardModel.of_one_coil(mask), 1e3)  # far from the limit
    # half of the lines of frame 1 come from the mean of frames 0 and 2, which is frame 1
    assert merge[1].abs().max() < 1e-6 and merge[3].abs().max() > 1e-4


def batch_of(scene, frames=4, columns=0, seed=0):
    return SceneFrames([scene], 1, frames, columns).draw(torch.Generator().manual_seed(seed))


def share_left(score, batch, steps=1):
    """The loss as it is trained on, after each step."""
    scans = batch.scans()
    scales = batch.sigma_scale[batch.place == 0].tolist()
    return (completion_loss(score, scans, scales, CONTEXT, steps) / completion_size(scans)).tolist()


def nothing(x, sigma, neighbours):
    return torch.zeros_like(x[:, :2])


def part_of(change, share=1.0):
    """A score whose denoiser takes `share` of what is to be changed, as an image."""
    def score(x, sigma, neighbours):
        return share * torch.view_as_real(change()).permute(0, 3, 1, 2) / sigma[:, None, None, None] ** 2
    return score


def test_completion_loss_of_known_scores(scene):
    batch = batch_of(scene)
    assert batch.start.shape == (4, 64, 64) and len(batch.scans()) == 1
    assert share_left(nothing, batch, 2) == pytest.approx([1, 1])
    assert share_left(part_of(lambda: batch.truth[:, 0] - batch.start), batch)[0] < 1e-6
    assert share_left(part_of(lambda: batch.truth[:, 0] - batch.start, 0.5), batch)[0] == pytest.approx(0.25, rel=1e-3)


def test_steps_follow_each_other(scene):
    """Each begins where the one before it ended, is told a share of its σ, and is trained through those before it."""
    batch, seen = batch_of(scene), []
    share = torch.tensor(0.5, requires_grad=True)

    def halving(x, sigma, neighbours):
        image = torch.complex(x[:, 0], x[:, 1])
        seen.append(sigma[0].item())
        change = torch.view_as_real(batch.truth[:, 0] - image).permute(0, 3, 1, 2)
        return share * change / sigma[:, None, None, None] ** 2

    scans = batch.scans()
    losses = completion_loss(halving, scans, [1.0], CONTEXT, 3) / completion_size(scans)
    assert losses.tolist() == pytest.approx([0.25, 0.0625, 0.015625], rel=1e-2)
    assert [b / a for a, b in zip(seen, seen[1:], strict=False)] == pytest.approx([STEP_SHARE, STEP_SHARE])
    losses[-1].backward()
    assert share.grad.item() == pytest.approx(-6 * 0.5**5, rel=0.05)  # of (1 − a)^6


def test_scans_of_one_batch_stay_apart():
    """Cut in columns or not, each is advanced as it would be alone, with its own σ and neighbours."""
    scene = prepare_scene(6, 64, "llr")
    assert is_lines(scene.mask)

    draws = [batch_of(scene, columns=columns, seed=seed) for columns, seed in ((0, 0), (16, 1), (0, 2))]
    batch = type(draws[0])(*(torch.cat(tensors) for tensors in zip(*draws, strict=True)))
    scans = batch.scans()
    assert [tuple(scan.start.shape) for scan in scans] == [(4, 64, 64), (4, 64, 16), (4, 64, 64)]
    error = fft2c(scans[1].start) - fft2c(scans[1].truth[:, 0])
    assert error[scans[1].mask].abs().max() < 0.05  # noise; lines stay lines

    def mixing(x, sigma, neighbours):
        assert neighbours.shape == (2, len(x))
        return x[neighbours[0], :2] - 2 * x[neighbours[1], :2] + sigma[:, None, None, None]

    sigmas = [0.1, 0.2, 0.3]
    together = denoise_consistently(mixing, [scan.state for scan in scans], CONTEXT, sigmas)
    for scan, sigma, found in zip(scans, sigmas, together, strict=True):
        (alone,) = denoise_consistently(mixing, [scan.state], CONTEXT, [sigma])
        assert torch.allclose(alone.image, found.image, atol=1e-6)
        assert torch.allclose(fft2c(found.image)[scan.mask], fft2c(scan.start)[scan.mask], atol=1e-5)


def test_the_network_is_given_no_smaller_noise_level_than_it_was_trained_for(scene):
    seen = []

    def score(x, sigma, neighbours):
        seen.append(sigma[0].item())
        return torch.zeros_like(x[:, :2])

    denoise_consistently(score, [scene.state], CONTEXT, [0.01], lowest=0.1)
    denoise_consistently(score, [scene.state], CONTEXT, [0.3], lowest=0.1)
    assert seen == pytest.approx([0.1, 0.3])


def test_noise_takes_the_place_of_part_of_the_error(scene, monkeypatch):
    """Of the same size as what it replaces, on the missing samples alone."""
    monkeypatch.setattr("datasets.NOISY_SHARE", 0.0)
    plain = batch_of(scene, seed=1)
    monkeypatch.setattr("datasets.NOISY_SHARE", 1.0)
    noisy = batch_of(scene, seed=1)
    assert torch.equal(plain.truth, noisy.truth)
    errors = [fft2c(batch.start - batch.truth[:, 0]) for batch in (plain, noisy)]
    sizes = [error[~batch.mask].norm() for error, batch in zip(errors, (plain, noisy), strict=True)]
    assert sizes[1] == pytest.approx(sizes[0].item(), rel=0.25)
    likeness = torch.vdot(errors[0][~plain.mask], errors[1][~plain.mask]).real / (sizes[0] * sizes[1])
    assert likeness < 0.95
    assert errors[1][plain.mask].abs().max() <= errors[0][plain.mask].abs().max() + 1e-5


def test_advanced_scene_is_what_the_prior_makes_of_it(scene):
    class Knowing:
        def denoise(self, image, model, sigma, periodic):
            return image + model.unmeasured(0.5 * (scene.truth[:, 0] - image))

    after = advance_scene(scene, Knowing())
    assert after.error_std() / scene.error_std() == pytest.approx(0.5, rel=1e-3)
    assert torch.allclose(fft2c(after.start)[after.mask], fft2c(scene.start)[scene.mask], atol=1e-5)


@pytest.mark.parametrize("coils", [1, 3])
def test_scenes_of_held_out_samples_count_those_and_nothing_else(coils, monkeypatch):
    monkeypatch.setattr("datasets.SIGMA_JITTER", 0.0)
    image = make_phantom(8, 64, 2)
    mask = make_mask("uniform", (8, 64, 64), 4, 8)
    kspace = fft2c(image)[:, None]
    if coils > 1:
        kspace = simulate_scan("simple", 8, 64, 2, coils, 0.0).kspace
    problem = prepare(Scan.from_arrays(torch.where(mask[:, None], kspace, 0), mask),
                      PrepareSettings(periodic=True, virtual_coils=0 if coils == 1 else 3))  # fmt: skip
    scene = prepare_held_out(problem, OUSettings(operator="llr", llr_iterations=10), 1)
    held_out = scene.known & ~scene.mask
    assert scene.truth.shape == (8, coils, 64, 64) and len(scene.maps) == coils
    assert torch.equal(scene.known, mask) and held_out.any() and not scene.known.all()
    model = ForwardModel(scene.mask, scene.maps)
    kept = torch.where(scene.mask[:, None], problem.measured, 0)
    assert model.residual(scene.start, kept) < (0.02 if coils > 1 else 1e-5)
    batch = batch_of(scene, frames=8)
    counted = batch.known & ~batch.mask
    assert counted.sum() == held_out.sum() and batch.sigma_scale[0] == 1.25
    (part,) = batch.scans()
    assert part.error().abs().sum(1)[~counted].max() == 0 and part.error().abs().sum(1)[counted].min() > 0
    if coils > 1:
        return
    # what the network makes of samples that nobody measured changes nothing, of held-out ones all
    for where, changes in ((counted, True), (~counted, False)):
        error = torch.where(where, fft2c(batch.truth[:, 0] - batch.start), 0)
        left = share_left(part_of(lambda error=error: ifft2c(error)), batch)[0]
        assert left == pytest.approx(0 if changes else 1, abs=1e-4)
    true = fft2c(scene.start - image / problem.scale)[~scene.mask].abs().square().sum() / (2 * mask.numel())
    assert 0.2 < scene.error_std() / true.sqrt() < 5  # an estimate from held-out samples


def test_augmentation_moves_coils_and_maps_together(monkeypatch):
    """The error at the held-out samples keeps its size whatever is flipped or rolled."""
    found = simulate_scan("simple", 6, 64, 1, 3, 0.0)
    mask = make_mask("uniform", (6, 64, 64), 3, 8)
    problem = prepare(Scan.from_arrays(found.kspace, mask), PrepareSettings(virtual_coils=3))
    scene = prepare_held_out(problem, OUSettings(operator="llr", llr_iterations=5), 0)
    monkeypatch.setattr("datasets.MAX_GAIN", 1.0)
    size = scene.missing_square()
    for seed in range(8):
        moved = augment_scene(scene, torch.Generator().manual_seed(seed))
        assert moved.missing_square() == pytest.approx(size.item(), rel=2e-3)
