import numpy as np
import pytest
import torch

from benchmarks.calibration import calibration
from mri.masks import make_mask
from mri.operators import ForwardModel
from reconstruction.uncertainty import aliased_variance, error_map


def model_of(mask, coils):
    """Coils with smooth, different phases and magnitudes."""
    _, height, width = mask.shape
    rows, columns = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    maps = torch.stack([torch.exp(1j * c * rows) * (1 + 0.5 * torch.cos(c + columns)) for c in range(coils)])
    return ForwardModel(mask, (maps / maps.abs().square().sum(0).sqrt()).to(torch.complex64))


@pytest.mark.parametrize("coils", [1, 3])
def test_more_where_the_denoiser_knows_less(coils):
    """A denoiser that takes all noise off the left half and none off the right half."""
    model = model_of(make_mask("uniform", (6, 64, 64), 4, 8), coils)
    truth = torch.zeros(6, 64, 64, dtype=torch.complex64)

    def denoise(image, sigma):
        image = image.clone()
        image[..., :32] = 0
        return image

    maps = [error_map(truth, model, 0.1, denoise, 4, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(maps[0], maps[1]) and not torch.equal(maps[0], maps[2])
    assert maps[0].square().mean() == pytest.approx(2 * 0.1**2, rel=1e-3)
    assert maps[0][..., 40:].mean() > 20 * maps[0][..., :24].mean()


@pytest.mark.parametrize("coils", [1, 3])
def test_the_error_is_spread_as_mask_and_coils_spread_it(coils):
    """Against samples: white noise in one place, of which what was measured is put right."""
    model = model_of(make_mask("uniform", (3, 64, 48), 4, 4), coils)
    scale = torch.zeros(3, 64, 48)
    scale[:, 20:28, 10:20] = 0.3
    rng = torch.Generator().manual_seed(0)
    total = torch.zeros(3, 64, 48)
    for _ in range(400):
        noise = torch.view_as_complex(torch.randn(3, 64, 48, 2, generator=rng)) / 2**0.5
        total += model.unmeasured(scale * noise).abs().square() / 400
    expected = aliased_variance(scale.square(), model)
    assert (expected - total).norm() < 0.1 * total.norm()
    assert total[0, 20 + 16 : 28 + 16, 10:20].mean() > 0.001  # the ghost


def test_calibration_of_a_known_error_map():
    rng = np.random.default_rng(0)
    deviation = rng.uniform(0.5, 2, (4, 64, 64))
    error = deviation * rng.standard_normal(deviation.shape)
    groups = calibration(deviation, error)
    assert len(groups) == 10 and all(g["error"] == pytest.approx(g["predicted"], rel=0.1) for g in groups)
    flat = calibration(deviation, np.ones_like(deviation))
    assert {round(g["error"], 6) for g in flat} == {1}
