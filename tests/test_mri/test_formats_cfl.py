"""BART's files."""

import numpy as np
import pytest
import torch

from mri.formats import load_scan, sha256
from mri.formats.stored import SeveralSlices
from mri.fourier import fft2c
from mri.masks import make_mask
from mri.phantom import make_coil_maps, make_phantom
from utils.errors import InputError


@pytest.fixture(scope="module")
def kspace():
    """(frames, coils, ky, kx), under-sampled"""
    mask = make_mask("uniform", (5, 64, 64), 4, 8)[:, None, :, :48]
    return torch.where(mask, fft2c(make_phantom(5, 64, 3)[:, None] * make_coil_maps(3, 64, 64))[..., 8:56], 0)


def save(base, array, dims):
    """`array` with one axis for each entry of `dims`, the places of its axes among the 16."""
    shape = [1] * 16
    for length, place in zip(array.shape, dims, strict=True):
        shape[place] = length
    order = np.argsort(dims)
    np.asarray(array).transpose(order).astype(np.complex64).ravel(order="F").tofile(f"{base}.cfl")
    with open(f"{base}.hdr", "w") as file:
        file.write("# Dimensions\n" + " ".join(map(str, shape)) + "\n# Creator\nBART v0.9.00\n")
    return base


def refusal(path, *words, **options):
    with pytest.raises(InputError) as caught:
        load_scan(path, **options)
    assert str(path.with_suffix("")) in str(caught.value) and "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize("name", ["scan", "scan.cfl", "scan.hdr"])
def test_kspace_by_any_of_its_names(tmp_path, kspace, name):
    save(tmp_path / "scan", kspace, (10, 3, 1, 0))
    stored = load_scan(tmp_path / name)
    assert torch.equal(stored.data, kspace) and stored.kind == "kspace" and stored.path == tmp_path / "scan.cfl"
    assert sha256(tmp_path / name) == stored.sha256


def test_a_name_with_a_dot(tmp_path, kspace):
    save(tmp_path / "scan.v2", kspace, (10, 3, 1, 0))
    assert torch.equal(load_scan(tmp_path / "scan.v2").data, kspace)


def test_images_and_combined_kspace(tmp_path, kspace):
    image = make_phantom(5, 64, 3)
    assert load_scan(save(tmp_path / "image", image, (10, 1, 0))).kind == "complex"
    assert load_scan(save(tmp_path / "kspace", fft2c(image), (10, 1, 0))).kind == "kspace"
    assert load_scan(save(tmp_path / "named", fft2c(image), (10, 1, 0)), kind="image").kind == "complex"


def test_slices_and_other_times(tmp_path, kspace):
    base = save(tmp_path / "slices", torch.stack([kspace, 2 * kspace]), (13, 10, 3, 1, 0))
    with pytest.raises(SeveralSlices):
        load_scan(base)
    assert torch.equal(load_scan(base, slice=1).data, 2 * kspace)
    base = save(tmp_path / "echoes", kspace, (5, 3, 1, 0))
    refusal(base, "--time contrast")
    assert torch.equal(load_scan(base, time="contrast").data, kspace)
    refusal(save(tmp_path / "volume", torch.stack([kspace, kspace]), (2, 10, 3, 1, 0)), "second phase encoding")
    refusal(save(tmp_path / "still", kspace[0], (3, 1, 0)), "1 frame")


def test_readout_in_dimension_1(tmp_path, kspace):
    """As BART's radial tools have it; a Cartesian scan is taken, spokes are not."""
    stored = load_scan(save(tmp_path / "scan", kspace, (10, 3, 2, 1)))
    assert torch.equal(stored.data, kspace) and "readout 1, phase encoding 2" in str(stored)
    image = make_phantom(5, 64, 3)
    assert load_scan(save(tmp_path / "image", image, (10, 2, 1))).kind == "complex"
    base = save(tmp_path / "slices", torch.stack([kspace, 2 * kspace]), (13, 10, 3, 2, 1))
    assert torch.equal(load_scan(base, slice=1).data, 2 * kspace)
    angles = torch.pi * torch.arange(40) / 40
    along = torch.arange(-32, 32)
    x, y = ((along * part[:, None]).round().long() + 32 for part in (angles.cos(), angles.sin()))
    full = fft2c(image[:, None] * make_coil_maps(3, 64, 64))
    spokes = full[:, :, y.clamp(0, 63), x.clamp(0, 63)]
    refusal(save(tmp_path / "radial", spokes, (10, 3, 2, 1)), "spokes of a radial scan", "bart nufft")


def test_files_that_are_refused(tmp_path, kspace):
    base = save(tmp_path / "scan", kspace, (10, 3, 1, 0))
    refusal(base, "--frames_axis", frames_axis=0)
    data, header = tmp_path / "scan.cfl", tmp_path / "scan.hdr"
    whole = data.read_bytes()
    data.write_bytes(whole[:-8])
    refusal(data, "cut short")
    data.write_bytes(whole)
    header.write_text("# Dimensions\n4 -3\n")
    refusal(data, "not a BART header")
    header.unlink()
    refusal(data, "is missing")
    refusal(base, "does not exist")


def test_a_header_of_20_gigabytes(tmp_path, monkeypatch):
    data, header = tmp_path / "scan.cfl", tmp_path / "scan.hdr"
    header.write_text("# Dimensions\n512 512 1 12 1 1 1 1 1 1 800\n")
    with data.open("wb") as file:
        file.truncate(8 * 512 * 512 * 12 * 800)  # sparse: nothing is stored
    monkeypatch.setattr("mri.formats.limits.available_bytes", lambda: 2**34)
    refusal(data, "18.8 GiB", "memory")


def test_development_file(shared_file):
    stored = load_scan(shared_file("data/coils/giraf_6coil_bart.cfl"))
    with np.load(shared_file("data/coils/giraf_6coil_kspace.npz")) as file:
        assert np.array_equal(stored.data.numpy(), file["kspace"])
