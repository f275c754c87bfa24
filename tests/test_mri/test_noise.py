"""The noise level is read back through every door, and the residual says when maps do not fit."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mri.fourier import fft2c
from mri.intake import scan_from_file
from mri.intake_settings import DataSettings, Intake, MaskSettings
from mri.masks import make_mask
from mri.noise import chi, estimate_noise_std, misfit, per_channel
from mri.phantom import simulate_scan
from mri.scan import Scan
from reconstruction.optimization_unit import OptimizationUnit
from reconstruction.prepare import prepare
from reconstruction.settings import OUSettings, PrepareSettings
from sampling import reconstruct
from tests.conftest import tiny_config
from utils.errors import InputError

OU = OUSettings(operator="llr", llr_iterations=30)


def scan_of(coils, noise, frames=8, size=64, **more):
    simulated = simulate_scan("simple", frames, size, 0, coils, noise)
    mask = make_mask("uniform", (frames, size, size), 4, 8)
    return Scan.from_arrays(simulated.kspace, mask, **more), simulated


def level(problem):
    return problem.noise_std * problem.scale


@pytest.mark.parametrize("coils", [1, 4])
@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_noise_level_is_read_back(coils, noise, tmp_path):
    """From noise samples, given, estimated, and through a file that is cropped; σ of a complex sample."""
    scan, simulated = scan_of(coils, noise)
    with_samples = Scan.from_arrays(scan.kspace, scan.mask, noise_samples=simulated.noise)
    assert level(prepare(with_samples)) == pytest.approx(noise, rel=0.05)
    given = Scan.from_arrays(scan.kspace, scan.mask, noise_std=noise)
    assert level(prepare(given)) == pytest.approx(noise)
    estimated = prepare(scan)
    # signal at the edge of a small k-space, and motion, raise the estimate
    assert not estimated.noise_known and 0.9 * noise < level(estimated) < 2 * noise
    np.savez(tmp_path / "scan.npz", kspace=scan.kspace.numpy(), noise=simulated.noise.numpy())
    names = {"noise_std": None} if coils > 1 else {"noise_std": noise}
    for size, gain in ((0, 1.0), (48, 0.75)):
        read, _ = scan_from_file(Intake(DataSettings(size=size, **names)), tmp_path / "scan.npz")
        assert level(prepare(read)) == pytest.approx(noise * gain, rel=0.05)


def test_orthonormal_transform_keeps_the_level_and_networks_count_per_channel():
    noise = 0.3 / 2**0.5 * torch.randn(64, 64, 2, generator=torch.Generator().manual_seed(0))
    image = torch.view_as_complex(noise)
    assert fft2c(image).abs().square().mean().sqrt() == pytest.approx(0.3, rel=0.05)
    assert image.real.std() == pytest.approx(per_channel(0.3), rel=0.05)


@pytest.mark.parametrize("noise", [0.0, 0.005, 0.01, 0.02, 0.05])
def test_true_maps_are_silent_and_shifted_maps_are_not(noise):
    scan, simulated = scan_of(6, noise, frames=5, noise_std=noise)
    scan = Scan.from_arrays(scan.kspace, scan.mask, noise_std=noise, coil_maps=simulated.maps)
    true = prepare(scan, PrepareSettings(virtual_coils=6))
    for shift, expected in ((0, False), (10, True)):
        problem = replace(true, model=replace(true.model, maps=torch.roll(true.model.maps, shift, dims=2)))
        image = OptimizationUnit(OU).solve(problem)
        assert misfit(problem.model, image, problem.measured, problem.noise_std) == expected


def test_estimated_maps_fit_and_a_misfit_is_said(context_priors):
    from models.prior import load_prior

    models = [load_prior(path) for path in context_priors]
    scan, simulated = scan_of(4, 0.01)
    config = tiny_config()
    config.sampling.sampler, config.ou.motion_patches, config.ou.motion_steps = "cascade", (8, 4), 15
    fits = reconstruct(scan.kspace, scan.mask, *models, config, noise_samples=simulated.noise)
    assert fits.chi < 1.5 and not any("warning" in note for note in fits.notes)
    wrong = reconstruct(
        scan.kspace, scan.mask, *models, config, noise_samples=simulated.noise, maps=torch.roll(simulated.maps, 4, 2)
    )
    for words in ("warning: the residual", "warning: the coil maps fit this scan poorly"):
        assert wrong.chi > 2 and any(words in note and "--maps" in note for note in wrong.notes)


def test_a_few_samples_do_not_decide_the_level():
    """In small radial scans, hardly any outer k-space location is sampled in two frames."""
    for seed in range(20):
        mask = make_mask("radial", (6, 32, 32), 8, 0, seed)
        noise = torch.randn(6, 1, 32, 32, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))
        assert 0.7 < estimate_noise_std(noise * mask[:, None], mask) < 1.1


def test_a_level_that_the_scan_does_not_contain_is_said():
    """Noise samples in other units, or a wrong --noise_std; the true level is silent."""
    for coils in (1, 4):
        scan, simulated = scan_of(coils, 0.01)
        for factor in (0.5, 1, 3, 20):
            more = [{"noise_std": 0.01 * factor}, {"noise_samples": factor * simulated.noise}]
            for one in more:
                notes = prepare(Scan.from_arrays(scan.kspace, scan.mask, **one)).notes
                assert any("exceeds the upper bound" in note for note in notes) == (factor > 1)


def test_chi_of_pure_noise_is_one():
    scan, _ = scan_of(3, 0.0)
    problem = prepare(scan)
    noise = torch.view_as_complex(torch.randn(*problem.measured.shape, 2, generator=torch.Generator().manual_seed(0)))
    measured = torch.where(problem.model.mask[:, None], 0.1 / 2**0.5 * noise, 0)
    image = torch.zeros(problem.model.mask.shape, dtype=torch.complex64)
    assert chi(problem.model, image, measured, 0.1) == pytest.approx(1, rel=0.03)
    assert chi(problem.model, image, measured, 0.0) == math.inf and chi(problem.model, image, measured * 0, 0.0) == 0


def test_mask_settings_say_how_the_mask_was_made(tmp_path):
    simulated = simulate_scan("simple", 5, 64, 0, 4, 0.01)
    np.savez(tmp_path / "full.npz", kspace=simulated.kspace.numpy(), noise=simulated.noise.numpy(),
             image=simulated.image.numpy(), maps=simulated.maps.numpy())  # fmt: skip
    intake = Intake(mask=MaskSettings(acceleration=2.0))
    scan, reference = scan_from_file(intake, tmp_path / "full.npz")
    assert scan.coils == 4 and scan.noise_samples.shape == (4, 4096) and scan.coil_maps is None
    assert torch.equal(reference.image, simulated.image) and "R = 2, 8 ACS" in scan.source.found


@pytest.mark.parametrize("level", [-1.0, math.nan, math.inf])
def test_a_level_that_cannot_be_is_refused(level):
    scan, _ = scan_of(1, 0.01)
    with pytest.raises(InputError, match="noise_std is"):
        Scan.from_arrays(scan.kspace, scan.mask, noise_std=level)
