import numpy as np
import pytest
import scipy.io
import torch

from configs.default import get_default_configs
from datasets import (
    PseudoReferenceFrames,
    acquisition,
    acquisition_from_file,
    augment,
    embedded_acquisition,
    pseudo_reference_file,
    scan_files,
)
from mri.consistency import scan_scale
from mri.fourier import fft2c, ifft2c
from mri.masks import make_mask
from mri.phantom import make_phantom
from mri.weighting import KspaceWeight
from utils.errors import InputError
from utils.frame_file import open_frames


@pytest.fixture
def config():
    config = get_default_configs()
    config.data.image_size, config.data.frames = 64, 6
    return config


@pytest.fixture
def image():
    return make_phantom(6, 64, 3)


def save(path, array):
    np.save(path, array.numpy())
    return path


def test_embedded_scan_is_undersampled(config):
    scan = embedded_acquisition(config, 0)
    assert torch.equal(scan.mask, make_mask("uniform", (6, 64, 64), 4, 8))
    assert torch.equal(scan.kspace[scan.mask], fft2c(scan.reference)[scan.mask])
    assert (scan.kspace[~scan.mask] == 0).all()
    assert "same samples in every frame" not in str(scan) and "nothing is missing" not in str(scan)


def test_masks_that_leave_little_to_do_are_told(config, tmp_path):
    config.mask.acceleration = 1
    assert "nothing is missing" in str(embedded_acquisition(config, 0))
    config.mask.path = str(save(tmp_path / "still.npy", (torch.arange(64) % 2 == 0)[:, None].expand(64, 64)))
    assert "net acceleration 2.00; the same samples in every frame" in str(embedded_acquisition(config, 0))


def test_magnitude_images_get_a_seeded_smooth_phase(config, image, tmp_path):
    path = save(tmp_path / "image.npy", image.abs())
    scan = acquisition_from_file(config, path)
    assert torch.allclose(scan.reference.abs(), image.abs(), atol=1e-6)
    assert scan.reference.imag.abs().max() > 0.1
    assert torch.equal(acquisition_from_file(config, path).kspace, scan.kspace)
    config.data.phase = "none"
    assert acquisition_from_file(config, path).reference.imag.abs().max() == 0


def test_complex_images_keep_their_phase(config, image, tmp_path):
    scan = acquisition_from_file(config, save(tmp_path / "image.npy", image))
    assert torch.equal(scan.reference, image)


def test_undersampled_kspace_gives_its_mask_and_no_reference(config, image, tmp_path):
    mask = make_mask("random", (6, 64, 64), 4, 6, seed=5)
    scan = acquisition_from_file(config, save(tmp_path / "kspace.npy", torch.where(mask, fft2c(image), 0)))
    assert scan.reference is None and torch.equal(scan.mask, mask)
    assert torch.equal(scan.kspace[mask], fft2c(image)[mask])


def test_a_zero_inside_a_measured_line_is_a_value(config, image, tmp_path):
    mask = make_mask("uniform", (6, 64, 64), 4, 6)
    kspace = torch.where(mask, fft2c(image), 0)
    kspace[0, 32, 5] = 0
    assert torch.equal(acquisition_from_file(config, save(tmp_path / "kspace.npy", kspace)).mask, mask)


def test_a_radial_mask_is_found_sample_by_sample(config, image, tmp_path):
    mask = make_mask("radial", (6, 64, 64), 6)
    path = save(tmp_path / "kspace.npy", torch.where(mask, fft2c(image), 0))
    assert torch.equal(acquisition_from_file(config, path).mask, mask)


def test_fully_sampled_kspace_is_undersampled(config, image, tmp_path):
    scan = acquisition_from_file(config, save(tmp_path / "kspace.npy", fft2c(image)))
    assert torch.allclose(scan.reference, image, atol=1e-5)
    assert scan.mask.double().mean() < 0.5


def test_mask_file(config, image, tmp_path):
    mask = make_mask("uniform", (6, 64, 64), 3, 4)
    config.mask.path = str(tmp_path / "mask.mat")
    scipy.io.savemat(config.mask.path, {"mask": mask.permute(1, 2, 0).numpy().astype(np.uint8)})
    path = save(tmp_path / "kspace.npy", torch.where(mask, fft2c(image), 0))
    assert torch.equal(acquisition_from_file(config, path).mask, mask)
    other = make_mask("uniform", (6, 64, 64), 3, 4, seed=1)
    save(tmp_path / "kspace.npy", torch.where(other, fft2c(image), 0))
    with pytest.raises(InputError, match=r"mask.mat does not match .*kspace.npy"):
        acquisition_from_file(config, path)
    scipy.io.savemat(config.mask.path, {"mask": mask[:5].permute(1, 2, 0).numpy().astype(np.uint8)})
    with pytest.raises(InputError, match=r"mask.mat: shape \(5, 64, 64\) does not fit"):
        acquisition_from_file(config, path)


def test_frames_and_size(config, image, tmp_path):
    path = save(tmp_path / "image.npy", image)
    config.data.scan_frames, config.data.scan_size = 9, 32
    scan = acquisition_from_file(config, path)
    assert scan.reference.shape == (9, 32, 32)
    assert torch.equal(scan.reference[6:], scan.reference[:3])
    cropped = fft2c(scan.reference)[0] / fft2c(image)[0, 16:48, 16:48]
    assert torch.allclose(cropped, torch.full_like(cropped, 0.5), atol=1e-2)  # intensities stay, not norms
    save(tmp_path / "kspace.npy", fft2c(image))
    with pytest.raises(InputError, match="not repeated"):
        acquisition_from_file(config, tmp_path / "kspace.npy")
    config.data.scan_size = 66
    with pytest.raises(InputError, match="at most"):
        acquisition_from_file(config, path)


def test_folder_of_scans(config, image, tmp_path):
    with pytest.raises(InputError, match="holds no scan"):
        scan_files(tmp_path)
    save(tmp_path / "b.npy", image)
    save(tmp_path / "a.npy", image)
    (tmp_path / "notes.txt").write_text("no scan")
    assert [path.name for path in scan_files(tmp_path)] == ["a.npy", "b.npy"]


def test_scans_that_would_share_a_folder_of_results(image, tmp_path):
    save(tmp_path / "a.npy", image)
    np.savez(tmp_path / "a.npz", image=image.numpy())
    with pytest.raises(InputError, match="a.npy and a.npz"):
        scan_files(tmp_path)


def test_training_frames_and_draws(config, tmp_path):
    config.data.phantoms = 2
    paths = {name: pseudo_reference_file(config, tmp_path, name) for name in ("global", "local")}
    frames = {name: torch.from_numpy(np.array(open_frames(path))) for name, path in paths.items()}
    assert frames["global"].shape == (12, 64, 64)
    assert not torch.equal(frames["global"], frames["local"])
    for seed in (1, 2):
        scan = acquisition(config, seed)
        scale = scan_scale(scan.kspace, scan.mask)
        own = frames["local"][6 * (seed - 1) : 6 * seed][scan.mask]
        assert torch.allclose(own * scale, scan.kspace[scan.mask], atol=1e-5)
    weight = KspaceWeight.fit(open_frames(paths["local"]), 1.0, 0.5)
    data = PseudoReferenceFrames(open_frames(paths["local"]), weight, 1.25, 4)
    draws = [data.draw(torch.Generator().manual_seed(2)) for _ in range(2)]
    assert draws[0].shape == (1, 2, 64, 64) and torch.equal(*draws)
    many = torch.cat([data.draw(torch.Generator().manual_seed(seed)) for seed in range(256)])
    assert many.std().item() == pytest.approx(0.5, rel=0.15)


def test_training_frames_are_made_once_and_anew_when_what_they_depend_on_changes(config, image, tmp_path):
    (tmp_path / "scans").mkdir()
    save(tmp_path / "scans" / "a.npy", image)
    config.data.path = str(tmp_path / "scans")
    path = pseudo_reference_file(config, tmp_path, "global")
    written = path.stat().st_mtime_ns
    assert pseudo_reference_file(config, tmp_path, "global") == path and path.stat().st_mtime_ns == written
    save(tmp_path / "scans" / "b.npy", image)
    longer = pseudo_reference_file(config, tmp_path, "global")
    assert longer != path and len(open_frames(longer)) == 2 * len(open_frames(path))
    config.mask.acceleration = 2.0
    assert pseudo_reference_file(config, tmp_path, "global") not in (path, longer)


def test_scans_of_two_sizes_cannot_be_mixed(config, image, tmp_path):
    (tmp_path / "scans").mkdir()
    save(tmp_path / "scans" / "a.npy", image)
    save(tmp_path / "scans" / "b.npy", image[:, :60, :60])
    config.data.path = str(tmp_path / "scans")
    with pytest.raises(InputError, match="one size"):
        pseudo_reference_file(config, tmp_path, "local")
    assert not list(tmp_path.glob("*.npy"))  # nothing half-written


def test_augmentation_is_exact_in_image_space():
    """Each augmented image is the original, shifted, flipped, transposed, scaled and turned in phase."""
    image = make_phantom(2, 64, 0)[:1]
    batch = fft2c(image).expand(200, -1, -1)
    augmented = ifft2c(augment(batch, 1.25, 5, torch.Generator().manual_seed(0)))
    gains, seen = [], set()
    for result in augmented[:24]:
        best, which = _best_match(result, image[0])
        assert best > 0.9999
        seen.add(which)
        gains.append((result.norm() / image.norm()).item())
    assert len(seen) >= 6  # of the eight flips and transpositions
    assert 1 / 1.25 <= min(gains) < 0.95 and 1.05 < max(gains) <= 1.25


def _best_match(result, image):
    """Largest normalised circular correlation of `result` with the eight flips and transpositions."""
    best = (0.0, None)
    for flip_y in (False, True):
        for flip_x in (False, True):
            for transposed in (False, True):
                candidate = image
                if flip_y:
                    candidate = torch.roll(candidate.flip(0), 1, 0)
                if flip_x:
                    candidate = torch.roll(candidate.flip(1), 1, 1)
                if transposed:
                    candidate = candidate.T
                correlation = ifft2c(fft2c(result) * fft2c(candidate).conj()).abs().max() * 64
                value = (correlation / result.norm() / candidate.norm()).item()
                best = max(best, (value, (flip_y, flip_x, transposed)))
    return best


def test_frames_that_are_not_square_are_not_transposed():
    batch = torch.randn(8, 6, 10, dtype=torch.complex64)
    assert augment(batch, 1.25, 2, torch.Generator().manual_seed(0)).shape == batch.shape


@pytest.mark.parametrize("transposed", [False, True])
def test_nearly_full_kspace_is_not_called_full(config, image, tmp_path, transposed):
    """Five lines of 64 missing in all frames are missing; a stray zero inside a line is not."""
    kspace = fft2c(image)
    kspace[:, [3, 17, 30, 41, 60]] = 0
    kspace[2, 8, 8] = 0
    expected = torch.ones(kspace.shape, dtype=torch.bool)
    expected[:, [3, 17, 30, 41, 60]] = False
    if transposed:
        kspace, expected = kspace.mT, expected.mT
    np.save(tmp_path / "scan.npy", kspace.numpy())
    config.data.key = "kspace"
    scan = acquisition_from_file(config, tmp_path / "scan.npy")
    assert scan.reference is None and torch.equal(scan.mask, expected)
