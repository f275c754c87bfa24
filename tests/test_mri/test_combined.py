"""Coils combined after under-sampling are noticed; full scans of every kind are not mistaken for them."""

import numpy as np
import pytest
import torch

from mri.combined import (
    POINT_SWING,
    ROUGHNESS,
    SWING,
    point_swing,
    refuse_combined_after_undersampling,
    row_roughness,
    row_swing,
)
from mri.formats import load_scan
from mri.fourier import fft2c, ifft2c
from mri.intake import scan_from_file
from mri.intake_settings import Intake
from mri.masks import make_mask
from mri.phantom import simulate_scan
from mri.phase import smooth_phase
from mri.scenes import make_scene
from utils.errors import InputError


def combined(scene, acceleration, noise, seed=0, pattern="uniform", static=False):
    """Combined images by maps, and by the root of the sum of squares, of an under-sampled scan."""
    scan = simulate_scan(scene, 8, 64, seed, 6, noise)
    mask = make_mask(pattern, (8, 64, 64), acceleration, 8)
    mask = mask[:1].expand_as(mask) if static else mask
    coils = ifft2c(torch.where(mask[:, None], scan.kspace, 0))
    return (coils * scan.maps.conj()).sum(1), coils.abs().square().sum(1).sqrt().to(torch.complex64)


@pytest.mark.parametrize("acceleration", [3, 4, 6])
@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("scene", ["simple", "heart"])
def test_combined_after_undersampling_is_refused(scene, noise, acceleration):
    for image in combined(scene, acceleration, noise):
        with pytest.raises(InputError, match=r"scan.npy looks fully sampled.*k-space of every coil"):
            refuse_combined_after_undersampling(fft2c(image), "scan.npy")
        assert row_swing(fft2c(image).mT) == pytest.approx(row_swing(fft2c(image)))  # lines along either axis


@pytest.mark.parametrize("scene", ["simple", "heart"])
def test_so_are_radial_masks(scene):
    for image in combined(scene, 8, 0.005, pattern="radial"):
        with pytest.raises(InputError, match=r"scan.npy looks fully sampled.* changes"):
            refuse_combined_after_undersampling(fft2c(image), "scan.npy")


@pytest.mark.parametrize("scene", ["simple", "heart"])
@pytest.mark.parametrize("pattern", ["uniform", "random"])
def test_of_the_same_lines_in_every_frame_is_warned(pattern, scene):
    """A box has such lines too, so that it cannot be refused."""
    for image in combined(scene, 4, 0.005, pattern=pattern, static=True):
        assert refuse_combined_after_undersampling(fft2c(image), "scan.npy")[0].startswith("warning")
    box = 0.01 * torch.randn(8, 64, 64, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    box[:, 16:48, 16:48] += 1
    assert "straight edges" in refuse_combined_after_undersampling(fft2c(box), "scan.npy")[0]


def clear(kspace, roughness=0.9):
    """Whether all three measures are clearly below their limits, the roughness below this share of its limit."""
    return row_swing(kspace) < 0.8 * SWING and row_roughness(kspace) < roughness * ROUGHNESS and (
        point_swing(kspace) < 0.75 * POINT_SWING)  # fmt: skip


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("scene", ["simple", "heart"])
def test_full_scans_are_accepted(scene, noise):
    for seed in range(3):
        scan = simulate_scan(scene, 8, 64, seed, 4, noise)
        for kspace in (scan.kspace[:, 0], fft2c(ifft2c(scan.kspace).abs().square().sum(1).sqrt().to(torch.complex64))):
            assert clear(kspace)


def test_scenes_with_contrast_that_changes_are_accepted():
    """Scenes cut from photographs of gravel and grass are rougher in k-space than any scan, hence 0.96."""
    for seed in range(24):
        assert clear(fft2c(make_scene(12, 64, 64, seed)[0]), roughness=0.96)


@pytest.mark.parametrize("name", ["rat_cine_192x192x8", "pincat_128x128x50", "giraf_cine_192x156x25"])
def test_development_scans_are_accepted(name, shared_file):
    image = load_scan(shared_file(f"data/{name}.mat")).data[:, 0].abs()
    phase = smooth_phase(*image.shape)
    assert clear(fft2c(torch.polar(image, phase))) and clear(fft2c(image + 0j))
    padded = torch.nn.functional.pad(fft2c(image + 0j), (16, 16, 16, 16))
    refuse_combined_after_undersampling(padded, "a zero-padded scan")


def test_the_file_is_named(tmp_path):
    np.save(tmp_path / "images.npy", combined("simple", 4, 0.0)[1].abs().numpy())
    with pytest.raises(InputError, match="images.npy looks fully sampled"):
        scan_from_file(Intake(), tmp_path / "images.npy")
