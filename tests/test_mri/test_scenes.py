"""Synthetic scenes: how they move, and which scans are called periodic."""

import pytest
import torch

from mri import photographs, scenes
from mri.draw import Draw
from mri.fourier import fft2c
from mri.masks import make_mask
from mri.phantom import make_phantom
from mri.scenes import make_scene
from mri.view_sharing import looks_periodic
from utils.errors import InputError


def test_scenes_are_seeded_differ_and_move():
    images = [make_scene(6, 48, 64, seed)[0] for seed in (0, 1, 0)]
    assert images[0].shape == (6, 48, 64) and images[0].dtype == torch.complex64
    assert torch.equal(images[0], images[2]) and not torch.equal(images[0], images[1])
    assert all(abs(image.abs().max() - 1) < 1e-5 for image in images)
    moving = [make_scene(6, 64, 64, seed)[0] for seed in range(8)]
    assert max((image - image.mean(0)).norm() / image.norm() for image in moving) > 0.05


def test_a_periodic_scene_returns():
    """Of a periodic scene the last frame is no further from the first than neighbours are from each other."""
    for seed in range(30):
        image, periodic = make_scene(12, 48, 48, seed)
        steps = (torch.roll(image.abs(), -1, 0) - image.abs()).flatten(1).norm(dim=1)
        if periodic and steps.max() > 0.3:  # with motion, and without what flickers
            assert steps[-1] <= 1.5 * steps[:-1].max()


@pytest.mark.parametrize("file", photographs.FILES)
def test_photographs_are_installed_and_have_contrast(file):
    image = photographs.photograph(file)
    assert image.dtype == torch.float32 and min(image.shape) >= 256
    assert image.min() == 0 and image.max() == 1 and 0.05 < image.std() < 0.5


def test_parts_of_photographs_are_seeded_and_differ():
    parts = [photographs.part_of_a_photograph(Draw(seed), (96, 128)) for seed in (*range(20), 0)]
    assert all(part.shape == (96, 128) and part.min() >= 0 and part.max() <= 1 for part in parts)
    assert torch.equal(parts[0], parts[-1])
    assert len({round(part.mean().item(), 5) for part in parts}) == 20


def test_a_photograph_that_is_not_there_is_said():
    with pytest.raises(InputError, match="none.png is missing: scikit-image was installed without its images"):
        photographs.photograph("none.png")


def test_half_of_the_tissues_are_photographs(monkeypatch):
    marked, drawn = [], []
    tissue, part = scenes._tissue, scenes.part_of_a_photograph
    monkeypatch.setattr(scenes, "part_of_a_photograph", lambda *what: marked.append(1) or part(*what))
    monkeypatch.setattr(scenes, "_tissue", lambda *what: drawn.append(1) or tissue(*what))
    for seed in range(40):
        make_scene(1, 32, 32, seed)
    assert 0.35 < len(marked) / len(drawn) < 0.65


@pytest.mark.parametrize("shape", [(4, 63, 64), (4, 64, 16), (0, 64, 64)])
def test_scenes_that_cannot_be_made(shape):
    with pytest.raises(InputError, match="cannot be made"):
        make_scene(*shape)


@pytest.mark.parametrize("pattern,acs", [("uniform", 8), ("radial", 0)])
def test_periodic_scans_are_told_from_others(pattern, acs):
    image = make_phantom(16, 64, 0).to(torch.complex64)
    mask = make_mask(pattern, (16, 64, 64), 4, acs)
    assert looks_periodic((fft2c(image) * mask)[:, None], mask)
    part = image[:9]  # half a heartbeat
    assert not looks_periodic((fft2c(part) * mask[:9])[:, None], mask[:9])


def test_nothing_shared_is_not_called_periodic():
    image = make_phantom(16, 64, 0).to(torch.complex64)
    mask = make_mask("uniform", (16, 64, 64), 4, 0)
    assert not looks_periodic((fft2c(image) * mask)[:, None], mask)
