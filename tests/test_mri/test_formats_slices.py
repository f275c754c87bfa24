"""Plain arrays that hold several slices, and real and imaginary parts of what has many axes."""

import numpy as np
import pytest
import torch

from mri import formats
from mri.formats.stored import SeveralSlices
from mri.fourier import fft2c, ifft2c
from mri.masks import make_mask
from mri.phantom import make_coil_maps, make_phantom
from tests.refusals import refusal


@pytest.fixture(scope="module")
def slices():
    """K-space of three slices (slices, frames, coils, ky, kx): the object changes from slice to slice."""
    images = torch.stack([make_phantom(6, 64, seed) for seed in (3, 3, 5)])
    return fft2c(images[:, :, None] * make_coil_maps(4, 64, 64))


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (1, 0, 2, 3, 4), (4, 3, 2, 1, 0), (4, 3, 2, 0, 1)])
def test_slices_of_plain_arrays(tmp_path, slices, full, order):
    mask = make_mask("uniform", (6, 64, 64), 3, 8)[:, None]
    kspace = (slices if full else torch.where(mask, slices, 0)).permute(*order)
    path = tmp_path / "scan.npz"
    np.savez(path, kspace=kspace.numpy())
    with pytest.raises(SeveralSlices) as caught:
        formats.load_scan(path)
    assert caught.value.slices == (0, 1, 2)
    stored = formats.load_scan(path, slice=1)
    expected = slices[1] if order[-1] == 4 else slices[1].mT
    assert torch.equal(stored.data, expected if full else torch.where(mask if order[-1] == 4 else mask.mT, expected, 0))
    assert f"slice 1 of 3 along axis {order.index(0)}" in str(stored) and "override with" in str(stored)
    named = formats.load_scan(path, slice=1, frames_axis=order.index(1), coils_axis=order.index(2))
    assert torch.equal(named.data, stored.data) and "override with" not in str(named)


def test_real_and_imaginary_parts_of_coils_and_slices(tmp_path, slices):
    path = tmp_path / "scan.npy"
    for axis in (0, -1):
        np.save(path, np.stack([slices[0].real, slices[0].imag], axis=axis))
        stored = formats.load_scan(path)
        assert torch.equal(stored.data, slices[0]) and "real and imaginary parts joined" in str(stored)
        assert "6 frames of 4 coils" in str(stored)
    np.save(path, np.stack([slices.real, slices.imag], axis=-1))
    assert torch.equal(formats.load_scan(path, slice=2).data, slices[2])


def test_slices_of_images_need_the_axis_of_time(tmp_path, slices):
    images = ifft2c(slices[:, :, 0]).abs()
    path = tmp_path / "scan.npy"
    np.save(path, images.numpy())
    refusal(path, "4 axes", "--frames_axis", load=formats.load_scan)
    for order, time in (((0, 1, 2, 3), 1), ((3, 2, 0, 1), -1)):
        np.save(path, images.permute(*order).numpy())
        stored = formats.load_scan(path, frames_axis=time, slice=2)
        expected = images[2] if time == 1 else images[2].mT
        assert torch.equal(stored.data[:, 0].real, expected)
