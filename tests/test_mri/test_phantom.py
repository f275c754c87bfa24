"""The phantoms: repeatable, of any size, and hard enough to tell reconstructions apart."""

import math
import subprocess

import numpy as np
import pytest
import scipy.io
import torch

from mri.formats import load_scan
from mri.fourier import fft2c, ifft2c
from mri.phantom import PhantomScan, make_coil_maps, make_heart, make_phantom, simulate_scan
from mri.phase import smooth_phase
from tests.commands import ROOT, command
from utils.errors import InputError

SCENES = {"simple": make_phantom, "heart": make_heart}

# [::5, 8::16, 8::16] of the magnitude of make_phantom(6, 64, 7), in thousandths
SAMPLED = [
    0.0, 238.96, 300.42, 0.0, 444.63, 131.0, 842.44, 297.53, 274.59, 519.54, 109.89, 297.5, 0.0, 38.1, 421.27, 0.0,
    0.0, 167.18, 217.93, 0.0, 437.27, 77.03, 810.42, 302.96, 275.38, 520.36, 107.26, 300.32, 0.0, 38.27, 421.85, 0.0,
]


def psnr(image: torch.Tensor, reference: torch.Tensor) -> float:
    """Mean over frames, each magnitude over its own maximum, dB."""
    image, reference = (x.abs() / x.abs().amax((-2, -1), keepdim=True) for x in (image, reference))
    return float((-10 * torch.log10((image - reference).square().mean((-2, -1)))).mean())


# ------------------------------------------------------------------------------------------------ both scenes


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize(("frames", "size"), [(2, 64), (5, 66), (16, 96)])
def test_shape_peak_and_repeatability(scene, frames, size):
    image = SCENES[scene](frames, size, seed=3)
    assert image.shape == (frames, size, size) and image.dtype == torch.complex64
    assert image.abs().max().item() == pytest.approx(1, abs=1e-6)
    assert torch.equal(torch.view_as_real(image), torch.view_as_real(SCENES[scene](frames, size, seed=3)))


@pytest.mark.parametrize("scene", SCENES)
def test_seeds_are_different_patients(scene):
    images = [SCENES[scene](2, 64, seed)[0].abs() for seed in range(6)]
    for i, one in enumerate(images):
        for other in images[:i]:
            assert (one - other).norm() > 0.15 * one.norm()


@pytest.mark.parametrize("scene", SCENES)
def test_all_sizes_show_the_same_object(scene):
    large = SCENES[scene](4, 192).abs()
    for size in (64, 96):
        # Pixel i of the small image is where pixel i * 192 / size of the large one is.
        coarse = torch.nn.functional.avg_pool2d(large, 3, 192 // size, padding=1)
        small = SCENES[scene](4, size).abs()
        assert (coarse - small).norm() < 0.15 * small.norm()


@pytest.mark.parametrize("scene", SCENES)
def test_double_frame_rate_shows_the_same_beat(scene):
    twice, once = SCENES[scene](16, 64)[::2].abs(), SCENES[scene](8, 64).abs()
    assert (twice - once).norm() < 0.02 * once.norm()


@pytest.mark.parametrize("scene", SCENES)
def test_impossible_sizes_are_refused(scene):
    for frames, size in ((1, 64), (16, 62)):
        with pytest.raises(InputError, match="ask for"):
            SCENES[scene](frames, size)


# ------------------------------------------------------------------------------------------------------ simple


def test_the_simple_phantom_stays_the_same_on_every_processor():
    sampled = make_phantom(6, 64, 7).abs()[::5, 8::16, 8::16].flatten()
    assert torch.allclose(1000 * sampled, torch.tensor(SAMPLED), atol=0.02)


def test_the_beat_is_periodic_and_moves_the_heart_only_slightly_elsewhere():
    image = make_phantom(16, 96).abs()
    steps = (image - image.roll(1, 0)).square().sum((-2, -1)).sqrt()
    assert steps[0] < 1.5 * steps[1:].max()  # from the last frame to the first is a step like the others
    moving = image.std(0)
    assert moving[48 - 20 : 48 + 12, 44:66].mean() > 4 * moving[48 + 25 :].mean()


def test_odd_sizes_of_the_simple_phantom_are_refused():
    with pytest.raises(InputError, match="even"):
        make_phantom(16, 97)


def test_reconstructions_can_be_told_apart():
    image = make_phantom(16, 96)
    lines = torch.arange(96) % 4 == torch.arange(16)[:, None] % 4
    lines[:, 44:52] = True
    kspace = fft2c(image) * lines[..., None]
    merged = torch.where(lines[..., None], kspace, kspace.sum(0) / lines.sum(0)[:, None])
    assert 15 < psnr(ifft2c(kspace), image) < 21
    assert 26 < psnr(ifft2c(merged), image) < 33


# ------------------------------------------------------------------------------------------------------- heart


def rank(image: torch.Tensor, energy: float = 0.999) -> int:
    """Singular values that hold this share of the energy of the magnitude of the heart region."""
    size = image.shape[-1]
    rows, columns = slice(size // 5, size * 3 // 5), slice(size * 3 // 10, size * 3 // 4)
    power = torch.linalg.svdvals(image[:, rows, columns].abs().double().flatten(1)).square()
    return int((power.cumsum(0) / power.sum() < energy).sum()) + 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tissue_moves_through_the_slice_and_blood_flows(seed):
    assert rank(make_heart(24, 96, seed)) >= 1.3 * rank(make_phantom(24, 96, seed))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_chest_breathes_more_slowly_than_the_heart_beats(seed):
    image = make_heart(16, 96, seed).abs()
    front = image[:, :24, 24:72]  # chest wall above the heart
    apart = (front - front[:1]).square().sum((-2, -1)).sqrt()
    assert (apart[1:].diff() > -0.05 * apart.max()).all()  # it drifts away from frame 0 and does not return
    from_last_to_first, steps = apart[-1], front.diff(dim=0).square().sum((-2, -1)).sqrt()
    assert from_last_to_first > 5 * steps.median()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_blood_changes_its_brightness_as_in_a_real_cine(seed):
    image = make_heart(24, 96, seed).abs()
    moving = torch.nn.functional.avg_pool2d(image.var(0)[None, None], 25, 1, 12)[0, 0]
    blood = (image.amin(0) > 0.45) & (moving > 0.5 * moving.max())  # never muscle
    blood[: 96 // 4] = False
    course = image[:, blood]
    relative = (course.std(0) / course.mean(0)).mean()
    assert blood.sum() > 20 and 0.05 < relative < 0.15
    # no frame is a moved copy of another: the patterns of distant frames are unrelated
    pattern = course - course.mean(1, keepdim=True) - (course - course.mean(1, keepdim=True)).mean(0)
    assert torch.corrcoef(pattern)[0, 2:].abs().mean() < 0.5


def test_the_heart_may_have_an_odd_size():
    assert make_heart(3, 71).shape == (3, 71, 71)


def test_phase_of_the_heart_is_smooth_and_drifts():
    image = make_heart(12, 96, 4)
    step = (image[:, 1:] * image[:, :-1].conj()).angle()[image[:, 1:].abs() > 0.05]
    drift = (image[-1] * image[0].conj())[image[0].abs() > 0.3].angle()
    assert step.abs().max() < 0.3 and 0.05 < drift.abs().max() < 1


# ------------------------------------------------------------------------------------------------ coils, noise


@pytest.mark.parametrize(("coils", "height", "width"), [(2, 16, 17), (5, 33, 48), (12, 40, 31), (20, 64, 64)])
def test_coil_maps_are_smooth_and_normalised(coils, height, width):
    maps = make_coil_maps(coils, height, width, seed=1)
    assert maps.shape == (coils, height, width) and maps.dtype == torch.complex64
    assert torch.allclose(maps.abs().square().sum(0), torch.ones(height, width), atol=1e-5)
    for axis in (1, 2):  # the same slope per field of view at every size
        assert maps.diff(dim=axis).abs().square().sum(0).sqrt().max() * maps.shape[axis] < 15
    assert torch.equal(maps, make_coil_maps(coils, height, width, seed=1))
    assert not torch.equal(maps, make_coil_maps(coils, height, width, seed=2))


def test_coils_see_different_parts():
    maps = make_coil_maps(8, 64, 64)
    dominant = maps.abs().argmax(0)
    assert torch.bincount(dominant.flatten(), minlength=8).min() > 0.04 * 64 * 64


def test_one_coil_is_uniform_and_bad_sizes_are_refused():
    assert torch.equal(make_coil_maps(1, 16, 20), torch.ones(1, 16, 20, dtype=torch.complex64))
    for arguments in ((0, 64, 64), (4, 15, 64)):
        with pytest.raises(InputError, match="ask for"):
            make_coil_maps(*arguments)


@pytest.mark.parametrize(("scene", "coils"), [("simple", 1), ("heart", 6)])
def test_kspace_without_noise_is_that_of_the_coil_images(scene, coils):
    scan = simulate_scan(scene, 4, 64, 2, coils, 0)
    assert torch.equal(scan.image, SCENES[scene](4, 64, 2))
    assert torch.equal(scan.kspace, fft2c(scan.maps * scan.image[:, None]))
    assert not scan.noise.any()
    combined = (scan.maps.conj() * ifft2c(scan.kspace)).sum(1)
    assert torch.allclose(combined, scan.image, atol=1e-5)


def test_noise_has_the_level_asked_for_and_is_white():
    scan = simulate_scan("simple", 8, 64, 0, 4, 0.03)
    clean = simulate_scan("simple", 8, 64, 0, 4, 0.0)
    assert scan.kspace.shape == (8, 4, 64, 64) and scan.noise.shape == (4, 4096)
    for noise in (scan.kspace - clean.kspace, scan.noise):
        per_coil = noise.transpose(0, 1).flatten(1) if noise.ndim == 4 else noise
        assert torch.allclose(per_coil.abs().square().mean(1).sqrt(), torch.tensor(0.03), rtol=0.05)
        assert per_coil.real.std().item() == pytest.approx(0.03 / math.sqrt(2), rel=0.05)
        covariance = (per_coil @ per_coil.mH / per_coil.shape[1] / 0.03**2).abs()
        assert (covariance - torch.eye(4)).abs().max() < 0.08
    again = simulate_scan("simple", 8, 64, 0, 4, 0.03)
    assert torch.equal(scan.kspace, again.kspace) and torch.equal(scan.noise, again.noise)


def test_impossible_scans_are_refused():
    for arguments in (("lung", 4, 64, 0, 2, 0), ("heart", 4, 64, 0, 0, 0), ("heart", 4, 64, 0, 2, -1)):
        with pytest.raises(InputError):
            simulate_scan(*arguments)
    with pytest.raises(InputError):
        simulate_scan("heart", 4, 64, 0, 2, math.nan)


def test_phase_is_smooth_periodic_and_within_range():
    phase = smooth_phase(8, 40, 60, seed=1)
    assert phase.shape == (8, 40, 60) and phase.dtype == torch.float32
    assert 0.4 * math.pi < phase.abs().max() < 0.9 * math.pi
    for axis in (0, 1, 2):
        assert phase.diff(dim=axis).abs().max() < 0.6
    assert (phase[0] - phase[-1]).abs().max() < 0.3
    assert 0 < phase.std(0).max() < 0.3
    with pytest.raises(InputError):
        smooth_phase(0, 8, 8)


# ---------------------------------------------------------------------------------------------------- command


def run_command(*arguments: str) -> subprocess.CompletedProcess:
    return command("-m", "mri.phantom", "--frames", 3, "--size", 64, *arguments, cwd=ROOT, succeeds=False)


@pytest.mark.parametrize("scene", ["", *SCENES])
def test_command_writes_what_the_function_makes(tmp_path, scene):
    path = tmp_path / "scan.mat"
    done = run_command("--seed", "5", "--out", str(path), *(["--scene", scene] if scene else []))
    assert done.returncode == 0, done.stderr
    assert str(path) in done.stdout and "(64, 64, 3)" in done.stdout and "complex64" in done.stdout
    stored = scipy.io.loadmat(path)["image"]
    assert stored.shape == (64, 64, 3) and stored.dtype == np.complex64
    assert torch.equal(load_scan(path).data.reshape(3, 64, 64), SCENES[scene or "simple"](3, 64, seed=5))


@pytest.mark.parametrize(
    ("flags", "arguments", "words"),
    [
        (("--scene", "heart", "--coils", "4", "--noise", "0.02"), ("heart", 3, 64, 0, 4, 0.02), "SNR 50 "),
        (("--coils", "2"), ("simple", 3, 64, 0, 2, 0.0), "no noise"),
        (("--noise", "0.1"), ("simple", 3, 64, 0, 1, 0.1), "SNR 10 "),
    ],
)
def test_command_writes_a_scan_with_coils_and_noise(tmp_path, flags, arguments, words):
    path = tmp_path / "scan.npz"
    done = run_command(*flags, "--out", str(path))
    assert done.returncode == 0, done.stderr
    expected: PhantomScan = simulate_scan(*arguments)
    with np.load(path) as stored:
        assert set(stored) == {"kspace", "noise", "maps", "image"}
        for name in stored:
            assert np.array_equal(stored[name], getattr(expected, name).numpy()), name
            assert f"{name} {stored[name].shape}" in done.stdout
    assert str(path) in done.stdout and words in done.stdout


def test_command_refuses_in_one_sentence(tmp_path):
    there = tmp_path / "scan.npy"
    there.write_bytes(b"kept")
    scan = tmp_path / "scan.npz"
    scan.write_bytes(b"kept")
    refused = [
        (there, "--overwrite", ()),
        (tmp_path / "scan.txt", ".mat", ()),
        (tmp_path / "scan.mat", ".npz", ("--coils", "2")),
        (tmp_path / "scan.h5", ".npz", ("--noise", "0.1")),
        (scan, "--overwrite", ("--coils", "2")),
    ]
    for path, mend, flags in refused:
        done = run_command("--out", str(path), *flags)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and str(path) in done.stderr and mend in done.stderr
    assert there.read_bytes() == scan.read_bytes() == b"kept"
    assert sorted(tmp_path.iterdir()) == [there, scan]


@pytest.mark.parametrize("flags", [("--coils", "0"), ("--coils", "65"), ("--noise", "2"), ("--noise", "nan")])
def test_command_refuses_levels_out_of_range(tmp_path, flags):
    done = run_command("--out", str(tmp_path / "scan.npz"), *flags)
    assert done.returncode == 2 and "must be a" in done.stderr and not list(tmp_path.iterdir())
