"""From files and the built-in heart phantom to scans and references."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.io
import torch

from mri.formats.detect import result_names
from mri.fourier import fft2c
from mri.intake import embedded_scan, reference_from_file, scan_files, scan_from_file
from mri.intake_settings import DataSettings, Intake, MaskSettings
from mri.masks import make_mask
from mri.phantom import make_coil_maps, make_phantom
from reconstruction.prepare import prepare
from reconstruction.settings import PrepareSettings
from utils.errors import InputError


def intake(mask=None, **data):
    return Intake(DataSettings(**data), mask or MaskSettings(), embedded_size=64)


@pytest.fixture
def image():
    return make_phantom(6, 64, 3)


def save(path, array):
    np.save(path, array.numpy())
    return path


def test_embedded_scan_is_undersampled():
    scan, reference = embedded_scan(intake(frames=6), 0)
    assert torch.equal(scan.mask, make_mask("uniform", (6, 64, 64), 4, 8))
    assert scan.kspace.shape == (6, 8, 64, 64) and scan.noise_samples.shape == (8, 4096)
    assert (scan.kspace.movedim(1, -1)[~scan.mask] == 0).all() and (scan.kspace.movedim(1, -1)[scan.mask] != 0).all()
    assert reference.image.shape == (6, 64, 64) and not reference.noisy
    assert "the same in every frame" not in str(scan) and "; fully sampled" not in str(scan)


def test_masks_that_leave_little_to_do_are_told(tmp_path):
    assert "fully sampled" in str(embedded_scan(intake(MaskSettings(acceleration=1.0), frames=6), 0)[0])
    path = str(save(tmp_path / "still.npy", (torch.arange(64) % 2 == 0)[:, None].expand(64, 64)))
    scan, _ = embedded_scan(intake(MaskSettings(path=path), frames=6), 0)
    assert "net acceleration 2.00; the same in every frame" in str(scan)


def test_magnitude_images_get_a_seeded_smooth_phase(image, tmp_path):
    path = save(tmp_path / "image.npy", image.abs())
    scan, reference = scan_from_file(intake(), path)
    assert torch.allclose(reference.image.abs(), image.abs(), atol=1e-6)
    assert reference.image.imag.abs().max() > 0.1
    assert torch.equal(scan_from_file(intake(), path)[0].kspace, scan.kspace)
    assert scan_from_file(intake(phase="none"), path)[1].image.imag.abs().max() == 0


def test_complex_images_keep_their_phase(image, tmp_path):
    _, reference = scan_from_file(intake(), save(tmp_path / "image.npy", image))
    assert torch.equal(reference.image, image)


def test_undersampled_kspace_gives_its_mask_and_no_reference(image, tmp_path):
    mask = make_mask("random", (6, 64, 64), 4, 6, seed=5)
    scan, reference = scan_from_file(intake(), save(tmp_path / "kspace.npy", torch.where(mask, fft2c(image), 0)))
    assert reference is None and torch.equal(scan.mask, mask)
    assert torch.equal(scan.kspace[:, 0][mask], fft2c(image)[mask])


def test_a_zero_inside_a_measured_line_is_a_value(image, tmp_path):
    mask = make_mask("uniform", (6, 64, 64), 4, 6)
    kspace = torch.where(mask, fft2c(image), 0)
    kspace[0, 32, 5] = 0
    assert torch.equal(scan_from_file(intake(), save(tmp_path / "kspace.npy", kspace))[0].mask, mask)


def test_a_radial_mask_is_found_sample_by_sample(image, tmp_path):
    mask = make_mask("radial", (6, 64, 64), 6)
    path = save(tmp_path / "kspace.npy", torch.where(mask, fft2c(image), 0))
    assert torch.equal(scan_from_file(intake(), path)[0].mask, mask)


def test_fully_sampled_kspace_is_undersampled_and_its_own_reference(image, tmp_path):
    scan, reference = scan_from_file(intake(), save(tmp_path / "kspace.npy", fft2c(image)))
    assert reference.noisy and torch.allclose(prepare(scan).reference_image(reference), image, atol=1e-5)
    assert scan.mask.double().mean() < 0.5
    coils = fft2c(image[:, None] * make_coil_maps(4, 64, 64))
    np.savez(tmp_path / "coils.npz", kspace=coils.numpy())
    scan, reference = scan_from_file(intake(), tmp_path / "coils.npz")
    problem = prepare(scan, PrepareSettings(virtual_coils=4))
    assert torch.allclose(problem.reference_image(reference), image.abs(), atol=1e-5)
    fewer = prepare(scan).reference_image(reference)  # of the same compressed coils
    assert 0.98 < fewer.norm() / image.norm() < 1


def test_mask_file(image, tmp_path):
    mask = make_mask("uniform", (6, 64, 64), 3, 4)
    path = tmp_path / "mask.mat"
    settings = intake(MaskSettings(path=str(path)))
    scipy.io.savemat(path, {"mask": mask.permute(1, 2, 0).numpy().astype(np.uint8)})
    kspace = save(tmp_path / "kspace.npy", torch.where(mask, fft2c(image), 0))
    assert torch.equal(scan_from_file(settings, kspace)[0].mask, mask)
    other = make_mask("uniform", (6, 64, 64), 3, 4, seed=1)
    save(tmp_path / "kspace.npy", torch.where(other, fft2c(image), 0))
    with pytest.raises(InputError, match=r"mask.mat does not match .*kspace.npy"):
        scan_from_file(settings, kspace)
    scipy.io.savemat(path, {"mask": mask[:5].permute(1, 2, 0).numpy().astype(np.uint8)})
    with pytest.raises(InputError, match=r"mask.mat: shape \(5, 64, 64\) does not fit"):
        scan_from_file(settings, kspace)


def test_frames_and_size(image, tmp_path):
    path = save(tmp_path / "image.npy", image)
    _, reference = scan_from_file(intake(frames=9, size=32), path)
    assert reference.image.shape == (9, 32, 32)
    assert torch.equal(reference.image[6:], reference.image[:3])
    crop = fft2c(reference.image)[0] / fft2c(image)[0, 16:48, 16:48]
    assert torch.allclose(crop, torch.full_like(crop, 0.5), atol=1e-2)  # intensities stay, not norms
    save(tmp_path / "kspace.npy", fft2c(image))
    with pytest.raises(InputError, match="not repeated"):
        scan_from_file(intake(frames=9), tmp_path / "kspace.npy")
    with pytest.raises(InputError, match="at most"):
        scan_from_file(intake(size=66), path)
    truth = save(tmp_path / "truth.npy", image[:4])
    scan, _ = scan_from_file(intake(frames=6), path)
    with pytest.raises(InputError, match="holds 4 frames and the scan 6"):
        reference_from_file(intake(frames=6), truth, None, scan)


def test_coil_maps_of_a_file(image, tmp_path):
    maps = make_coil_maps(4, 64, 64)
    mask = make_mask("uniform", (6, 64, 64), 4, 8)
    kspace = torch.where(mask[:, None], fft2c(image[:, None] * maps), 0)
    np.savez(tmp_path / "scan.npz", kspace=kspace.numpy(), maps=maps.numpy())
    settings = replace(intake(), maps=str(tmp_path / "scan.npz"))
    scan, _ = scan_from_file(settings, tmp_path / "scan.npz")
    assert torch.equal(scan.coil_maps, maps)
    small, _ = scan_from_file(replace(intake(size=48), maps=settings.maps), tmp_path / "scan.npz")
    assert small.coil_maps.shape == (4, 48, 48) and (small.coil_maps.abs().square().sum(0) - 1).abs().mean() < 0.05
    np.save(tmp_path / "maps.npy", maps[:3].numpy())
    with pytest.raises(InputError, match=r"maps.npy: coil maps \(3, 64, 64\) do not fit"):
        scan_from_file(replace(intake(), maps=str(tmp_path / "maps.npy")), tmp_path / "scan.npz")


def test_folder_of_scans(image, tmp_path):
    with pytest.raises(InputError, match="holds no scan"):
        scan_files(tmp_path)
    save(tmp_path / "b.npy", image)
    save(tmp_path / "a.npy", image)
    (tmp_path / "notes.txt").write_text("no scan")
    assert [path.name for path in scan_files(tmp_path)] == ["a.npy", "b.npy"]


def test_scans_that_would_share_a_folder_of_results(image, tmp_path):
    save(tmp_path / "a.npy", image)
    np.savez(tmp_path / "a.npz", image=image.numpy())
    save(tmp_path / "b.npy", image)
    assert result_names(scan_files(tmp_path)) == ["a_npy", "a_npz", "b"]
    save(tmp_path / "a_npz.npy", image)
    with pytest.raises(InputError, match="a.npz and a_npz.npy would share"):
        scan_files(tmp_path)


@pytest.mark.parametrize("transposed", [False, True])
def test_nearly_full_kspace_is_not_called_full(image, tmp_path, transposed):
    """Five lines of 64 missing in all frames are missing; a stray zero inside a line is not."""
    kspace = fft2c(image)
    kspace[:, [3, 17, 30, 41, 60]] = 0
    kspace[2, 8, 8] = 0
    expected = torch.ones(kspace.shape, dtype=torch.bool)
    expected[:, [3, 17, 30, 41, 60]] = False
    if transposed:
        kspace, expected = kspace.mT, expected.mT
    np.save(tmp_path / "scan.npy", kspace.numpy())
    scan, reference = scan_from_file(intake(key="kspace"), tmp_path / "scan.npy")
    assert reference is None and torch.equal(scan.mask, expected)
