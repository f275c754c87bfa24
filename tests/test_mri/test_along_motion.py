"""Low rank along the motion: the tracks, the shrinkage and the iteration."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from mri.lowrank import along_motion as module
from mri.lowrank.along_motion import (
    MEMBERS,
    SEARCH,
    Schedule,
    Tracks,
    motion_low_rank,
    nearest_frames,
    shrink_tracks,
    track,
)
from mri.lowrank.locally import shrink_patches
from mri.masks import make_mask
from mri.operators import ForwardModel
from mri.phantom import make_phantom
from mri.view_sharing import share_views
from tests.commands import ROOT
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


@pytest.mark.parametrize("coils", [1, 3])
def test_steps_keep_the_measured_samples_and_improve(coils):
    truth = make_phantom(8, 64, 3)
    mask = make_mask("uniform", (8, 64, 64), 4, 8)
    maps = torch.ones(1, 64, 64, dtype=torch.complex64)
    if coils > 1:
        phase = torch.linspace(0, 3, 64)[:, None] * torch.arange(1, coils + 1)[:, None, None]
        maps = torch.polar(torch.ones(coils, 64, 64), phase.expand(coils, 64, 64)) / coils**0.5
    model = ForwardModel(mask, maps)
    measured = model.forward(truth)
    start = model.combine(share_views(measured, mask, periodic=True)[0])
    steps = list(motion_low_rank(start, model, measured, (8, 6), Schedule(0.05, 0.002, 15), True, seed=1))
    assert len(steps) == 15
    assert all(model.residual(step.consistent, measured) < (1e-6 if coils == 1 else 0.02) for step in steps)
    *_, again = motion_low_rank(start, model, measured, (8, 6), Schedule(0.05, 0.002, 15), True, seed=1)
    assert torch.equal(again.consistent, steps[-1].consistent) and torch.equal(again.low_rank, steps[-1].low_rank)
    assert torch.allclose(steps[-1].consistent, model.consistent(steps[-1].low_rank, measured))
    *_, gone_on = motion_low_rank(
        steps[6], model, measured, (8, 6), Schedule(0.05, 0.002, 15), True, seed=1, first=7
    )  # fmt: skip
    assert torch.equal(gone_on.low_rank, steps[-1].low_rank)
    for image in steps[-1][:2]:
        assert (image - truth).norm() < 0.5 * (start - truth).norm()


def test_schedule_falls_geometrically():
    noise = [Schedule(0.08, 0.01, 4).noise(step) for step in range(4)]
    assert noise == pytest.approx([0.08, 0.04, 0.02, 0.01])
    assert Schedule(0.08, 0.01, 1).noise(0) == 0.08


def test_patch_larger_than_the_image():
    with pytest.raises(InputError, match="does not fit"):
        track(moving(2), 25)


@pytest.mark.parametrize(("frames", "patch"), [(6, 4), (6, 5), (20, 3), (2, 6)])
def test_the_fused_form_does_what_the_plain_one_does(frames, patch, monkeypatch):
    """Odd sizes, more members than pixels, two frames; any number of threads gives the same bits."""
    pytest.importorskip("numba")
    image = moving(frames) + 0.1 * torch.stack([texture(seed=seed) for seed in range(frames)])
    image = image[:, :23, :19].contiguous()
    fused = track(image, patch, True)
    shrunk = shrink_tracks(image, fused, 0.8 * patch, (1, 2))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    assert torch.equal(shrink_tracks(image, fused, 0.8 * patch, (1, 2)), shrunk)
    torch.set_num_threads(threads)
    monkeypatch.setattr(module, "FUSED", False)
    plain = track(image, patch, True)
    assert torch.equal(plain.corners, fused.corners) and torch.equal(plain.counts, fused.counts)
    expected = shrink_tracks(image, plain, 0.8 * patch, (1, 2))
    assert (shrunk - expected).norm() < 1e-5 * expected.norm() < (shrunk - image).norm()


def test_the_first_run_gives_the_same_bits_as_later_ones(tmp_path):
    """The first compiles the kernels, the second loads them from the cache."""
    pytest.importorskip("numba")
    code = (
        "import torch\n"
        "from mri.lowrank.fused import shrink_groups\n"
        "drawn = torch.Generator().manual_seed(0)\n"
        "image = torch.randn(8, 32, 32, dtype=torch.complex64, generator=drawn)\n"
        "corners = torch.arange(8) * 1024 + torch.randint(0, 1024, (200, 1), generator=drawn)\n"
        "print(shrink_groups(image, corners, 5, 6.0).numpy().tobytes().hex())\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    run = [sys.executable, "-c", code]
    first, later = (subprocess.check_output(run, cwd=ROOT, env=environment) for _ in range(2))
    assert any(tmp_path.rglob("*.nbi"))
    assert first == later


@pytest.mark.parametrize("order", [1, 2, 5, 16])
def test_eigenvalues_of_the_kernel(order):
    """Random Hermitian matrices of any rank, and diagonal ones; small eigenvalues need not be found."""
    pytest.importorskip("numba")
    from mri.lowrank import fused

    rng = np.random.default_rng(order)
    for rank in {1, order // 2 + 1, order}:
        factor = rng.standard_normal((2, order, rank)).astype(np.float32)
        matrix = (factor[0] + 1j * factor[1]) @ (factor[0] + 1j * factor[1]).conj().T
        for a in (matrix, np.diag(matrix.diagonal())):
            re, im = np.ascontiguousarray(a.real), np.ascontiguousarray(a.imag)
            tridiagonal, offdiagonal, tau_r, tau_i = np.zeros((4, order), np.float32)
            fused._tridiagonal(re, im, tridiagonal, offdiagonal, tau_r, tau_i)
            offdiagonal[order - 1] = 0
            expected, accuracy = np.linalg.eigvalsh(a), 1e-5 * order * np.abs(a).max()
            for least in (-np.inf, expected[order // 2] + accuracy):
                d, z = tridiagonal.copy(), np.eye(order, dtype=np.float32)
                fused._ql(d, offdiagonal.copy(), z, np.float32(least))
                large = expected > least
                assert np.allclose(np.sort(d)[large], expected[large], atol=accuracy)
                assert (np.sort(d)[~large] <= least).all()
                assert np.allclose(z @ z.T, np.eye(order), atol=1e-5)
            d, z = tridiagonal.copy(), np.eye(order, dtype=np.float32)
            bound = 3 * np.abs([tridiagonal, offdiagonal]).max()
            fused._ql(d, offdiagonal.copy(), z, np.float32(bound))
            assert not d.any() and (z == np.eye(order)).all()
