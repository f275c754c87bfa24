"""What the published objective learns from: pseudo-reference frames, and their augmentation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets import PseudoReferenceFrames, augment
from mri.fourier import fft2c, ifft2c
from mri.intake import acquire
from mri.intake_settings import DataSettings, Intake, MaskSettings
from mri.phantom import make_phantom
from mri.weighting import KspaceWeight
from reconstruction.prepare import prepare
from reconstruction.settings import PrepareSettings
from training import settings as parts
from training.pseudo_references import pseudo_reference_file
from utils.errors import InputError
from utils.frame_file import open_frames


def settings(**data):
    intake = Intake(DataSettings(**data), embedded_size=64)
    return parts.RunSettings(
        0, intake, PrepareSettings(), parts.PseudoReferenceSettings(), parts.ModelSettings(),
        parts.TrainingSettings(), parts.OptimSettings(),
    )  # fmt: skip


@pytest.fixture
def image():
    return make_phantom(6, 64, 3)


def save(path, array):
    np.save(path, array.numpy())
    return path


def test_training_frames_and_draws(tmp_path):
    """Of one coil the measured samples stay; of the built-in heart phantoms the coils are combined."""
    for seed in (1, 2):
        np.savez(tmp_path / f"{seed}.npz", image=make_phantom(6, 64, seed).numpy())
    run = settings(path=str(tmp_path))
    paths = {name: pseudo_reference_file(run, tmp_path / "data", name) for name in ("global", "local")}
    frames = {name: torch.from_numpy(np.array(open_frames(path))) for name, path in paths.items()}
    assert frames["global"].shape == (12, 64, 64)
    assert not torch.equal(frames["global"], frames["local"])
    for seed in (1, 2):
        scan, _ = acquire(run.intake, tmp_path / f"{seed}.npz")
        own = frames["local"][6 * (seed - 1) : 6 * seed][scan.mask]
        assert torch.allclose(own * prepare(scan).scale, scan.kspace[:, 0][scan.mask], atol=1e-5)
    hearts = open_frames(pseudo_reference_file(settings(frames=6, phantoms=1), tmp_path / "hearts", "global"))
    assert hearts.shape == (6, 64, 64)
    weight = KspaceWeight.fit(open_frames(paths["local"]), 1.0, 0.5)
    data = PseudoReferenceFrames(open_frames(paths["local"]), weight)
    draws = [data.draw(torch.Generator().manual_seed(2)) for _ in range(2)]
    assert draws[0].shape == (1, 2, 64, 64) and torch.equal(*draws)
    many = torch.cat([data.draw(torch.Generator().manual_seed(seed)) for seed in range(256)])
    assert many.std().item() == pytest.approx(0.5, rel=0.15)


def test_training_frames_are_made_once_and_anew_when_what_they_depend_on_changes(image, tmp_path):
    (tmp_path / "scans").mkdir()
    save(tmp_path / "scans" / "a.npy", image)
    run = settings(path=str(tmp_path / "scans"))
    path = pseudo_reference_file(run, tmp_path, "global")
    written = path.stat().st_mtime_ns
    assert pseudo_reference_file(run, tmp_path, "global") == path and path.stat().st_mtime_ns == written
    save(tmp_path / "scans" / "b.npy", image)
    longer = pseudo_reference_file(run, tmp_path, "global")
    assert longer != path and len(open_frames(longer)) == 2 * len(open_frames(path))
    other = replace(run, intake=replace(run.intake, mask=MaskSettings(acceleration=2.0)))
    assert pseudo_reference_file(other, tmp_path, "global") not in (path, longer)


def test_scans_of_two_sizes_cannot_be_mixed(image, tmp_path):
    (tmp_path / "scans").mkdir()
    save(tmp_path / "scans" / "a.npy", image)
    save(tmp_path / "scans" / "b.npy", image[:, :60, :60])
    with pytest.raises(InputError, match="one size"):
        pseudo_reference_file(settings(path=str(tmp_path / "scans")), tmp_path, "local")
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
