import copy
from dataclasses import replace

import pytest
import torch

from configs.ve.cpu_demo import get_config
from datasets import (
    SceneFile,
    SceneFrames,
    advance_scene,
    augment_scene,
    missing_std,
    prepare_measured,
    prepare_scene,
)
from losses import STEP_SHARE, advance, completion_loss, completion_size
from models.context import Context
from mri.fourier import fft2c, ifft2c
from mri.interleave import looks_periodic
from mri.masks import is_lines, make_mask, net_acceleration
from mri.phantom import make_phantom
from mri.scenes import acquire, make_scene
from utils.errors import InputError

CONTEXT = Context(offsets=(-1, 1), mean=True, merge=True, own=True, near=True)


class Settings:
    max_gain, sigma_jitter, noisy_share, partial_share = 1.25, 0.0, 0.0, 0.5
    scene_frames, columns = 4, 0


@pytest.fixture(scope="module")
def scene():
    return prepare_scene(3, 64, "llr")


def test_scenes_are_seeded_differ_and_move():
    images = [make_scene(6, 48, 64, seed)[0] for seed in (0, 1, 0)]
    assert images[0].shape == (6, 48, 64) and images[0].dtype == torch.complex64
    assert torch.equal(images[0], images[2]) and not torch.equal(images[0], images[1])
    assert all(abs(image.abs().max() - 1) < 1e-5 for image in images)
    moving = [make_scene(6, 64, 64, seed)[0] for seed in range(8)]
    assert max((image - image.mean(0)).norm() / image.norm() for image in moving) > 0.05


def test_a_periodic_scene_returns():
    """Of a periodic scene the last frame is no further from the first than neighbours are from each other."""
    for seed in range(30):
        image, periodic = make_scene(12, 48, 48, seed)
        steps = (torch.roll(image.abs(), -1, 0) - image.abs()).flatten(1).norm(dim=1)
        if periodic and steps.max() > 0.3:  # with motion, and without what flickers
            assert steps[-1] <= 1.5 * steps[:-1].max()


@pytest.mark.parametrize("shape", [(4, 63, 64), (4, 64, 16), (0, 64, 64)])
def test_scenes_that_cannot_be_made(shape):
    with pytest.raises(InputError, match="cannot be made"):
        make_scene(*shape)


def test_acquisitions_vary_and_leave_no_line_to_nobody():
    image, _ = make_scene(8, 64, 64, 1)
    rates = set()
    for seed in range(12):
        scan = acquire(image, seed)
        if is_lines(scan.mask):
            assert scan.mask.any(dim=0).all()
        assert (scan.kspace[~scan.mask] == 0).all() and scan.mask.flatten(1).any(1).all()
        noise = (scan.kspace - fft2c(image))[scan.mask].abs().mean()
        assert 1e-4 < noise < 2e-2
        rates.add(round(net_acceleration(scan.mask), 2))
    assert len(rates) > 6 and max(rates) <= 9


def test_scenes_in_one_file(scene, tmp_path):
    """Whole, in order, each alone; what a kill left behind the last one does not count and is written over."""
    path = tmp_path / "scenes.npy"
    names = ("image", "start", "mask", "known")
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
        assert all(torch.equal(getattr(read, name), getattr(written, name)) for name in names)
    with pytest.raises(ValueError, match="holds frames of"):
        file.append(prepare_scene(4, 80, "llr"))
    assert len(SceneFile(path)) == 3


def test_prepared_scene_is_consistent(scene):
    error = fft2c(scene.start - scene.image).abs()
    assert error[scene.mask].mean() < 0.5 * error[~scene.mask].mean()  # noise alone where it was measured
    assert 0 < missing_std(scene.start - scene.image, scene.mask) < 0.2


def test_a_scene_begun_along_the_motion_is_the_same_scene_with_a_better_start():
    plain, followed = prepare_scene(6, 64, "llr"), prepare_scene(6, 64, "motion")
    assert torch.equal(followed.image, plain.image) and torch.equal(followed.mask, plain.mask)
    kept = (fft2c(followed.start) - fft2c(plain.start))[plain.mask]
    assert kept.abs().max() < 1e-4  # the measured samples
    assert followed.missing_square() < 0.7 * plain.missing_square()


def test_a_scene_is_begun_by_llr_where_that_is_nearer(scene):
    assert torch.equal(prepare_scene(3, 64, "motion").start, scene.start)


def test_augmentation_keeps_measured_samples_measured(scene):
    """What k-space allows exactly: a start without error on its mask has none on the moved mask, and else where."""
    exact = ifft2c(torch.where(scene.mask, fft2c(scene.image), fft2c(scene.start) + 0.1))
    moved = 0
    for seed in range(8):
        changed = replace(scene, start=exact)
        result = augment_scene(changed, 1.25, torch.Generator().manual_seed(seed))
        truth, start, mask = result.image, result.start, result.mask
        assert result.known.all()
        error = fft2c(start - truth).abs()
        assert error[mask].max() < 1e-4 and error[~mask].mean() > 0.05
        assert mask.sum() == scene.mask.sum()
        moved += not torch.equal(mask, scene.mask)
        ratio = (start - truth).norm() / (exact - scene.image).norm()
        assert 1 / 1.26 < ratio < 1.26
    assert moved > 4


def test_context_images_add_up_and_wrap():
    torch.manual_seed(0)
    image = torch.randn(6, 64, 64, dtype=torch.complex64)
    mask = make_mask("uniform", (6, 64, 64), 3, 4)
    context = CONTEXT(image, mask, 0.5)
    assert CONTEXT.images == ["-1", "+1", "mean", "merge", "own", "near"]
    assert context.shape == (6, CONTEXT.channels, 64, 64)
    assert context[0, :2].abs().max() == 0  # nothing before the first frame
    assert CONTEXT(image, mask, 0.5, periodic=True)[0, :2].abs().max() > 0
    parts = [torch.complex(context[:, i], context[:, i + 1]) for i in range(0, 12, 2)]
    assert max(part.abs().max() for part in parts[:4]) <= 10 + 1e-4
    rest = fft2c(image - parts[4] - parts[5]).abs() > 1e-4  # R = 3: own and both neighbours have every line
    assert not rest[1:-1].any() and rest[0].any()
    assert Context.from_config(CONTEXT.to_dict()) == CONTEXT and Context().channels == 0
    assert Context()(image, mask, 0.5).shape == (6, 0, 64, 64)


def test_merge_is_the_nearest_measured_sample():
    image = torch.arange(1.0, 5)[:, None, None] * torch.ones(4, 32, 32, dtype=torch.complex64)
    mask = make_mask("uniform", (4, 32, 32), 2, 0)
    merge = Context(merge=True)(image, mask, 1e3)  # far from the limit
    # half of the lines of frame 1 come from the mean of frames 0 and 2, which is frame 1
    assert merge[1].abs().max() < 1e-6 and merge[3].abs().max() > 1e-4


def batch_of(scene, settings=Settings, seed=0):
    return SceneFrames([scene], 1, settings.scene_frames, settings).draw(torch.Generator().manual_seed(seed))


def share_left(score, batch, steps=1):
    """The loss as it is trained on, after each step."""
    scans = batch.scans()
    told = batch.told[batch.place == 0].tolist()
    return (completion_loss(score, scans, told, CONTEXT, steps) / completion_size(scans)).tolist()


def nothing(x, sigma, neighbours):
    return torch.zeros_like(x[:, :2])


def part_of(change, share=1.0):
    """A score whose denoiser takes `share` of what is to be changed, as an image."""
    def score(x, sigma, neighbours):
        return share * torch.view_as_real(change()).permute(0, 3, 1, 2) / sigma[:, None, None, None] ** 2
    return score


def test_completion_loss_of_known_scores(scene):
    batch = batch_of(scene)
    assert batch.image.shape == (4, 64, 64) and len(batch.scans()) == 1
    assert share_left(nothing, batch, 2) == pytest.approx([1, 1])
    assert share_left(part_of(lambda: batch.truth - batch.image), batch)[0] < 1e-6
    assert share_left(part_of(lambda: batch.truth - batch.image, 0.5), batch)[0] == pytest.approx(0.25, rel=1e-3)


def test_steps_follow_each_other(scene):
    """Each begins where the one before it ended, is told a share of its σ, and is trained through those before it."""
    batch, seen = batch_of(scene), []
    share = torch.tensor(0.5, requires_grad=True)

    def halving(x, sigma, neighbours):
        image = torch.complex(x[:, 0], x[:, 1])
        seen.append(sigma[0].item())
        return share * torch.view_as_real(batch.truth - image).permute(0, 3, 1, 2) / sigma[:, None, None, None] ** 2

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

    class Narrow(Settings):
        columns = 16

    draws = [batch_of(scene, settings, seed) for settings, seed in ((Settings, 0), (Narrow, 1), (Settings, 2))]
    batch = type(draws[0])(*(torch.cat(tensors) for tensors in zip(*draws, strict=True)))
    scans = batch.scans()
    assert [tuple(scan.start.shape) for scan in scans] == [(4, 64, 64), (4, 64, 16), (4, 64, 64)]
    assert (fft2c(scans[1].start) - fft2c(scans[1].image))[scans[1].mask].abs().max() < 0.05  # noise; lines stay lines

    def mixing(x, sigma, neighbours):
        assert neighbours.shape == (2, len(x))
        return x[neighbours[0], :2] - 2 * x[neighbours[1], :2] + sigma[:, None, None, None]

    sigmas = [0.1, 0.2, 0.3]
    together = advance(mixing, scans, CONTEXT, sigmas)
    for scan, sigma, found in zip(scans, sigmas, together, strict=True):
        (alone,) = advance(mixing, [scan], CONTEXT, [sigma])
        assert torch.allclose(alone.start, found.start, atol=1e-6)
        assert torch.allclose(fft2c(found.start)[scan.mask], fft2c(scan.start)[scan.mask], atol=1e-5)


def test_noise_takes_the_place_of_part_of_the_error(scene):
    """Of the same size as what it replaces, on the missing samples alone."""
    class Noisy(Settings):
        noisy_share = 1.0

    plain, noisy = (batch_of(scene, settings, seed=1) for settings in (Settings, Noisy))
    assert torch.equal(plain.truth, noisy.truth)
    errors = [fft2c(batch.image - batch.truth) for batch in (plain, noisy)]
    sizes = [error[~batch.mask].norm() for error, batch in zip(errors, (plain, noisy), strict=True)]
    assert sizes[1] == pytest.approx(sizes[0].item(), rel=0.25)
    likeness = torch.vdot(errors[0][~plain.mask], errors[1][~plain.mask]).real / (sizes[0] * sizes[1])
    assert likeness < 0.95
    assert errors[1][plain.mask].abs().max() <= errors[0][plain.mask].abs().max() + 1e-5


def test_advanced_scene_is_what_the_prior_makes_of_it(scene):
    class Knowing:
        def denoise(self, kspace, sigma, mask, periodic):
            return torch.where(mask, kspace, 0.5 * (kspace + fft2c(scene.image)))

    after = advance_scene(scene, Knowing())
    ratio = missing_std(after.start - after.image, after.mask) / missing_std(scene.start - scene.image, scene.mask)
    assert ratio == pytest.approx(0.5, rel=1e-3)
    assert torch.allclose(fft2c(after.start)[after.mask], fft2c(scene.start)[scene.mask], atol=1e-5)


def test_measured_scenes_count_what_was_hidden_and_nothing_else():
    image = make_phantom(8, 64, 2).to(torch.complex64)
    mask = make_mask("uniform", (8, 64, 64), 4, 8)
    measured = torch.where(mask, fft2c(image), 0)
    config = get_config()
    config.ou.llr_iterations, config.data.periodic = 10, True
    scene = prepare_measured(measured, mask, config, 1)
    hidden = scene.known & ~scene.mask
    assert torch.equal(scene.known, mask) and hidden.any() and not scene.known.all()
    assert (fft2c(scene.start) - measured)[scene.mask].abs().max() < 1e-4

    class Measured(Settings):
        error_gain, scene_frames = 1.25, 8

    batch = batch_of(scene, Measured)
    counted = batch.known & ~batch.mask
    assert counted.sum() == hidden.sum() and batch.told[0] == 1.25
    # what the network makes of samples that nobody measured changes nothing, of hidden ones all
    for where, changes in ((counted, True), (~counted, False)):
        error = torch.where(where, fft2c(batch.truth - batch.image), 0)
        left = share_left(part_of(lambda error=error: ifft2c(error)), batch)[0]
        assert left == pytest.approx(0 if changes else 1, abs=1e-4)
    known = scene.error_std()
    true = missing_std(ifft2c(fft2c(scene.start) - fft2c(image)), scene.mask).item()
    assert 0.2 < known / true < 5  # an estimate from what was hidden


@pytest.mark.parametrize("pattern,acs", [("uniform", 8), ("radial", 0)])
def test_periodic_scans_are_told_from_others(pattern, acs):
    image = make_phantom(16, 64, 0).to(torch.complex64)
    mask = make_mask(pattern, (16, 64, 64), 4, acs)
    assert looks_periodic(fft2c(image) * mask, mask)
    part = image[:9]  # half a heartbeat
    assert not looks_periodic(fft2c(part) * mask[:9], mask[:9])


def test_nothing_shared_is_not_called_periodic():
    image = make_phantom(16, 64, 0).to(torch.complex64)
    mask = make_mask("uniform", (16, 64, 64), 4, 0)
    assert not looks_periodic(fft2c(image) * mask, mask)
