"""Scans in structures of MATLAB, of v5 and of v7.3."""

import h5py
import numpy as np
import pytest
import scipy.io
import torch

from mri.formats import load_mask, load_scan
from mri.formats.cli import contents
from mri.fourier import fft2c
from mri.masks import make_mask
from mri.phantom import make_coil_maps, make_phantom
from tests.refusals import refusal


@pytest.fixture(scope="module")
def kspace():
    mask = make_mask("uniform", (6, 64, 64), 4, 8)[:, None]
    return torch.where(mask, fft2c(make_phantom(6, 64, 3)[:, None] * make_coil_maps(3, 64, 64)), 0)


def save(path, version, **variables):
    """A file of MATLAB; dictionaries become structures."""
    if version == 5:
        scipy.io.savemat(path, variables)
        return
    with h5py.File(path, "w", userblock_size=512) as file:
        _write(file, variables)


def _write(group, variables):
    for name, value in variables.items():
        if isinstance(value, dict):
            group.create_group(name).attrs["MATLAB_class"] = np.bytes_("struct")
            _write(group[name], value)
        else:
            group[name] = np.asarray(value).T
            group[name].attrs["MATLAB_class"] = np.bytes_("single")


@pytest.mark.parametrize("version", [5, 7.3])
def test_kspace_in_a_structure(tmp_path, kspace, version):
    path = tmp_path / "scan.mat"
    noise = torch.randn(3, 50, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    fields = {"kspace": kspace.numpy(), "noise": noise.numpy(), "TE": np.float32(2)}
    save(path, version, data=fields)
    for key in (None, "data.kspace", "data/kspace"):
        stored = load_scan(path, key)
        assert torch.equal(stored.data, kspace) and torch.equal(stored.noise, noise) and stored.kind == "kspace"
        assert "variable 'data.kspace'" in str(stored) and "variable 'data.noise'" in str(stored)
    refusal(path, "data.kspace", "--key", load=load_scan, key="kspace")


@pytest.mark.parametrize("version", [5, 7.3])
def test_a_structure_in_a_structure(tmp_path, kspace, version):
    path = tmp_path / "scan.mat"
    image = make_phantom(6, 64, 3).abs().numpy()
    mask = (kspace[:, 0] != 0).numpy().astype(np.uint8)
    save(path, version, scan={"raw": {"kspace": kspace.numpy()}, "recon": {"image": image}, "mask": mask})
    assert torch.equal(load_scan(path).data, kspace)
    stored = load_scan(path, "scan.recon.image")
    assert stored.kind == "magnitude" and np.allclose(stored.data[:, 0].real.numpy(), image)
    assert torch.equal(load_mask(path, "scan.mask", 0), kspace[:, 0] != 0)


def test_what_is_in_a_structure(tmp_path, kspace):
    save(tmp_path / "scan.mat", 5, data={"kspace": kspace.numpy(), "many": np.array([1, "a"], object)})
    assert contents(tmp_path / "scan.mat") == ["  data.kspace (6, 3, 64, 64) complex64"]
    save(tmp_path / "scan.mat", 7.3, data={"kspace": kspace.numpy()})
    assert "data.kspace (64, 64, 3, 6)" in contents(tmp_path / "scan.mat")[0]
