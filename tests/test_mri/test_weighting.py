import pytest
import torch

from mri.fourier import fft2c
from mri.weighting import KspaceWeight, from_channels, to_channels
from utils.errors import InputError


def kspace(frames=4, height=12, width=10):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(frames, height, width, dtype=torch.complex64, generator=generator)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("data_std", [0.036, 0.5])
def test_fit_gives_the_stated_deviation_and_can_be_undone(power, data_std):
    weight = KspaceWeight.fit(kspace(), power, data_std)
    weighted = weight(kspace())
    assert to_channels(weighted).square().mean().sqrt().item() == pytest.approx(data_std, rel=1e-5)
    assert torch.allclose(weight.inverse(weighted), kspace(), atol=1e-5)
    assert KspaceWeight(**weight.to_dict()) == weight


def test_weight_grows_with_the_distance_to_dc_and_is_positive_there():
    w = KspaceWeight(1.0, 2.0, 0.5).on(kspace())
    assert w[6, 5] == 1.0  # floor of half a sample, gain 2
    assert w[6, 7] == 4.0 and w[9, 9] == 10.0
    assert w.min() == w[6, 5]


def test_published_weight():
    """0.011·r/96 on the unnormalised transform weights a sample as ours does on the orthonormal one."""
    image = kspace(1, 192, 192)
    unnormalised = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(image, dim=(1, 2))), dim=(1, 2))
    weighted = KspaceWeight.published()(fft2c(image))
    for ky, kx in ((96, 106), (6, 96), (136, 126)):
        distance = ((ky - 96) ** 2 + (kx - 96) ** 2) ** 0.5
        assert torch.allclose(weighted[0, ky, kx], unnormalised[0, ky, kx] * 0.011 * distance / 96, rtol=1e-4)


def test_channels_round_trip():
    channels = to_channels(kspace())
    assert channels.shape == (4, 2, 12, 10) and channels.dtype == torch.float32
    assert torch.equal(from_channels(channels), kspace())


def test_zero_data_cannot_be_weighted():
    with pytest.raises(InputError, match="zero"):
        KspaceWeight.fit(torch.zeros(2, 8, 8, dtype=torch.complex64), 1.0, 0.5)
