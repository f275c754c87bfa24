"""NIfTI files, written with nibabel."""

import gzip
import struct

import numpy as np
import pytest
import torch

from mri.formats import load_scan
from mri.formats.stored import SeveralSlices
from mri.intake import scan_from_file
from mri.intake_settings import DataSettings, Intake
from mri.phantom import make_phantom
from tests.refusals import refusal

nibabel = pytest.importorskip("nibabel")
AFFINE = np.array([[0.0, -1.5, 0, 10], [2.0, 0, 0, -20], [0, 0, 8, 30], [0, 0, 0, 1]])  # rotated, voxels not square


@pytest.fixture(scope="module")
def image():
    """(frames, height, width) = (5, 64, 48), no symmetry"""
    return make_phantom(5, 64, 3)[..., 4:52].abs()


def save(path, array, affine=AFFINE, kind=None, **header):
    """`array` (frames, slices, rows, columns)."""
    image = (kind or nibabel.Nifti1Image)(np.asarray(array).transpose(3, 2, 1, 0), affine)
    image.header.set_xyzt_units("mm", header.pop("unit", "sec"))
    image.header["pixdim"][4] = header.pop("step", 0.04)
    nibabel.save(image, path)
    return path


def change(path, offset, form, value):
    """A field of a header that nibabel would not write."""
    content = bytearray(gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes())
    struct.pack_into("<" + form, content, offset, value)
    if path.name.endswith(".gz"):
        with gzip.open(path, "wb") as file:
            file.write(bytes(content))
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_images_geometry_and_time(tmp_path, image, name, kind):
    path = save(tmp_path / name, image[:, None], kind=kind)
    stored = load_scan(path)
    assert torch.equal(stored.data.real[:, 0], image) and stored.kind == "magnitude" and "NIfTI" in str(stored)
    assert stored.geometry.voxel_mm == (1.5, 2.0, 8.0) and stored.geometry.frame_time_ms == pytest.approx(40)
    assert np.allclose(stored.geometry.affine()[:, [0, 1, 3]], AFFINE[:, [0, 1, 3]])
    scan, _ = scan_from_file(Intake(), path)
    assert scan.name == "scan" and scan.geometry == stored.geometry


def test_the_content_decides_and_not_the_suffix(tmp_path, image):
    path = save(tmp_path / "scan.nii.gz", image[:, None])
    path.rename(tmp_path / "scan.mat")
    assert torch.equal(load_scan(tmp_path / "scan.mat").data.real[:, 0], image)


@pytest.mark.parametrize(("unit", "step", "expected"), [("msec", 40, 40), ("usec", 40000, 40), ("unknown", 1, None)])
def test_units_of_time(tmp_path, image, unit, step, expected):
    path = save(tmp_path / "scan.nii", image[:, None], unit=unit, step=step)
    assert load_scan(path).geometry.frame_time_ms == expected
    assert "no unit of time" not in str(load_scan(path))


def test_a_time_step_without_a_unit_is_said(tmp_path, image):
    stored = load_scan(save(tmp_path / "scan.nii", image[:, None], unit="unknown", step=0.04))
    assert stored.geometry.frame_time_ms is None
    assert "the time step, 0.04, has no unit of time in the header" in str(stored)


def test_integers_are_scaled(tmp_path, image):
    values = (image * 1000).numpy().astype(np.int16)[:, None]
    path = save(tmp_path / "scan.nii", values)
    assert torch.equal(load_scan(path).data.real, torch.from_numpy(values.astype(np.float32)))
    change(path, 112, "f", 0.5)
    change(path, 116, "f", 3.0)
    assert torch.equal(load_scan(path).data.real, torch.from_numpy(values * np.float32(0.5) + np.float32(3)))
    change(path, 112, "f", 0.0)
    stored = load_scan(path)
    assert torch.equal(stored.data.real, torch.from_numpy(values.astype(np.float32)))
    assert "scaling slope is 0, so its values are taken as they are" in str(stored)
    change(path, 112, "f", float("inf"))
    refusal(path, "scaling slope inf")
    change(path, 112, "f", 2.0)
    change(path, 116, "f", float("nan"))
    refusal(path, "intercept nan")


def test_slices_and_time(tmp_path, image):
    path = save(tmp_path / "scan.nii", torch.stack([image, 2 * image], 1))
    with pytest.raises(SeveralSlices):
        load_scan(path)
    stored = load_scan(path, slice=1)
    assert torch.equal(stored.data.real[:, 0], 2 * image)
    assert np.allclose(stored.geometry.affine()[:3, 3], AFFINE[:3, 3] + AFFINE[:3, 2])
    path = save(tmp_path / "volume.nii", image[None])  # (x, y, z): no time
    refusal(path, "--time slice")
    assert torch.equal(load_scan(path, time="slice").data.real[:, 0], image)


def test_size_keeps_the_field_of_view(tmp_path, image):
    path = save(tmp_path / "scan.nii", image[:, None])
    scan, _ = scan_from_file(Intake(DataSettings(size=32)), path)
    assert scan.geometry.voxel_mm == (3.0, 3.0, 8.0)
    before, after = AFFINE @ [24, 32, 0, 1], scan.geometry.affine() @ [16, 16, 0, 1]
    assert np.allclose(before, after)  # the centre stays


def test_files_that_are_refused(tmp_path, image):
    path = save(tmp_path / "scan.nii", image[:, None])
    refusal(path, "--kind kspace", kind="kspace")
    refusal(path, "--frames_axis", frames_axis=0)
    broken = image.clone()
    broken[2, 3, 4] = float("nan")
    refusal(save(tmp_path / "nan.nii", broken[:, None]), "1 value that is NaN")
    for name in ("cut.nii", "cut.nii.gz"):
        path = save(tmp_path / name, image[:, None])
        whole = path.read_bytes()
        for share in (0.1, 0.5, 0.95):
            path.write_bytes(whole[: int(share * len(whole))])
            refusal(path, "damaged")
        path.write_bytes(b"")
        refusal(path, "empty")


def test_a_header_of_20_gigabytes(tmp_path, image, monkeypatch):
    path = save(tmp_path / "scan.nii", image[:, None])
    for place, length in enumerate((4, 512, 512, 12, 800)):
        change(path, 40 + 2 * place, "h", length)
    monkeypatch.setattr("mri.formats.limits.available_bytes", lambda: 2**31)
    refusal(path, "memory", slice=3)
    refusal(path, "12 slices")


def test_development_file(shared_file):
    stored = load_scan(shared_file("data/coils/giraf_6coil_magnitude.nii.gz"))
    with np.load(shared_file("data/coils/giraf_6coil_truth.npz")) as file:
        assert np.allclose(stored.data.real[:, 0].numpy(), 1000 * np.abs(file["image"]), atol=2)
    assert stored.geometry.voxel_mm == (3, 3, 8) and stored.geometry.frame_time_ms is None
