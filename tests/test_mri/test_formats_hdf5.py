"""CMRxRecon and fastMRI-like HDF5 files."""

import h5py
import numpy as np
import pytest
import scipy.io
import torch

from mri.formats import load_scan
from mri.formats.stored import SeveralSlices
from mri.fourier import fft2c
from mri.intake import scan_from_file
from mri.intake_settings import Intake, MaskSettings
from mri.masks import make_mask
from mri.phantom import make_coil_maps, make_phantom
from tests.refusals import refusal
from utils.errors import InputError

FRAMES, COILS, HEIGHT, WIDTH = 5, 3, 64, 64


@pytest.fixture(scope="module")
def mask():
    return make_mask("uniform", (FRAMES, HEIGHT, WIDTH), 4, 8)


@pytest.fixture(scope="module")
def kspace(mask):
    """(frames, coils, ky, kx), under-sampled"""
    images = make_phantom(FRAMES, HEIGHT, 3)
    return torch.where(mask[:, None], fft2c(images[:, None] * make_coil_maps(COILS, HEIGHT, WIDTH)), 0)


def save(path, **variables):
    """As MATLAB's `save -v7.3` would, from arrays with the axes that HDF5 has."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in variables.items():
            value = np.asarray(array)
            if np.iscomplexobj(value):
                pairs = np.zeros(value.shape, [("real", "f4"), ("imag", "f4")])
                pairs["real"], pairs["imag"] = value.real, value.imag
                value = pairs
            file[name] = value
            file[name].attrs["MATLAB_class"] = np.bytes_("single")


# ----------------------------------------------------------------------------------------------- CMRxRecon


@pytest.mark.parametrize("name", ["kspace_full", "kspace_sub04", "kspace_sub10", "kspace", "kus"])
def test_cmrxrecon_with_coils(tmp_path, kspace, mask, name):
    path = tmp_path / "cine_sax.mat"
    save(path, **{name: kspace[:, None]})
    stored = load_scan(path)
    assert torch.equal(stored.data, kspace) and stored.key == name and "CMRxRecon" in str(stored)
    scan, _ = scan_from_file(Intake(), path)
    assert torch.equal(scan.mask, mask)


@pytest.mark.parametrize("name", ["kspace_single_full", "kspace_single_sub08", "kspace_sub04"])
def test_cmrxrecon_without_coils(tmp_path, kspace, name):
    path = tmp_path / "cine_sax.mat"
    save(path, **{name: kspace[:, :1]})  # (time, slice, ky, kx)
    assert torch.equal(load_scan(path).data, kspace[:, :1])


def test_cmrxrecon_slices(tmp_path, kspace):
    path = tmp_path / "cine_sax.mat"
    save(path, kspace_full=torch.stack([kspace, 2 * kspace, 3 * kspace], 1))
    with pytest.raises(SeveralSlices, match=r"3 slices \(0, 1, 2\)"):
        load_scan(path)
    stored = load_scan(path, slice=2)
    assert torch.equal(stored.data, 3 * kspace) and "slice 2 of 3" in str(stored)
    refusal(path, "no slice 3", slice=3)
    refusal(path, "first axis of CMRxRecon is time", time="slice")


def test_cmrxrecon_saved_again_as_matlab_7(tmp_path, kspace):
    path = tmp_path / "cine_sax.mat"
    scipy.io.savemat(path, {"kspace_sub04": torch.stack([kspace, 2 * kspace], 1).numpy().T})  # (kx, ky, coil, slice, t)
    with pytest.raises(SeveralSlices):
        load_scan(path)
    assert torch.equal(load_scan(path, slice=1).data, 2 * kspace)


def test_an_axis_that_is_slices_or_coils(tmp_path, kspace):
    path = tmp_path / "scan.mat"
    save(path, kspace_sub04=kspace)
    refusal(path, "3 slices or coils", "--slice", "--coils_axis")
    assert torch.equal(load_scan(path, slice=1).data, kspace[:, 1:2])
    save(path, kspace_single_sub04=kspace)
    with pytest.raises(SeveralSlices):
        load_scan(path)


def test_cmrxrecon_pairs_along_the_last_axis(tmp_path, kspace):
    path = tmp_path / "scan.mat"
    with h5py.File(path, "w") as file:
        file["kspace_full"] = torch.view_as_real(kspace[:, None]).numpy()
    stored = load_scan(path)
    assert torch.equal(stored.data, kspace) and "joined along the last axis" in str(stored)


def test_cmrxrecon_mask_files(tmp_path, kspace, mask):
    path = tmp_path / "scan.mat"
    save(path, kspace_sub04=kspace[:, None])
    for shape in ((HEIGHT, WIDTH), (HEIGHT, 48)):  # MATLAB's order of axes is the other way round
        save(path, kspace_sub04=kspace[:, None, ..., : shape[1]])
        save(tmp_path / "mask.mat", mask04=mask[..., : shape[1]].numpy().astype(np.float32))
        scan, _ = scan_from_file(Intake(mask=MaskSettings(path=str(tmp_path / "mask.mat"))), path)
        assert torch.equal(scan.mask, mask[..., : shape[1]])
        assert "rows and columns exchanged" in str(scan)
    save(path, kspace_sub04=kspace[:, None])
    scipy.io.savemat(tmp_path / "one.mat", {"mask04": mask[0].numpy().astype(np.float32)})
    with pytest.raises(InputError, match="the mask of frame 0 alone"):
        scan_from_file(Intake(mask=MaskSettings(path=str(tmp_path / "one.mat"))), path)


def test_axes_named_by_hand_make_it_a_plain_array(tmp_path, kspace):
    path = tmp_path / "scan.mat"
    save(path, kspace_full=kspace[:, None])
    stored = load_scan(path, coils_axis=2, frames_axis=4)  # MATLAB's order: (kx, ky, coil, slice, time)
    assert torch.equal(stored.data, kspace.mT)
    refusal(path, "--kind image", kind="image")


# ------------------------------------------------------------------------------------------------- fastMRI


def fastmri(path, kspace, header="", **more):
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace.numpy()
        file["reconstruction_rss"] = np.ones((len(kspace), 8, 8), np.float32)
        if header:
            file.create_dataset("ismrmrd_header", data=header)
        for name, value in more.items():
            file[name] = value


def test_fastmri_slices_are_no_time(tmp_path, kspace):
    path = tmp_path / "file.h5"
    fastmri(path, kspace, "<ismrmrdHeader/>")
    refusal(path, "the first axis is slices", "--time slice")
    stored = load_scan(path, time="slice")
    assert torch.equal(stored.data, kspace) and "as requested" in str(stored)
    fastmri(path, kspace[:, 0])  # one coil
    refusal(path, "--time slice")
    assert torch.equal(load_scan(path, time="slice").data, kspace[:, :1])
    assert torch.equal(load_scan(path, frames_axis=0).data, kspace[:, :1])


def test_fastmri_with_a_time_axis(tmp_path, kspace):
    path = tmp_path / "file.h5"
    fastmri(path, torch.stack([kspace, 2 * kspace], 1))
    with pytest.raises(SeveralSlices):
        load_scan(path)
    assert torch.equal(load_scan(path, slice=1).data, 2 * kspace)


def test_fastmri_pairs_along_the_last_axis(tmp_path, kspace):
    path = tmp_path / "scan.h5"
    save(path, kspace=torch.view_as_real(kspace).numpy(), reconstruction_rss=np.ones((4, 64, 64), np.float32))
    assert torch.equal(load_scan(path, time="slice").data, kspace)
    refusal(path, "--time slice")


def test_fastmri_readout_along_the_height(tmp_path, kspace):
    header = (
        '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding><encodedSpace><matrixSize><x>64</x><y>48</y>'
        "<z>1</z></matrixSize><fieldOfView_mm><x>320</x><y>144</y><z>5</z></fieldOfView_mm></encodedSpace><reconSpace>"
        "<matrixSize><x>32</x><y>48</y><z>1</z></matrixSize><fieldOfView_mm><x>160</x><y>144</y><z>5</z>"
        "</fieldOfView_mm></reconSpace></encoding></ismrmrdHeader>"
    )
    path = tmp_path / "file.h5"
    fastmri(path, kspace[..., 8:56], header)
    stored = load_scan(path, time="slice")
    assert torch.equal(stored.data, kspace[..., 8:56].mT) and stored.oversampling == 2
    assert stored.geometry.voxel_mm == (3, 5, 5)
    fastmri(path, kspace, '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><ismrmrdHeader>&b;</ismrmrdHeader>')
    refusal(path, "entities", time="slice")
    fastmri(path, kspace, "<ismrmrdHeader")
    refusal(path, "XML header is damaged", time="slice")


def test_links_and_objects(tmp_path, kspace):
    path = tmp_path / "file.h5"
    fastmri(path, kspace)
    with h5py.File(path, "a") as file:
        del file["kspace"]
        file["kspace"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "kspace")
        del file["reconstruction_rss"]
    fastmri(tmp_path / "other.h5", kspace)
    refusal(path, "link to another file", time="slice")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_cut_short(tmp_path, kspace, share):
    save(tmp_path / "a.mat", kspace_full=kspace[:, None])
    fastmri(tmp_path / "b.h5", kspace)
    for path in (tmp_path / "a.mat", tmp_path / "b.h5"):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        refusal(path, "damaged")


def test_only_the_slice_that_is_read_must_fit_the_memory(tmp_path, kspace, monkeypatch):
    path = tmp_path / "scan.mat"
    save(path, kspace_full=torch.stack([kspace] * 8, 1))
    monkeypatch.setattr("mri.formats.limits.available_bytes", lambda: 3 * 8 * kspace.numel())
    assert torch.equal(load_scan(path, slice=7).data, kspace)
    monkeypatch.setattr("mri.formats.limits.available_bytes", lambda: 8 * kspace.numel())
    refusal(path, "memory", slice=7)


@pytest.mark.parametrize(("name", "options"), [("cmrxrecon.mat", {}), ("fastmri.h5", {"time": "slice"})])
def test_development_files(shared_file, name, options):
    stored = load_scan(shared_file(f"data/coils/giraf_6coil_{name}"), **options)
    with np.load(shared_file("data/coils/giraf_6coil_kspace.npz")) as file:
        assert np.array_equal(stored.data.numpy(), file["kspace"])
