"""Low rank along the motion: the tracks, the shrinkage, and what the optimization unit makes of them."""

from collections import deque
from dataclasses import replace

import pytest
import torch

from configs.ve.cpu_demo import get_config
from datasets import embedded_acquisition
from mri import motion_low_rank as module
from mri.consistency import scan_scale
from mri.fourier import fft2c, ifft2c
from mri.holdout import hide
from mri.locally_low_rank import shrink_patches
from mri.masks import make_mask
from mri.metrics import evaluate
from mri.motion_low_rank import (
    MEMBERS,
    SEARCH,
    Schedule,
    Tracks,
    motion_low_rank,
    nearest_frames,
    shrink_tracks,
    track,
)
from mri.phantom import make_phantom
from optimization_unit import OptimizationUnit, find_settings, optimization_unit_alone
from priors import load_prior, load_shipped
from run_lib import compare_methods
from sampling import reconstruct
from utils.errors import InputError


def texture(height=24, width=20, seed=0):
    return torch.randn(height, width, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def moving(frames=8, seed=0):
    """A texture that moves one pixel down and one left from frame to frame, there and back."""
    image = texture(seed=seed)
    places = [min(t, frames - t) for t in range(frames)]
    return torch.stack([torch.roll(image, (place, -place), dims=(0, 1)) for place in places])


def test_patches_are_followed():
    image = moving(4)
    tracks = track(image, 5)
    assert tracks.corners.shape == (4 * 12 * 10, 4)  # every frame is a reference; patches start every 2 pixels
    height, width = image.shape[1:]
    reference = tracks.corners[tracks.corners[:, 0] // (height * width) == 0]  # nearest to a frame is the frame itself
    shift = {0: 0, 1: 1, 2: 2, 3: 1}
    for place, member in enumerate(nearest_frames(4, 0, False).tolist()):
        assert (reference[:, place] // (height * width) == member).all()
        own, other = reference[:, 0] % (height * width), reference[:, place] % (height * width)
        down, left = shift[member], shift[member]
        expected = (own // width + down) % height * width + (own % width - left) % width
        assert torch.equal(other, expected)


def test_motion_beyond_the_search_is_not_followed(monkeypatch):
    far = torch.stack([texture(), torch.roll(texture(), (SEARCH + 1, 0), dims=(0, 1))])

    def followed():
        corners = track(far, 6).corners
        places = corners[corners[:, 0] < far[0].numel()] % far[0].numel()  # of the first frame as reference
        return torch.equal(places[:, 1], (places[:, 0] + (SEARCH + 1) * far.shape[2]) % far[0].numel())

    assert not followed()
    monkeypatch.setattr(module, "SEARCH", SEARCH + 1)
    assert followed()


def test_of_equal_matches_the_nearest_is_taken():
    corners = track(torch.zeros(3, 12, 12, dtype=torch.complex64), 4).corners % 144
    assert (corners == corners[:, :1]).all()


def test_what_moves_without_changing_has_rank_one():
    """The threshold that takes most of the noise leaves the moving texture; at fixed places it cannot."""
    truth = moving()
    noisy = truth + 0.2 * torch.stack([texture(seed=seed) for seed in range(1, 9)])
    threshold = 0.2 * (6 + 8**0.5)
    followed = shrink_tracks(noisy, track(noisy, 6), threshold)
    fixed = shrink_patches(noisy, threshold, 6)
    error = {name: (image - truth).norm() / (noisy - truth).norm() for name, image in
             {"followed": followed, "fixed": fixed}.items()}  # fmt: skip
    assert error["followed"] < 0.55 and error["fixed"] > 1


@pytest.mark.parametrize("patch", [2, 3])  # fewer pixels than members, and more
def test_garrote_of_the_singular_values(patch):
    """Patches that tile the image, so that every group can be seen on its own."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(6, 6, 6, dtype=torch.complex64, generator=generator)
    rows = torch.arange(0, 6, patch)
    first = (rows[:, None] * 6 + rows).flatten()[:, None]
    tracks = Tracks(first + 36 * torch.arange(6), patch, torch.ones(6, 6, 6))
    found = shrink_tracks(image, tracks, 1.5)
    for top in rows.tolist():
        for left in rows.tolist():
            block = (slice(None), slice(top, top + patch), slice(left, left + patch))
            u, s, v = torch.linalg.svd(image[block].flatten(1), full_matrices=False)
            expected = (u * (s * (1 - 1.5**2 / s**2).clamp(min=0))) @ v
            assert torch.allclose(found[block].flatten(1), expected, atol=1e-5)


def test_threshold_zero_changes_nothing_and_pixels_of_no_patch_stay(monkeypatch):
    image = moving()
    tracks = track(image, 4)
    assert torch.allclose(shrink_tracks(image, tracks, 0.0, (1, 1)), image, atol=1e-5)
    covered = torch.zeros(image.shape)
    covered[:, 3:7, 5:9] = 1
    one = Tracks((3 * 20 + 5 + 480 * torch.arange(8))[None], 4, covered)
    found = shrink_tracks(image, one, 1e3)
    assert torch.equal(found[covered == 0], image[covered == 0])
    assert (found[covered > 0] == 0).all()
    whole = shrink_tracks(image, tracks, 1.0)
    monkeypatch.setattr(module, "GROUPS", 7)
    assert torch.allclose(shrink_tracks(image, track(image, 4), 1.0), whole, atol=1e-5)


@pytest.mark.parametrize(("frames", "members", "references"), [(3, 3, 3), (8, 8, 4), (40, MEMBERS, 10)])
def test_groups_of_short_and_long_scans(frames, members, references):
    image = torch.stack([texture(8, 8, seed=seed) for seed in range(frames)])
    assert track(image, 4).corners.shape == (references * 16, members)


def test_nearest_frames():
    assert nearest_frames(6, 5, False).tolist() == [5, 4, 3, 2, 1, 0]
    assert nearest_frames(6, 5, True).tolist() == [5, 0, 4, 1, 3, 2]


@pytest.fixture(scope="module")
def scan():
    image = make_phantom(8, 64, 3).to(torch.complex64)
    mask = make_mask("uniform", image.shape, 4, 8)
    scale = scan_scale(fft2c(image), mask)
    return torch.where(mask, fft2c(image), 0) / scale, mask, image / scale


def short():
    config = get_config()
    config.ou.motion_patches, config.ou.motion_steps, config.ou.motion_last = (6,), 10, 0.002
    return config


def test_steps_keep_the_measured_samples_and_improve(scan):
    measured, mask, truth = scan
    config = get_config()
    config.ou.operator = "llr"
    start = OptimizationUnit(config).alone(measured, mask, True)
    steps = list(motion_low_rank(start, measured, mask, 6, Schedule(0.05, 0.002, 15), True, seed=1))
    assert len(steps) == 15 and all(torch.equal(step[mask], measured[mask]) for step in steps)
    again = deque(motion_low_rank(start, measured, mask, 6, Schedule(0.05, 0.002, 15), True, seed=1), maxlen=1)[0]
    assert torch.equal(again, steps[-1])
    assert evaluate(ifft2c(steps[-1]), truth)["psnr"] > evaluate(ifft2c(start), truth)["psnr"] + 2


def test_schedule_falls_geometrically():
    noise = [Schedule(0.08, 0.01, 4).noise(step) for step in range(4)]
    assert noise == pytest.approx([0.08, 0.04, 0.02, 0.01])
    assert Schedule(0.08, 0.01, 1).noise(0) == 0.08


def test_patch_and_steps_are_found_on_hidden_samples(scan):
    measured, mask, _ = scan
    config = short()
    config.ou.motion_patches = (6, 8)
    found, hidden_start = find_settings(config, measured, mask, 0)
    assert found.ou.operator == "motion" and found.ou.motion_patch in (6, 8) and found.ou.motion_taken % 5 == 0
    assert config.ou.motion_patch == 0  # a copy
    spoiled = torch.where(mask, measured, 9)
    assert find_settings(config, spoiled, mask, 0)[0].to_json() == found.to_json()
    kept, _ = hide(mask, seed=0)
    known = torch.where(kept, measured, 0)
    assert torch.equal(hidden_start, OptimizationUnit(found).alone(known, kept, found.data.periodic))
    image = optimization_unit_alone(measured, mask, config)
    assert torch.equal(image, optimization_unit_alone(measured, mask, found))
    found.ou.motion_taken -= 1  # both given: nothing is looked for
    assert not torch.equal(image, optimization_unit_alone(measured, mask, found))
    config.ou.motion_patch, config.ou.motion_taken = 8, 10  # both given: nothing is looked for
    given, hidden_start = find_settings(config, measured, mask, 0)
    assert given.ou.to_dict() == config.ou.to_dict() and hidden_start is None


def test_the_search_ends_where_nothing_better_comes(scan, monkeypatch):
    """The largest patch first; a side ends after two looks without a better one, all with a side that is no better."""
    measured, mask, _ = scan
    config = short()
    config.ou.motion_patches, config.ou.motion_steps = (4, 8, 6), 30
    looks = iter([100, 50, 40, 41, 42, 60, 45, 44, 43, 42, 41])  # llr; 8: best at step 10; 6: 30 steps
    taken = []

    def along(self, start, measured, mask, patch, periodic):
        for _ in range(30):
            taken.append(patch)
            yield start

    monkeypatch.setattr("optimization_unit._hidden_error", lambda *_: next(looks))
    monkeypatch.setattr(OptimizationUnit, "along_motion", along)
    found, _ = find_settings(config, measured, mask, 0)
    assert (found.ou.motion_patch, found.ou.motion_taken) == (8, 10)
    assert taken == [8] * 20 + [6] * 30  # 4 is not tried


def test_where_following_the_motion_does_not_help_it_is_not_done(scan, monkeypatch):
    measured, mask, _ = scan
    monkeypatch.setattr("optimization_unit.MOTION_MARGIN", 0.999)
    found, hidden_start = find_settings(short(), measured, mask, 0)
    assert found.ou.operator == "llr"
    kept, _ = hide(mask, seed=0)
    assert torch.equal(hidden_start, OptimizationUnit(found).alone(torch.where(kept, measured, 0), kept, True))
    monkeypatch.undo()
    without_acs = mask & (torch.arange(64)[:, None] // 4 != 7) & (torch.arange(64)[:, None] // 4 != 8)
    found, hidden_start = find_settings(short(), measured, without_acs, 0)  # no line can be hidden
    assert found.ou.operator == "llr" and hidden_start is None


def test_reconstruction_tells_what_was_found(scan, priors):
    measured, mask, truth = scan
    config = short()
    config.sampling.trust_levels = (0.1,)
    result = reconstruct(measured, mask, *(load_prior(path) for path in priors), config)
    assert torch.equal(result.start, optimization_unit_alone(measured, mask, config)) and result.start_seconds > 0
    told = result.settings["config"]["ou"]
    assert told["operator"] == "motion" and told["motion_patch"] == 6 and 0 < told["motion_taken"] <= 10
    before = config.copy_and_resolve_references()
    before.ou.operator = "llr"
    without = reconstruct(measured, mask, *(load_prior(path) for path in priors), before)
    assert evaluate(result.image, truth)["psnr"] > evaluate(without.image, truth)["psnr"] + 2


def test_a_prior_for_after_the_motion_takes_the_place_of_the_other(scan, priors):
    measured, mask, _ = scan
    one, other = (load_prior(path) for path in priors)
    both = replace(one, after_motion=replace(other, path="after_motion"))
    config = short()
    config.sampling.trust_levels = (0.1,)
    assert reconstruct(measured, mask, both, other, config).settings["checkpoints"] == ["after_motion", other.path]
    config.ou.operator = "llr"
    assert reconstruct(measured, mask, both, other, config).settings["checkpoints"] == [one.path, other.path]
    gm, lm = (load_shipped(name, "cascade") for name in ("global", "local"))
    assert gm.after_motion.path.endswith("motion/global.safetensors") and lm.after_motion is None
    assert load_shipped("global", "published").after_motion is None


def test_without_the_unit_nothing_is_looked_for(scan, priors):
    config = short()
    config.sampling.trust_levels, config.ou.after = (0.1,), "never"
    result = reconstruct(*scan[:2], *(load_prior(path) for path in priors), config)
    assert result.settings["config"]["ou"]["motion_taken"] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [({"motion_patches": (4, 99)}, "motion_patches"), ({"motion_patches": ()}, "motion_patches"),
     ({"motion_last": 0.0}, "motion_last"), ({"motion_last": 1.0}, "motion_first"), ({"motion_steps": 0}, "steps"),
     ({"motion_patch": 97}, "motion_patch"), ({"motion_patch": 4, "motion_taken": 41}, "motion_taken"),
     ({"motion_taken": 5}, "give both")],
)  # fmt: skip
def test_bad_settings(scan, change, words):
    config = get_config()
    config.ou.update(change)
    acquired = embedded_acquisition(get_config(), 0)
    for call in (
        lambda: reconstruct(scan[0], scan[1], config=config),
        lambda: optimization_unit_alone(scan[0], scan[1], config),
        lambda: compare_methods(acquired, config, (None, None), 0),
    ):
        with pytest.raises(InputError, match=words):
            call()


def test_patch_larger_than_the_image():
    with pytest.raises(InputError, match="does not fit"):
        track(moving(2), 25)
