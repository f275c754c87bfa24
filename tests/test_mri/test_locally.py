"""Locally low rank against explicit singular value decompositions."""

import pytest
import torch

from mri.fourier import ifft2c
from mri.lowrank.locally import LocallyLowRank, fista_locally_low_rank, shrink_patches
from mri.masks import make_mask
from mri.operators import ForwardModel
from utils.errors import InputError


def images(frames, height, width, dtype=torch.complex64, seed=0):
    """Smooth random images that change with time in one way: the spectrum has a knee."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, height, width, dtype=torch.complex128, generator=generator)
    ky = torch.arange(height) - height // 2
    kx = torch.arange(width) - width // 2
    decay = torch.exp(-(ky[:, None] ** 2 + kx[None] ** 2).sqrt() / 3)
    beat = torch.cos(2 * torch.pi * torch.arange(frames) / frames)[:, None, None]
    return ifft2c((noise[0] + 0.5 * beat * noise[1]) * decay).to(dtype)


def test_patches_against_svd():
    image = images(5, 12, 16, torch.complex128)
    threshold = 0.05 * image.abs().max().item()
    expected = image.clone()
    for top in range(0, 12, 4):
        for left in range(0, 16, 4):
            block = image[:, top : top + 4, left : left + 4].reshape(5, 16)
            u, s, vh = torch.linalg.svd(block, full_matrices=False)
            shrunk = (u * (s - threshold).clamp(min=0)) @ vh
            expected[:, top : top + 4, left : left + 4] = shrunk.reshape(5, 4, 4)
    assert torch.allclose(shrink_patches(image, threshold, 4), expected, atol=1e-9)
    shifted = shrink_patches(torch.roll(image, (3, 1), (1, 2)), threshold, 4, (-3, -1))
    assert torch.allclose(shifted, torch.roll(expected, (3, 1), (1, 2)), atol=1e-9)


def test_patches_that_do_not_tile_the_image_keep_its_shape():
    image = images(3, 10, 14)
    assert torch.allclose(shrink_patches(image, 0.0, 4), image, atol=1e-5)
    with pytest.raises(InputError, match="does not fit"):
        shrink_patches(image, 0.1, 11)


def test_shifts_are_seeded_and_patches_take_turns():
    image = images(3, 16, 16)
    floor = 0.02 * image.abs().max().item()
    first, second = (LocallyLowRank(floor, (4, 6), seed=1) for _ in range(2))
    assert torch.equal(first(image), second(image)) and torch.equal(first(image), second(image))
    assert not torch.equal(first(image), LocallyLowRank(floor, (4, 6), seed=1)(image))


def test_threshold_is_the_largest_singular_value_of_noise():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(16, 64, 64, dtype=torch.complex64, generator=generator)
    for patch in (4, 8, 16):
        left = [LocallyLowRank(1.0, (patch,))(noise, gain).norm() / noise.norm() for gain in (1.2, 0.8)]
        assert left[0] < 0.01 < 0.05 < left[1]


@pytest.mark.parametrize("coils", [1, 3])
def test_fista_removes_aliasing_and_keeps_the_data(coils):
    image = images(6, 24, 24)
    mask = make_mask("uniform", (6, 24, 24), 3, acs=4)
    maps = torch.ones(1, 24, 24, dtype=torch.complex64)
    if coils > 1:
        maps = images(coils, 24, 24, seed=3) + 0.1
        maps = maps / maps.abs().square().sum(0).sqrt()
    model = ForwardModel(mask, maps)
    measured = model.forward(image)
    start = model.adjoint(measured)
    floor = 0.002 * image.abs().max().item()
    result = fista_locally_low_rank(start, model, measured, floor, (4,), 200)
    annealed = fista_locally_low_rank(start, model, measured, floor, (4,), 200, anneal=16.0)
    assert not torch.equal(annealed, result)
    for found in (result, annealed):
        assert model.residual(found, measured) < (1e-6 if coils == 1 else 0.02)
        assert (found - image).norm() < 0.8 * (start - image).norm()
