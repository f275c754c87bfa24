import numpy as np
import pytest
import torch

from mri.metrics import evaluate, moving_row
from utils.errors import InputError


def images(seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, 32, 32, generator=generator)
    image[:, 10] *= torch.tensor([0.1, 1.0, 3.0])[:, None]
    return image


def test_identical_images_are_perfect():
    scores = evaluate(images(), images())
    assert scores["ssim"] == pytest.approx(1) and scores["nmse"] == scores["mse_e4"] == scores["hfen"] == 0
    assert scores["psnr"] == np.inf


def test_published_metrics_by_hand():
    reference, image = images(), images() + 0.05 * images(1)
    a = image / image.amax(dim=(1, 2), keepdim=True)
    b = reference / reference.amax(dim=(1, 2), keepdim=True)
    mse = (a - b).double().square().mean(dim=(1, 2))
    scores = evaluate(image, reference)
    assert scores["mse_e4"] == pytest.approx(mse.mean().item() * 1e4, rel=1e-5)
    assert scores["psnr"] == pytest.approx((-10 * mse.log10()).mean().item(), rel=1e-5)
    nmse = (image - reference).square().sum() / reference.square().sum()
    assert scores["nmse"] == pytest.approx(nmse.item(), rel=1e-5)


def test_gain_errors_hide_from_the_published_metrics_only():
    reference = images()
    noisy = reference + 0.05 * images(1)
    once, twice = evaluate(noisy, reference), evaluate(2 * noisy, reference)
    assert once["psnr"] == pytest.approx(twice["psnr"]) and once["ssim"] == pytest.approx(twice["ssim"])
    assert twice["nmse"] > 10 * once["nmse"] and twice["psnr_common"] < once["psnr_common"] - 10


def test_phase_does_not_matter():
    noisy = images() + 0.05 * images(1)
    assert evaluate(noisy * 1j, images()) == evaluate(noisy, images())


def test_moving_row():
    assert moving_row(images()) in range(8, 13)


def test_shapes_must_agree():
    with pytest.raises(InputError, match="shape"):
        evaluate(images(), images()[:2])
