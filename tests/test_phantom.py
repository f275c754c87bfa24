"""The phantom: repeatable, periodic, of any size, and hard enough to tell reconstructions apart."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from mri.fourier import fft2c, ifft2c
from mri.io import load_scan
from mri.phantom import make_phantom
from mri.phase import smooth_phase
from utils.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def psnr(image: torch.Tensor, reference: torch.Tensor) -> float:
    """Mean over frames, each magnitude over its own maximum, dB."""
    image, reference = (x.abs() / x.abs().amax((-2, -1), keepdim=True) for x in (image, reference))
    return float((-10 * torch.log10((image - reference).square().mean((-2, -1)))).mean())


@pytest.mark.parametrize(("frames", "size"), [(2, 64), (5, 66), (16, 96)])
def test_shape_peak_and_repeatability(frames, size):
    image = make_phantom(frames, size, seed=3)
    assert image.shape == (frames, size, size) and image.dtype == torch.complex64
    assert image.abs().max().item() == pytest.approx(1, abs=1e-6)
    assert torch.equal(torch.view_as_real(image), torch.view_as_real(make_phantom(frames, size, seed=3)))


def test_seeds_are_different_patients():
    images = [make_phantom(2, 64, seed)[0].abs() for seed in range(6)]
    for i, one in enumerate(images):
        for other in images[:i]:
            assert (one - other).norm() > 0.15 * one.norm()


def test_all_sizes_show_the_same_object():
    large = make_phantom(4, 192).abs()
    for size in (64, 96):
        # Pixel i of the small image is where pixel i * 192 / size of the large one is.
        coarse = torch.nn.functional.avg_pool2d(large, 3, 192 // size, padding=1)
        small = make_phantom(4, size).abs()
        assert (coarse - small).norm() < 0.15 * small.norm()


def test_the_beat_is_periodic_and_moves_the_heart_only_slightly_elsewhere():
    image = make_phantom(16, 96).abs()
    steps = (image - image.roll(1, 0)).square().sum((-2, -1)).sqrt()
    assert steps[0] < 1.5 * steps[1:].max()  # from the last frame to the first is a step like the others
    moving = image.std(0)
    assert moving[48 - 20 : 48 + 12, 44:66].mean() > 4 * moving[48 + 25 :].mean()


def test_double_frame_rate_shows_the_same_beat():
    assert torch.allclose(make_phantom(16, 64)[::2].abs(), make_phantom(8, 64).abs(), atol=0.1)


def test_reconstructions_can_be_told_apart():
    image = make_phantom(16, 96)
    lines = torch.arange(96) % 4 == torch.arange(16)[:, None] % 4
    lines[:, 44:52] = True
    kspace = fft2c(image) * lines[..., None]
    merged = torch.where(lines[..., None], kspace, kspace.sum(0) / lines.sum(0)[:, None])
    assert 15 < psnr(ifft2c(kspace), image) < 21
    assert 26 < psnr(ifft2c(merged), image) < 33


@pytest.mark.parametrize(("frames", "size"), [(1, 64), (16, 62), (16, 97)])
def test_impossible_sizes_are_refused(frames, size):
    with pytest.raises(InputError, match="ask for"):
        make_phantom(frames, size)


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


def run_command(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mri.phantom", "--frames", "3", "--size", "64", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_command_writes_what_the_function_makes(tmp_path):
    path = tmp_path / "scan.mat"
    done = run_command("--seed", "5", "--out", str(path))
    assert done.returncode == 0, done.stderr
    assert str(path) in done.stdout and "(64, 64, 3)" in done.stdout and "complex64" in done.stdout
    stored = scipy.io.loadmat(path)["image"]
    assert stored.shape == (64, 64, 3) and stored.dtype == np.complex64
    scan = load_scan(path)
    assert scan.kind == "complex" and torch.equal(scan.data, make_phantom(3, 64, seed=5))


def test_command_refuses_in_one_sentence(tmp_path):
    there = tmp_path / "scan.npy"
    there.write_bytes(b"kept")
    for path, mend in ((there, "--overwrite"), (tmp_path / "scan.txt", ".mat")):
        done = run_command("--out", str(path))
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and str(path) in done.stderr and mend in done.stderr
    assert there.read_bytes() == b"kept"
