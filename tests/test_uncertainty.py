import numpy as np
import pytest
import torch

from benchmarks.calibration import calibration
from mri.fourier import fft2c, ifft2c
from mri.masks import make_mask
from uncertainty import _aliased, deviation_map


def test_more_where_the_denoiser_knows_less():
    """A denoiser that takes all noise off the left half and none off the right half."""
    mask = make_mask("uniform", (6, 64, 64), 4, 8)
    truth = torch.zeros(6, 64, 64, dtype=torch.complex64)

    def denoise(kspace, sigma):
        image = ifft2c(kspace)
        image[..., :32] = 0
        return fft2c(image)

    maps = [
        deviation_map(truth, mask, 0.1, denoise, 4, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    ]
    assert torch.equal(maps[0], maps[1]) and not torch.equal(maps[0], maps[2])
    assert maps[0].square().mean() == pytest.approx(2 * 0.1**2, rel=1e-3)
    assert maps[0][..., 40:].mean() > 20 * maps[0][..., :24].mean()


def test_the_error_is_spread_as_the_mask_spreads_it():
    """Against samples: white noise in one place, its measured samples put right."""
    mask = make_mask("uniform", (3, 64, 48), 4, 4)
    scale = torch.zeros(3, 64, 48)
    scale[:, 20:28, 10:20] = 0.3
    rng = torch.Generator().manual_seed(0)
    total = torch.zeros(3, 64, 48)
    for _ in range(400):
        noise = torch.view_as_complex(torch.randn(3, 64, 48, 2, generator=rng)) / 2**0.5
        total += ifft2c(torch.where(mask, 0, fft2c(scale * noise))).abs().square() / 400
    expected = _aliased(scale.square(), mask)
    assert (expected - total).norm() < 0.1 * total.norm()
    assert total[0, 20 + 16 : 28 + 16, 10:20].mean() > 0.001  # the ghost


def test_calibration_of_a_known_deviation():
    rng = np.random.default_rng(0)
    deviation = rng.uniform(0.5, 2, (4, 64, 64))
    error = deviation * rng.standard_normal(deviation.shape)
    groups = calibration(deviation, error)
    assert len(groups) == 10 and all(g["error"] == pytest.approx(g["predicted"], rel=0.1) for g in groups)
    flat = calibration(deviation, np.ones_like(deviation))
    assert {round(g["error"], 6) for g in flat} == {1}
