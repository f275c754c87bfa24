"""Whitening, compression and coil maps against what is known of simulated coils."""

import pytest
import torch

from mri import coils
from mri.fourier import ifft2c
from mri.phantom import make_phantom, simulate_scan
from utils.errors import InputError


def correlated_noise(count=20000, seed=0):
    """Noise of three coils with a known covariance, and that covariance."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.tensor([[1.0, 0, 0], [0.6, 0.5j, 0], [0.2j, 0.1, 2.0]], dtype=torch.complex128)
    white = torch.view_as_complex(torch.randn(3, count, 2, dtype=torch.float64, generator=generator)) / 2**0.5
    return (mixing @ white).to(torch.complex64), mixing @ mixing.mH


def test_whitened_noise_is_white_and_keeps_its_units():
    noise, covariance = correlated_noise()
    matrix, level = coils.whitening_matrix(noise)
    assert level == pytest.approx(covariance.diagonal().real.mean().sqrt().item(), rel=0.02)
    white = coils.apply_matrix(matrix, noise, axis=0)
    found = (white @ white.mH / white.shape[1]).real
    assert torch.allclose(found / level**2, torch.eye(3), atol=1e-3)
    other, _ = correlated_noise(seed=1)
    again = coils.apply_matrix(matrix, other, axis=0)
    assert torch.allclose((again @ again.mH / again.shape[1]).abs() / level**2, torch.eye(3), atol=0.05)


def test_noise_that_cannot_whiten():
    noise, _ = correlated_noise(count=8)
    with pytest.raises(InputError, match="too few to whiten"):
        coils.whitening_matrix(noise)
    silent = correlated_noise()[0]
    silent[1] = 0
    with pytest.raises(InputError, match="coil 1 .* has the lowest noise"):
        coils.whitening_matrix(silent)
    matrix, level = coils.whitening_matrix(torch.zeros(3, 100, dtype=torch.complex64))
    assert level == 0 and torch.equal(matrix, torch.eye(3, dtype=torch.complex64))


def test_compression_holds_the_energy_and_is_orthonormal():
    scan = simulate_scan("simple", 4, 64, 0, 8, 0.0)
    mask = torch.ones(4, 64, 64, dtype=torch.bool)
    found = coils.compression(scan.kspace, mask, 0.0)
    assert len(found.matrix) < 8 and found.energy >= 0.99
    identity = torch.eye(len(found.matrix), dtype=torch.complex64)
    assert torch.allclose(found.matrix @ found.matrix.mH, identity, atol=1e-5)
    virtual = coils.apply_matrix(found.matrix, scan.kspace, axis=1)
    share = (virtual.norm() / scan.kspace.norm()).square().item()
    assert share == pytest.approx(found.energy, abs=1e-3)
    energies = virtual.abs().square().sum(dim=(0, 2, 3))
    assert (energies.diff() <= 0).all()  # the dominant coil first
    assert len(coils.compression(scan.kspace, mask, 0.0, 8).matrix) == 8
    one = coils.compression(scan.kspace, mask, 0.0, 1)
    assert len(one.matrix) == 1 and one.energy < found.energy


def test_noise_is_subtracted_from_the_energies():
    noisy = simulate_scan("simple", 8, 64, 0, 8, 0.05)
    mask = torch.ones(8, 64, 64, dtype=torch.bool)
    counted = coils.compression(noisy.kspace, mask, 0.0)
    assert len(coils.compression(noisy.kspace, mask, 0.05).matrix) < len(counted.matrix)


def agreement(maps, truth, image):
    """|⟨maps, truth⟩| per pixel, weighted by the image's power: 1 for equal maps up to a phase."""
    weight = image.abs().square()
    return ((maps.conj() * truth).sum(0).abs() * weight).sum() / weight.sum()


@pytest.mark.parametrize("size", [64, 96])
def test_maps_agree_with_the_true_ones(size):
    scan = simulate_scan("simple", 4, size, 0, 6, 0.005)
    images = ifft2c(scan.kspace.mean(dim=0))
    walsh = coils.walsh_maps(images)
    fitted = coils.refined_maps(images, walsh)
    for maps, least in ((walsh, 0.995), (fitted, 0.9995)):
        assert torch.allclose(maps.abs().square().sum(0), torch.ones(size, size), atol=1e-5)
        assert agreement(maps, scan.maps, scan.image.mean(0)) > least


def test_phase_of_the_maps_is_smooth_in_the_object():
    """The combined image of a real object has the phase of the dominant coil, without jumps."""
    scan = simulate_scan("simple", 4, 96, 1, 6, 0.0)
    maps = coils.walsh_maps(ifft2c(scan.kspace.mean(dim=0)))
    aligned = (maps.conj() * scan.maps).sum(0)  # unit phasor between found and true maps
    inside = scan.image.abs().mean(0) > 0.1
    for axis in (0, 1):
        step = (aligned * torch.roll(aligned, 1, axis).conj()).angle().abs()
        both = inside & torch.roll(inside, 1, axis)
        assert step[both].max() < 0.5


def test_a_dark_dominant_coil_leaves_no_jump():
    """A hole in the first coil: the phase is taken from its neighbourhood."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    first = (1 - torch.exp(-((rows - 0.2) ** 2 + columns**2) / 0.01)).to(torch.complex64)
    second = torch.full_like(first, 0.8) * torch.exp(0.5j * rows)
    maps = coils.normalised(torch.stack((first, second)))
    scrambled = maps * torch.polar(torch.ones(64, 64), 6.28 * torch.rand(64, 64))
    found = coils.with_smooth_phase(scrambled, torch.ones(64, 64))
    ratio = (found.conj() * maps).sum(0)
    step = (ratio * torch.roll(ratio, 1, 0).conj()).angle().abs()[1:]
    assert step.max() < 0.3


def test_espirit_maps_agree_with_the_true_ones():
    pytest.importorskip("sigpy")
    scan = simulate_scan("simple", 4, 64, 0, 6, 0.005)
    maps = coils.espirit_maps(scan.kspace.mean(dim=0))
    assert agreement(maps, scan.maps, scan.image.mean(0)) > 0.98


def test_calibration_region_is_the_largest_complete_centre():
    measured = torch.zeros(32, 40, dtype=torch.bool)
    measured[10:23, 8:36] = True  # rows 10 … 22, DC at row 16
    assert coils.calibration_region(measured) == 12
    assert coils.calibration_region(torch.ones(32, 40, dtype=torch.bool)) == 32
    assert coils.calibration_region(torch.zeros(32, 40, dtype=torch.bool)) == 0


def test_what_maps_leave_unexplained():
    scan = simulate_scan("simple", 4, 64, 0, 4, 0.0)
    images = ifft2c(scan.kspace.mean(0))
    assert coils.unexplained(scan.maps, images) < 1e-3  # the mean of full frames is exactly an image times the maps
    assert coils.unexplained(torch.roll(scan.maps, 10, 2), images) > 0.2


def test_normalised_keeps_zeros():
    maps = torch.randn(3, 8, 8, dtype=torch.complex64)
    maps[:, 2, 3] = 0
    found = coils.normalised(5 * maps)
    norm = found.abs().square().sum(0)
    assert norm[2, 3] == 0 and torch.allclose(norm[norm > 0], torch.ones(63), atol=1e-5)


def test_root_sum_of_squares():
    image = make_phantom(4, 64, 0)
    both = torch.stack((0.6 * image, 0.8j * image), dim=1)
    assert torch.allclose(coils.root_sum_of_squares(both), image.abs(), atol=1e-6)


def test_the_local_fit_is_not_drawn_towards_bright_pixels():
    """A bright bar beside dark tissue, steep maps: Walsh's map of the dark side is that of the bar."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    truth = coils.normalised(torch.stack((torch.exp(1j * 3 * columns), 1.2 + rows * columns + 0j)))
    image = torch.where(columns.abs() < 0.1, 1.0, 0.1)
    images = truth * image
    walsh = coils.walsh_maps(images, 11)
    found = coils.refined_maps(images, walsh, 11)
    error = {name: 1 - (maps.conj() * truth).sum(0).abs() for name, maps in (("walsh", walsh), ("fit", found))}
    inner = (slice(8, 56), slice(8, 56))
    assert error["fit"][inner].max() < 0.1 * error["walsh"][inner].max()
    assert torch.allclose(found.abs().square().sum(0), torch.ones(64, 64), atol=1e-5)
