"""Files that cannot be used, or only so: integers, odd sizes, pairs; damaged, huge, linked, changing ones."""

import io
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch

from mri.formats import load_mask, save_array
from mri.formats.layout import looks_like_kspace as looks_like_kspace_of_coils
from mri.fourier import fft2c
from mri.phantom import make_phantom
from tests.test_mri.array_files import SUFFIXES, load_scan, refusal, save_mat73
from utils.errors import InputError


def looks_like_kspace(data: torch.Tensor) -> bool:
    return looks_like_kspace_of_coils(data[:, None])


def test_no_such_file_folder_suffix_or_option(tmp_path, stored):
    refusal(tmp_path / "none.mat", "does not exist")
    refusal(tmp_path, "folder")
    (tmp_path / "scan.dcm").write_bytes(b"1")
    refusal(tmp_path / "scan.dcm", "unsupported format", ".mat", ".h5")
    path = tmp_path / "scan.npy"
    np.save(path, stored)
    for options in ({"kind": "real"}, {"dc": "left"}):
        with pytest.raises(InputError, match="unknown"):
            load_scan(path, **options)
    refusal(path, "--dc corner", kind="image", dc="corner")
    refusal(path, "no axis 3", frames_axis=3)
    refusal(path, "no axis 5", coils_axis=5)
    refusal(path, "--slice does not apply", "--frames_axis", slice=0)


@pytest.mark.parametrize("load", [load_scan, load_mask])
@pytest.mark.parametrize("suffix", [*SUFFIXES, "v7.3"])
def test_damaged_files(tmp_path, stored, suffix, load):
    path = tmp_path / ("scan.mat" if suffix == "v7.3" else f"scan{suffix}")
    if suffix == "v7.3":
        save_mat73(path, image=stored)
    else:
        save_array(path, stored)
    whole = path.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        refusal(path, "damaged", load=load)
    path.write_bytes(b"this is not a scan, it only has the name of one; " * 20)
    refusal(path, "damaged", load=load)
    path.write_bytes(b"")
    refusal(path, "empty", load=load)


class Touching:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_python_objects_are_not_unpickled(tmp_path):
    """A file whose objects would run code is refused, and the code is not run."""
    stream = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": (2,)}
    np.lib.format.write_array_header_1_0(stream, header)
    stream.write(pickle.dumps(Touching(tmp_path / "ran")))
    (tmp_path / "scan.npy").write_bytes(stream.getvalue())
    with zipfile.ZipFile(tmp_path / "scan.npz", "w") as archive:
        archive.writestr("image.npy", stream.getvalue())
    for name in ("scan.npy", "scan.npz"):
        refusal(tmp_path / name, "Python objects")
    assert not (tmp_path / "ran").exists()


def test_a_file_without_numbers(tmp_path):
    scipy.io.savemat(tmp_path / "scan.mat", {"who": "me", "cells": np.array(["a", 1.0], object)})
    refusal(tmp_path / "scan.mat", "no numeric array")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: np.where(np.arange(6) == 1, np.nan, x), ("4096 values", "NaN")),
        (lambda x: np.where(x == x.max(), np.inf, x), ("1 value that is", "infinite")),
        (lambda x: x.astype(np.float64) * 1e300, ("infinite",)),
        (lambda x: x > 0.5, ("bool", "float32")),
        (lambda x: x[..., 0], ("1 frame",)),
        (lambda x: x[..., :1], ("1 frame",)),
        (lambda x: 0 * x, ("zero everywhere",)),
        (lambda x: np.stack([x, x]), ("4 axes", "--kind kspace")),
        (lambda x: x[:6, :6], ("axes of equal length (6, 6, 6)", "--frames_axis")),
    ],
)
def test_values_that_are_no_scan(tmp_path, image, change, words):
    path = tmp_path / "scan.npy"
    np.save(path, change(image.abs().permute(1, 2, 0).numpy()))
    refusal(path, *words)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32])
def test_integers_are_images(tmp_path, image, dtype):
    values = (100 * image.abs()).numpy().astype(dtype)
    np.save(tmp_path / "scan.npy", values)
    scan = load_scan(tmp_path / "scan.npy")
    assert scan.kind == "magnitude" and torch.equal(scan.data.real, torch.from_numpy(values.astype(np.float32)))


def test_odd_sizes_are_taken_as_they_are(tmp_path, image):
    np.save(tmp_path / "scan.npy", image[:, :63, :61].numpy())
    assert torch.equal(load_scan(tmp_path / "scan.npy").data, image[:, :63, :61])


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_real_and_imaginary_parts_along_an_axis(tmp_path, image, axis):
    kspace = fft2c(image)
    np.save(tmp_path / "scan.npy", np.stack([kspace.real, kspace.imag], axis))
    for options in ({}, {"key": "kspace"}):
        scan = load_scan(tmp_path / "scan.npy", **options)
        assert scan.kind == "kspace" and torch.equal(scan.data, kspace)
        assert f"real and imaginary parts joined along axis {axis}" in str(scan)


@pytest.mark.parametrize("ends", [("_real", "_imag"), ("_re", "_im")])
def test_real_and_imaginary_variables(tmp_path, image, ends):
    kspace = fft2c(image)
    parts = dict(zip((f"kspace{end}" for end in ends), (kspace.real.numpy(), kspace.imag.numpy()), strict=True))
    np.savez(tmp_path / "scan.npz", **parts)
    scan = load_scan(tmp_path / "scan.npz")
    assert scan.key == "kspace" and torch.equal(scan.data, kspace)


def test_the_content_decides_and_not_the_suffix(tmp_path, image, stored):
    np.save(tmp_path / "scan.npy", image.numpy())
    (tmp_path / "scan.npy").rename(tmp_path / "scan.mat")
    scipy.io.savemat(tmp_path / "other.mat", {"image": stored})
    (tmp_path / "other.mat").rename(tmp_path / "other.dat")
    assert "NumPy array" in str(load_scan(tmp_path / "scan.mat"))
    for name in ("scan.mat", "other.dat"):
        assert torch.equal(load_scan(tmp_path / name).data, image)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".mat", ".h5"])
def test_what_the_memory_does_not_hold_is_refused_before_it_is_read(tmp_path, stored, suffix, monkeypatch):
    path = tmp_path / f"scan{suffix}"
    save_array(path, stored)
    monkeypatch.setattr("mri.formats.limits.available_bytes", lambda: 2 * stored.nbytes)
    refusal(path, "GiB", "memory")
    monkeypatch.setattr("mri.formats.limits.available_bytes", lambda: 4 * stored.nbytes)
    load_scan(path)


def test_a_header_of_20_gigabytes(tmp_path):
    path = tmp_path / "scan.npy"
    with path.open("wb") as file:
        header = {"descr": "<c8", "fortran_order": False, "shape": (200, 500, 500, 5000)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(2_000_000_000_000)  # sparse: nothing is stored
    refusal(path, "GiB", "memory")


def test_a_file_that_changes_while_it_is_read(tmp_path, image, monkeypatch):
    path = tmp_path / "scan.npy"
    np.save(path, image.numpy())
    read = np.load

    def load(*arguments, **options):
        with path.open("ab") as file:
            file.write(b"more")
        return read(*arguments, **options)

    monkeypatch.setattr(np, "load", load)
    refusal(path, "changed while it was being read")


def test_links_to_other_files_are_not_followed(tmp_path, image):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["kspace"] = image.numpy()
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = h5py.ExternalLink("other.h5", "kspace")
    refusal(tmp_path / "scan.h5", "'kspace' is a link to another file")
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        source = h5py.VirtualSource(str(tmp_path / "other.h5"), "kspace", shape=image.shape, dtype=np.complex64)
        layout = h5py.VirtualLayout(image.shape, np.complex64)
        layout[:] = source
        file.create_virtual_dataset("kspace", layout)
    refusal(tmp_path / "scan.h5", "'kspace' takes its values from another file")


def test_hdf5_objects_are_not_loaded(tmp_path, image):
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["image"] = image.numpy()
        file.create_dataset("names", data=["a", "b"], dtype=h5py.string_dtype())
        file.create_dataset("references", data=[file["image"].ref], dtype=h5py.ref_dtype)
    assert torch.equal(load_scan(tmp_path / "scan.h5").data, image)


def test_real_kspace(tmp_path, image):
    path = tmp_path / "scan.mat"
    scipy.io.savemat(path, {"kspace": image.abs().numpy()})
    refusal(path, "real-valued", "--kind image")
    assert load_scan(path, kind="image").kind == "magnitude"


def test_magnitude_and_phase_are_no_real_and_imaginary_part(tmp_path):
    image = make_phantom(5, 64, 0).to(torch.complex64) * torch.polar(torch.ones(64), torch.linspace(-6, 6, 64))
    np.save(tmp_path / "pair.npy", torch.stack([image.abs(), image.angle()]).numpy())
    refusal(tmp_path / "pair.npy", "looks like magnitude and phase along axis 0")


def test_complex_kspace_without_an_imaginary_part(tmp_path):
    kspace = fft2c(make_phantom(5, 64, 0).to(torch.complex64)).abs().to(torch.complex64)
    np.save(tmp_path / "magnitude.npy", kspace.numpy())
    refusal(tmp_path / "magnitude.npy", "imaginary part is zero everywhere", kind="kspace")
