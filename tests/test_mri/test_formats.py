"""Scans and masks from every format, and one clear sentence for everything that cannot be used."""

import hashlib

import h5py
import numpy as np
import pytest
import scipy.io
import torch

from mri import formats
from mri.formats import load_mask, save_array
from mri.formats.array_scan import load_maps
from mri.formats.layout import looks_like_kspace as looks_like_kspace_of_coils
from mri.fourier import fft2c
from mri.masks import make_mask
from mri.phantom import make_coil_maps, make_phantom
from tests.test_mri.array_files import SUFFIXES, load_scan, refusal, save_mat73
from utils.errors import InputError


def looks_like_kspace(data: torch.Tensor) -> bool:
    return looks_like_kspace_of_coils(data[:, None])


# ------------------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_saved_is_loaded(tmp_path, image, stored, suffix):
    path = tmp_path / f"scan{suffix}"
    save_array(path, stored)
    scan = load_scan(path)
    assert torch.equal(scan.data, image) and scan.kind == "complex" and "frames along axis 2" in str(scan)
    assert scan.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert scan.path == path and scan.key == ("scan" if suffix == ".npy" else "image")
    for word in (str(path), scan.key, "complex64", "6 frames of 64 x 64", "--frames_axis", "--kind"):
        assert word in str(scan)


def test_matlab73_axes_are_turned_back(tmp_path, image, stored):
    path = tmp_path / "scan.mat"
    save_mat73(path, image=stored.astype(np.complex128), note=np.float64([[1.0]]))
    scan = load_scan(path)
    assert torch.equal(scan.data, image) and "v7.3" in str(scan)
    save_mat73(path, mask=np.ones((64, 64, 6), bool))
    assert load_mask(path).shape == (6, 64, 64)


def test_hdf5_group_and_pairs_keep_their_axes(tmp_path, image):
    path = tmp_path / "scan.h5"
    value = image.numpy().view([("r", "f4"), ("i", "f4")])
    with h5py.File(path, "w") as file:
        file["scan/kspace"] = value
    scan = load_scan(path, kind="image")
    assert scan.key == "scan/kspace" and "frames along axis 0" in str(scan) and torch.equal(scan.data, image)


def test_saving_refuses_and_replaces(tmp_path, stored):
    path = tmp_path / "scan.h5"
    save_array(path, stored[..., :2])
    with pytest.raises(InputError, match="--overwrite"):
        save_array(path, stored)
    save_array(path, torch.from_numpy(stored), overwrite=True)
    assert len(load_scan(path).data) == 6
    for bad in (tmp_path / "scan.txt", path / "below.npy"):
        with pytest.raises(InputError, match=str(bad)):
            save_array(bad, stored)
    assert [entry.name for entry in tmp_path.iterdir()] == ["scan.h5"]


# --------------------------------------------------------------------------------------------- what it is


def test_npy_key_says_the_kind(tmp_path, image):
    path = tmp_path / "scan.npy"
    np.save(path, image.numpy())
    assert load_scan(path, key="kspace", kind="image").kind == "complex"
    np.save(path, fft2c(image).numpy())
    assert load_scan(path, key="kspace").kind == "kspace"
    assert load_scan(path, key="image").kind == "complex"
    refusal(path, "'other'", "scan (6, 64, 64)", "--key", key="other")


def test_real_values_are_a_magnitude(tmp_path, image):
    path = tmp_path / "scan.npz"
    for dtype in (np.float16, np.float32, np.float64, np.dtype(">f8"), np.complex64):
        np.savez(path, data=image.abs().numpy().astype(dtype))
        assert load_scan(path, kind="image").kind == "magnitude"


def test_the_variable_is_found(tmp_path, stored):
    path = tmp_path / "scan.mat"
    scipy.io.savemat(path, {"cine": stored, "mask": np.ones(stored.shape, np.uint8), "tr": 2.5, "who": "me"})
    assert load_scan(path).key == "cine"
    assert load_mask(path).all()
    refusal(path, "'gone'", "cine (64, 64, 6)", "--key", key="gone")
    scipy.io.savemat(path, {"one": stored, "two": stored})
    refusal(path, "several", "one (64, 64, 6)", "two (64, 64, 6)", "--key")
    assert load_scan(path, key="two").key == "two"


@pytest.mark.parametrize(
    ("shape", "named", "axis"),
    [
        ((6, 64, 64), None, 0),
        ((64, 6, 64), None, 1),
        ((64, 32, 6), None, 2),
        ((64, 64, 100), None, 2),
        ((8, 8, 8), 1, 1),
        ((8, 8, 8), -1, 2),
        ((1, 64, 1, 6, 64), None, 3),
        ((1, 64, 6, 64), -2, 2),
    ],
)
def test_the_frames_axis_is_found(tmp_path, shape, named, axis):
    path = tmp_path / "scan.npy"
    array = np.random.default_rng(0).random(shape, np.float32)
    np.save(path, array)
    scan = load_scan(path, frames_axis=named)
    assert f"frames along axis {axis}" in str(scan) and ("--frames_axis" in str(scan)) == (named is None)
    assert torch.equal(scan.data.real, torch.from_numpy(np.moveaxis(array, axis, 0).copy()).squeeze())


def lattice(frames: int, lines: int, acs: int) -> torch.Tensor:
    """(frames, lines, 1): every fourth line, and the `acs` central ones."""
    mask = torch.arange(lines) % 4 == torch.arange(frames)[:, None] % 4
    mask[:, (lines - acs) // 2 : (lines + acs) // 2] = True
    return mask[..., None]


@pytest.mark.parametrize("seed", range(4))
def test_kspace_is_told_from_images(seed):
    image = make_phantom(4, 64, seed)
    kspace = fft2c(image)
    assert not looks_like_kspace(image)
    assert not looks_like_kspace(image * (image.abs() > 0.1))  # background set to zero
    assert looks_like_kspace(kspace)
    assert looks_like_kspace(kspace * lattice(4, 64, 8))
    radius = torch.hypot(*torch.meshgrid(*[torch.arange(64.0) - 32] * 2, indexing="ij"))
    scattered = torch.rand(4, 64, 64, generator=torch.Generator().manual_seed(seed)) < 8 / (radius + 1)
    assert looks_like_kspace(kspace * scattered)
    never_the_centre = (torch.arange(64) % 4 == 2)[None, :, None]
    assert looks_like_kspace(kspace * never_the_centre)


@pytest.mark.parametrize("sampling", ["full", "lattice", "without the centre"])
def test_dc_in_the_corner_is_noticed(tmp_path, image, sampling):
    mask = torch.ones(1, 64, 1, dtype=torch.bool) if sampling == "full" else lattice(6, 64, 0)
    if sampling == "without the centre":
        mask = mask & ((torch.arange(64) - 32).abs() > 1)[:, None]
    kspace = fft2c(image) * mask
    path = tmp_path / "scan.npy"
    np.save(path, kspace.numpy())
    assert load_scan(path).kind == "kspace"
    refusal(path, "centre", "leave out --dc corner", dc="corner")
    np.save(path, torch.fft.ifftshift(kspace, dim=(-2, -1)).numpy())
    refusal(path, "corner", "--dc corner")
    scan = load_scan(path, dc="corner")
    assert scan.kind == "kspace" and torch.equal(scan.data, kspace)
    # of fft2 without any shift the images have their origin in the corner too
    unshifted = torch.fft.fft2(image, norm="ortho") * torch.fft.ifftshift(mask, dim=(-2, -1))
    np.save(path, unshifted.numpy())
    read = load_scan(path, dc="corner").data
    assert torch.allclose(read, kspace, atol=1e-4)
    assert torch.equal(read != 0, mask.expand_as(read))  # the zeros say what was not measured


# -------------------------------------------------------------------------------------------------- coils


@pytest.fixture
def coils(image):
    """k-space of four coils: (frames, coils, ky, kx), under-sampled and full."""
    full = fft2c(image[:, None] * make_coil_maps(4, 64, 64))
    mask = make_mask("uniform", (6, 64, 64), 4, 8)
    return torch.where(mask[:, None], full, 0), full


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (1, 0, 2, 3), (2, 3, 0, 1), (2, 3, 1, 0)])
def test_the_coil_axis_is_found(tmp_path, coils, order, sampled):
    kspace = coils[0 if sampled else 1]
    path = tmp_path / "scan.npy"
    np.save(path, kspace.permute(order).numpy())
    place = order.index(1)
    for options in ({}, {"coils_axis": place}, {"coils_axis": place - 4, "frames_axis": order.index(0)}):
        stored = formats.load_scan(path, key="kspace", **options)
        assert torch.equal(stored.data, kspace)
        assert f"coils along axis {place}" in str(stored) and "6 frames of 4 coils" in str(stored)
        assert ("--coils_axis" in str(stored)) == (not options)


def test_a_coil_axis_that_cannot_be_told(tmp_path, coils):
    path = tmp_path / "scan.npy"
    noise = torch.randn(6, 5, 64, 64, dtype=torch.complex64)
    np.save(path, noise.numpy())
    refusal(path, "--coils_axis", load=formats.load_scan, key="kspace")
    square = coils[0][:, :, :, :4]
    np.save(path, square.numpy())  # as many coils as readout samples
    refusal(path, "--coils_axis", load=formats.load_scan, key="kspace")
    np.save(path, torch.randn(3, 6, 5, 64, 64, dtype=torch.complex64).numpy())
    refusal(path, "not clear", "--frames_axis and --coils_axis", load=formats.load_scan, key="kspace")
    refusal(path, "no axis 7", load=formats.load_scan, key="kspace", frames_axis=7)
    np.save(path, torch.randn(2, 3, 6, 5, 64, 64, dtype=torch.complex64).numpy())
    refusal(path, "6 axes", load=formats.load_scan, key="kspace")


def test_a_dead_coil_does_not_hide_the_coil_axis(tmp_path, coils):
    kspace = coils[0].clone()
    kspace[:, 1] = 0
    np.save(tmp_path / "scan.npy", kspace.numpy())
    assert torch.equal(formats.load_scan(tmp_path / "scan.npy", key="kspace").data, kspace)


def test_a_coil_that_dies_is_not_taken_for_the_readout(tmp_path, coils):
    kspace = coils[0].clone()
    kspace[3:, 1] = 0
    np.save(tmp_path / "scan.npy", kspace.numpy())
    refusal(tmp_path / "scan.npy", "not every coil has the same samples", load=formats.load_scan, key="kspace")
    assert torch.equal(formats.load_scan(tmp_path / "scan.npy", key="kspace", coils_axis=1).data, kspace)


def test_nan_in_one_coil_names_it(tmp_path, coils):
    kspace = coils[0].clone()
    kspace[2, 3, 32, 7] = float("nan")
    np.save(tmp_path / "scan.npy", kspace.numpy())
    refusal(tmp_path / "scan.npy", "all in coil 3", "leave that coil out", load=formats.load_scan, key="kspace")
    kspace = coils[0].clone()
    kspace[:, 1] = float("nan")
    np.save(tmp_path / "scan.npy", kspace.numpy())
    refusal(tmp_path / "scan.npy", "all in coil 1", "leave that coil out", load=formats.load_scan, key="kspace")


def test_what_lies_beside_kspace(tmp_path, coils, image):
    path, noise = tmp_path / "scan.npz", torch.randn(4, 100, dtype=torch.complex64)
    maps = torch.randn(4, 64, 64, dtype=torch.complex64)
    np.savez(path, kspace=coils[0].numpy(), noise=noise.numpy(), image=image.numpy(), maps=maps.numpy())
    stored = formats.load_scan(path)
    assert stored.key == "kspace" and torch.equal(stored.noise, noise) and torch.equal(stored.image, image)
    assert "noise samples" in str(stored) and f"--maps {path}" in str(stored)
    assert torch.equal(load_maps(path, 4)[0], maps)
    np.savez(path, kspace=coils[0].numpy(), noise=noise.T.numpy(), image=image[:, :63].numpy())
    stored = formats.load_scan(path)
    assert torch.equal(stored.noise, noise) and "axes exchanged" in str(stored)
    assert stored.image is None and "'image' (6, 63, 64) is not used as the reference" in str(stored)
    np.savez(path, kspace=coils[0].numpy(), noise=noise[:3].numpy())
    refusal(path, "'noise' (3, 100)", "4 coils", load=formats.load_scan)
    np.save(tmp_path / "maps.npy", maps.permute(1, 2, 0).numpy())
    turned, found = load_maps(tmp_path / "maps.npy", 4)
    assert torch.equal(turned, maps) and "last axis" in found
    for broken, words in ((maps[0], "coil maps are"), (maps * float("nan"), "NaN")):
        np.save(tmp_path / "maps.npy", broken.numpy())
        with pytest.raises(InputError, match=words):
            load_maps(tmp_path / "maps.npy", 4)


def test_development_coils(shared_file):
    stored = formats.load_scan(shared_file("data/coils/giraf_6coil_kspace.npz"))
    assert stored.data.shape == (12, 6, 112, 96) and stored.kind == "kspace"


# -------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("one", [True, 1, 1.0, 255])
def test_mask_values(tmp_path, one):
    path = tmp_path / "mask.npz"
    lines = lattice(6, 64, 8).expand(6, 64, 64).permute(1, 2, 0).numpy()
    np.savez(path, mask=lines * np.asarray(one))
    mask = load_mask(path)
    assert mask.dtype == torch.bool and torch.equal(mask, lattice(6, 64, 8).expand(6, 64, 64))


def test_mask_shapes(tmp_path):
    path = tmp_path / "mask.npy"
    for shape, axis, result in [
        ((6, 64), None, (6, 64)),
        ((64, 6), None, (64, 6)),
        ((64, 64), None, (64, 64)),
        ((64, 48), None, (64, 48)),
        ((64, 48), 1, (48, 64)),
        ((64, 64, 1), None, (64, 64)),
        ((8, 10, 8), 2, (8, 8, 10)),
    ]:
        np.save(path, np.ones(shape, np.uint8))
        assert load_mask(path, frames_axis=axis).shape == result
    np.save(path, np.ones((8, 8, 8)))
    refusal(path, "--frames_axis", load=load_mask)
    np.save(path, np.ones(8))
    refusal(path, "(8,)", load=load_mask)


@pytest.mark.parametrize("values", [(0, 2), (0, 0.5, 1), (0, 1, 255), (-1, 1), (0, np.nan), (0, 1j)])
def test_mask_of_other_values(tmp_path, values):
    path = tmp_path / "mask.npy"
    np.save(path, np.resize(np.array(values), (6, 64)))
    refusal(path, "other than 0 and 1", load=load_mask)


def test_mask_with_an_empty_frame(tmp_path):
    path = tmp_path / "mask.mat"
    lines = np.ones((6, 64, 64), np.uint8)
    lines[4] = 0
    scipy.io.savemat(path, {"mask": lines})
    refusal(path, "frame 4", load=load_mask)
    scipy.io.savemat(path, {"mask": 0 * lines[0]})
    refusal(path, "no sample at all", load=load_mask)


# -------------------------------------------------------------------------------------------- development


@pytest.mark.parametrize(
    ("name", "shape"), [("rat_cine_192x192x8", (8, 192, 192)), ("pincat_128x128x50", (50, 128, 128))]
)
def test_development_scans(name, shape, shared_file):
    scan = load_scan(shared_file(f"data/{name}.mat"))
    assert scan.data.shape == shape and scan.kind == "magnitude" and "--kind" not in str(scan)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("tis_uniform_acs16_r3p56", 1 / 3.56),
        ("tis_uniform_acs16_r5p42", 1 / 5.42),
        ("random_acs16_r5p42", 1 / 5.49),
        ("lattice_r4", 1 / 4),
        ("lattice_r8", 1 / 8),
        ("acs20", 20 / 192),
        ("radial10", 0.106),
    ],
)
def test_development_masks(name, share, shared_file):
    mask = load_mask(shared_file(f"data/mask_{name}.mat"))
    assert mask.shape == (16, 192, 192)
    assert mask.float().mean().item() == pytest.approx(share, rel=0.01)


@pytest.mark.parametrize("axis", (0, 1, 2))
@pytest.mark.parametrize("acs", (0, 8))
def test_time_of_kspace_is_found_where_it_is_not_the_shortest_axis(axis, acs, tmp_path):
    image = make_phantom(40, 64, 3)[:, :, 16:48].to(torch.complex64)
    mask = make_mask("uniform", tuple(image.shape), 4, acs)
    kspace = torch.where(mask, fft2c(image), 0)
    if not acs:  # frames without their centre have less energy: where that is not clear, the shortest axis is taken
        kspace = fft2c(image)
    np.save(tmp_path / "scan.npy", np.moveaxis(kspace.numpy(), 0, axis))
    stored = formats.load_scan(tmp_path / "scan.npy", "kspace")
    assert torch.equal(stored.data[:, 0], kspace) and f"frames along axis {axis}" in str(stored)
