"""Checks of a scan: each is said of what is wrong, and silent on what is right."""

import numpy as np
import pytest
import scipy.interpolate
import scipy.io
import torch

from mri.checks import image_remarks, measured_block, scan_remarks
from mri.filled_lines import filled_lines, refuse_filled_lines
from mri.formats import load_scan
from mri.fourier import fft2c
from mri.intake import scan_from_file
from mri.intake_settings import DataSettings, Intake, MaskSettings
from mri.masks import make_mask
from mri.phantom import make_coil_maps, make_phantom
from mri.phantom.scan import simulate_scan
from mri.scan import Scan
from mri.scenes import make_scene
from reconstruction.prepare import prepare
from utils.errors import InputError

SHAPE = (8, 64, 64)


@pytest.fixture(scope="module")
def image():
    return make_phantom(*SHAPE[:2], 3).to(torch.complex64)


def good_images():
    yield "phantom", make_phantom(8, 64, 5)
    yield "heart", simulate_scan("heart", 8, 64, 2, 1, 0.01).image
    for seed in range(12):
        scene, _ = make_scene(8, 64, 64, seed)
        yield f"scene {seed}", scene


def test_silent_on_good_scans():
    for name, image in good_images():
        assert_silent(name, image)


@pytest.mark.parametrize("name", ("giraf_cine_192x156x25.mat", "rat_cine_192x192x8.mat", "pincat_128x128x50.mat"))
def test_silent_on_real_scans(name, shared_file):
    image = scipy.io.loadmat(shared_file(f"data/{name}"))["image"]
    assert_silent(name, torch.from_numpy(np.moveaxis(image, -1, 0).astype(np.float32)))


def assert_silent(name, image):
    remarks = [text for text in image_remarks(image, name) if text.startswith("warning")]
    if name == "pincat_128x128x50.mat":  # it holds copies
        remarks = [text for text in remarks if "identical" not in text]
    assert not remarks, (name, remarks)
    kspace = fft2c(image.to(torch.complex64))[:, None]
    refuse_filled_lines(kspace, name)
    for pattern in ("uniform", "radial"):
        mask = make_mask(pattern, tuple(image.shape), 4, 8 if pattern == "uniform" else 0)
        scan = Scan.from_arrays(kspace, mask)
        assert measured_block(scan.mask) is None
        remarks = [text for text in scan.check() if text.startswith("warning")]
        assert not remarks, (name, pattern, remarks)


def test_hot_voxel(image):
    image = image.abs()
    image[5, 40, 20] = 33 * image.max()
    (text,) = image_remarks(image, "scan.npy")
    assert "frame 5, row 40, column 20" in text and text.startswith("warning")


def test_negative_magnitudes(image):
    kspace = fft2c(image)
    with pytest.raises(InputError, match=r"scan\.npy has negative values"):
        image_remarks(kspace.real, "scan.npy")
    slight = image.abs() - 0.001 * image.abs().max()
    assert any("small negative" in text for text in image_remarks(slight, "scan.npy"))


def test_clipped_integers(image):
    levels = (image.abs() * 400).round().clamp(max=255)
    assert any("clipped" in text for text in image_remarks(levels, "scan.npy"))
    assert not any("clipped" in text for text in image_remarks((image.abs() * 255).round(), "scan.npy"))


def test_object_across_the_edges(image):
    rolled = torch.roll(image, (32, 32), dims=(1, 2))
    assert any("around the edges" in text for text in image_remarks(rolled, "scan.npy"))


def test_identical_frames(image):
    image = image.clone()
    image[4] = image[3]
    assert image_remarks(image, "x") == ["warning: frames 3 and 4 (counting from 0) are identical; one may be a copy"]
    still = image[:1].expand(8, -1, -1)
    assert image_remarks(still, "x") == ["warning: all frames are identical; there is no motion to reconstruct"]


def test_bright_frame(image):
    mask = make_mask("uniform", SHAPE, 4, 8)
    kspace = fft2c(image)
    kspace[5] *= 10
    texts = Scan.from_arrays(kspace, mask).check()
    assert any("from frame 4 to frame 5 (counting" in text for text in texts)


@pytest.mark.parametrize("axis", (1, 2))
@pytest.mark.parametrize("kind", ("copied", "interpolated"))
def test_lines_that_were_filled_in(image, axis, kind):
    mask = make_mask("uniform", SHAPE, 4, 8)[:, :, :1]
    kspace = fft2c(image)
    if kind == "copied":
        filled = kspace.clone()
        for frame in range(1, 8):  # each line as it was measured last
            filled[frame] = torch.where(mask[frame], kspace[frame], filled[frame - 1])
    else:
        filled = kspace.clone()
        for frame in range(1, 7, 2):
            between = (kspace[frame - 1] + kspace[frame + 1]) / 2
            filled[frame] = torch.where(mask[frame], kspace[frame], between)
    filled = filled if axis == 1 else filled.mT
    with pytest.raises(InputError, match="filled in after the measurement"):
        refuse_filled_lines(filled[:, None], "scan.npy")
    refuse_filled_lines((kspace if axis == 1 else kspace.mT)[:, None], "scan.npy")


def test_a_block_of_measured_samples(image):
    padded = torch.nn.functional.pad(fft2c(image), (16, 16, 8, 8))
    assert measured_block(padded != 0) == (slice(8, 72), slice(16, 80))
    partial = fft2c(image).clone()
    partial[:, :20] = 0  # partial Fourier: one side only
    assert measured_block(partial != 0) is None
    odd = torch.from_numpy(np.pad(np.ones((2, 5, 8), bool), ((0, 0), (5, 5), (4, 4))))
    assert measured_block(odd) == (slice(4, 10), slice(4, 12))
    assert measured_block(odd[..., 4:12]) is None  # lines that no frame has are a matter of the sampling


def test_kspace_that_is_transformed_along_one_axis_alone(image):
    mask = make_mask("uniform", SHAPE, 4, 8)
    hybrid = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(fft2c(image), dim=-1), norm="ortho"), dim=-1)
    texts = Scan.from_arrays(hybrid, mask).check()
    assert any("has no peak along kx" in text and "hybrid space" in text for text in texts)


@pytest.mark.parametrize("missing", ["rows", "columns"])
def test_a_centre_that_no_frame_has_is_warned_of(image, missing):
    mask = make_mask("uniform", SHAPE, 4, 8).clone()
    mask[(..., slice(30, 34), slice(None)) if missing == "rows" else (..., slice(32, None))] = False
    texts = Scan.from_arrays(fft2c(image), mask).check()
    assert any("the centre of k-space (row 32, column 32) is sampled in no frame" in text for text in texts)
    assert not any("partial Fourier" in text for text in texts)


def test_noise_is_not_called_hybrid_space():
    noise = torch.randn(*SHAPE, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    notes = prepare(Scan.from_arrays(noise, make_mask("uniform", SHAPE, 4, 8))).notes
    assert not any("hybrid" in text or "linear phase" in text for text in notes)
    assert any("peak SNR is below" in text for text in notes)


def test_rounding_is_not_called_noise():
    """A still frame, seen eight times: its estimate is what single precision leaves."""
    kspace = fft2c(make_phantom(2, 64, 3)[:1]).repeat(8, 1, 1)
    kspace[1:] *= 1 + 1e-7 * torch.randn(7, 64, 64, generator=torch.Generator().manual_seed(0))
    notes = prepare(Scan.from_arrays(kspace, make_mask("uniform", SHAPE, 2, 8))).notes
    assert "noise: none" in notes


def test_integers_that_wrapped_around():
    magnitude = make_phantom(*SHAPE[:2], 3).abs()
    for top in (255, 65535):
        full = (magnitude / magnitude.max() * top).round()
        assert not any("wrapped" in text for text in image_remarks(full, "scan.npy"))
        assert any("wrapped around" in text for text in image_remarks((1.6 * full).round() % (top + 1), "scan.npy"))


def test_kspace_of_alternating_sign_has_its_object_at_the_edges(image):
    sign = (-1.0) ** (torch.arange(64)[:, None] + torch.arange(64))
    scan = Scan.from_arrays(sign * fft2c(image), make_mask("uniform", SHAPE, 4, 8))
    assert any("around the edges" in text for text in prepare(scan).notes)
    scan = Scan.from_arrays(fft2c(image), make_mask("uniform", SHAPE, 4, 8))
    assert not any("around the edges" in text for text in prepare(scan).notes)


def test_a_noisy_coil_is_named(image):
    maps = make_coil_maps(4, 64, 64)
    generator = torch.Generator().manual_seed(0)
    noise = torch.view_as_complex(torch.randn(8, 4, 64, 64, 2, generator=generator))
    level = torch.tensor([0.003, 0.003, 0.1, 0.003])[:, None, None]
    scan = Scan.from_arrays(fft2c(image[:, None] * maps) + level * noise, make_mask("uniform", SHAPE, 4, 8))
    found = [text for text in prepare(scan).notes if "times the noise of the others" in text]
    assert len(found) == 1 and found[0].startswith("warning: coil 2 ")


def test_a_phantom_at_rest_is_accepted_if_its_mask_is_named(image, tmp_path):
    """Without noise its frames are alike at the lines that they share."""
    mask = make_mask("uniform", tuple(image.shape), 2, 16)
    still = torch.where(mask, fft2c(image[:1].expand_as(image)), 0)
    np.save(tmp_path / "scan.npy", still.numpy())
    np.save(tmp_path / "mask.npy", mask.numpy())
    data = DataSettings(kind="kspace")
    with pytest.raises(InputError, match="equal those of the frame before"):
        scan_from_file(Intake(data=data), tmp_path / "scan.npy")
    named = Intake(data=data, mask=MaskSettings(path=str(tmp_path / "mask.npy")))
    scan, _ = scan_from_file(named, tmp_path / "scan.npy")
    assert torch.equal(scan.mask, mask) and "accepted" in str(scan) and torch.equal(scan.kspace[:, 0], still)
    moving = torch.where(mask, fft2c(image), 0)
    shared = torch.where(mask, moving, moving.roll(1, 0))  # by neighbouring frames, and by neighbouring lines
    beside = torch.where(mask, moving, moving.roll(1, 1))
    for filled, where in ((shared, torch.ones_like(mask)), (shared, mask | mask.roll(1, 0)), (beside, mask.any(0))):
        np.save(tmp_path / "scan.npy", filled.numpy())
        np.save(tmp_path / "mask.npy", where.numpy())
        with pytest.raises(InputError, match="filled in after the measurement"):
            scan_from_file(named, tmp_path / "scan.npy")


def test_lines_copied_within_a_frame(image):
    kspace = fft2c(image)[:, None].clone()
    kspace[:, :, 1::2] = kspace[:, :, ::2]
    with pytest.raises(InputError, match="equal the line beside them"):
        refuse_filled_lines(kspace, "scan.npy")


def interpolated(kspace, step, kind, acs=8):
    """K-space whose lines are all made from every `step`-th one, but for the central ones."""
    height = kspace.shape[1]
    measured = np.arange(0, height, step)
    fill = scipy.interpolate.interp1d(measured, kspace.numpy()[:, measured], kind, axis=1, fill_value="extrapolate")
    filled = fill(np.arange(height)).astype(np.complex64)
    kept = np.abs(np.arange(height) - height // 2) < acs // 2
    return torch.where(torch.from_numpy(kept)[:, None], kspace, torch.from_numpy(filled))


@pytest.mark.parametrize("axis", (1, 2))
@pytest.mark.parametrize(("step", "kind"), ((2, "linear"), (4, "linear"), (8, "linear")))
def test_lines_interpolated_within_a_frame(image, axis, step, kind):
    filled = interpolated(fft2c(image), step, kind)[:, None]
    how = filled_lines(filled if axis == 1 else filled.mT)
    assert ("lines" if axis == 1 else "columns") + " are interpolated" in how


def test_lines_interpolated_from_four(image):
    kspace = fft2c(image)[:, None].clone()
    odd = torch.arange(3, 61, 2)
    weights = ((-3, -1 / 16), (-1, 9 / 16), (1, 9 / 16), (3, -1 / 16))
    kspace[:, :, odd] = sum(weight * kspace[:, :, odd + place] for place, weight in weights)
    assert "are interpolated" in filled_lines(kspace)


def test_filled_lines_are_named_where_they_hide_the_axes(shared_file, tmp_path):
    with np.load(shared_file("data/coils/giraf_6coil_kspace.npz")) as file:
        kspace = file["kspace"]
    height = kspace.shape[2]
    for one in kspace:
        lines = np.flatnonzero(one.any(axis=(0, 2)))
        fill = scipy.interpolate.interp1d(lines, one[:, lines], axis=1, fill_value="extrapolate")
        one[:] = fill(np.arange(height))
    np.save(tmp_path / "scan.npy", kspace)
    with pytest.raises(InputError, match="interpolated .* filled in after the measurement"):
        load_scan(tmp_path / "scan.npy", "kspace")


def test_simple_objects_and_padded_ones_are_not_interpolated(image):
    box = torch.zeros(SHAPE, dtype=torch.complex64)
    box[:, 20:41, 13:30] = 1  # every line of its k-space is a multiple of the next
    assert not filled_lines(fft2c(box)[:, None])
    assert not filled_lines(fft2c(torch.nn.functional.pad(image, (96, 96, 96, 96)))[:, None])


def test_frames_that_repeat_are_not_called_clipped(image):
    mask = make_mask("uniform", (24, *image.shape[1:]), 4, 8)
    scan = Scan.from_arrays(fft2c(image[:1].expand(24, -1, -1).to(torch.complex64)), mask, noise_std=0.0)
    assert not any("clipped" in text for text in scan_remarks(scan))


@pytest.mark.parametrize("shape", [(8, 8), (13, 15), (16, 40), (40, 16), (23, 23)])
def test_small_kspace_is_looked_at_without_harm(shape):
    generator = torch.Generator().manual_seed(0)
    kspace = torch.randn(6, 1, *shape, dtype=torch.complex64, generator=generator)
    assert filled_lines(kspace) == ""


def test_readouts_padded_with_zeros_are_cropped_along_them(image):
    mask = make_mask("uniform", SHAPE, 4, 8)
    kspace = torch.where(mask, fft2c(image), 0)
    padded = torch.nn.functional.pad(kspace, (16, 16))
    assert measured_block(padded != 0) == (slice(0, 64), slice(16, 80))
    assert measured_block((padded != 0).mT) == (slice(16, 80), slice(0, 64))


def test_lines_that_the_mask_calls_sampled_and_are_zero(image):
    mask = make_mask("uniform", SHAPE, 4, 8)
    kspace = torch.where(mask, fft2c(image), 0)
    said = Scan.from_arrays(kspace, torch.ones_like(mask)).check()
    assert any("lines that the mask marks as sampled are zero" in text for text in said)
    assert not any("marks as sampled" in text for text in Scan.from_arrays(kspace, mask).check())


def test_arrays_of_any_memory_layout(image):
    mask = make_mask("uniform", SHAPE, 4, 8)
    kspace = torch.where(mask, fft2c(image), 0)
    expected = Scan.from_arrays(kspace, mask).kspace
    for array in (kspace.numpy().astype(">c8"), kspace.numpy()[::-1].copy()[::-1], kspace.clone().requires_grad_()):
        assert torch.equal(Scan.from_arrays(array, mask.numpy(), noise_std=torch.tensor(0.1)).kspace, expected)
    with pytest.raises(InputError, match="give a number"):
        Scan.from_arrays(kspace, mask, noise_std="low")
    with pytest.raises(InputError, match="real-valued, but noise is complex"):
        Scan.from_arrays(kspace, mask, noise_samples=np.ones((1, 100)))
