"""Objective `scenes`: clean moving scenes with noise, and what a network learns of them."""

import numpy as np
import pytest
import torch

from datasets import CleanScenes
from losses import scene_loss
from models.completion import State
from models.context import Context
from models.prior import load_prior
from mri.fourier import fft2c
from mri.masks import make_mask
from mri.operators import ForwardModel
from mri.phantom import make_phantom
from tests.commands import ROOT, TINY, command

CONTEXT = Context((-1, 1), mean=True)


def draw(seed, **changes):
    settings = {"images": [], "frames": 8, "crop": 48, "sigmas": (0.01, 0.1)} | changes
    return CleanScenes(**settings).draw(torch.Generator().manual_seed(seed))


def test_scenes_are_seeded_cut_and_noisy_as_they_say():
    levels = []
    for seed in range(12):
        one, again = draw(seed), draw(seed)
        assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
        assert one.clean.shape[1:] == (48, 48) and len(one.clean) <= 8 and one.clean.abs().max() < 1.4
        noise = torch.view_as_real(one.noisy - one.clean)
        sigma = one.sigma[0].item()
        assert 0.01 <= sigma <= 0.1 and noise.std().item() == pytest.approx(sigma, rel=0.2)
        levels.append(sigma)
        empty = fft2c(one.noisy - one.clean).abs() < 1e-5  # noise on some lines only, half of the time
        assert empty.double().mean() < 0.9
    assert max(levels) > 3 * min(levels)
    assert not torch.equal(draw(0).clean, draw(1).clean)


def test_own_images_are_cut_and_turned_but_not_changed():
    image = make_phantom(12, 64, 3).to(torch.complex64)
    one = draw(5, images=[(image, True)], frames=6)
    assert one.clean.shape == (6, 48, 48) and not one.periodic.any()  # a part of a heartbeat is no cycle
    gain = one.clean.abs().max() / image.abs().max()
    assert 0.2 < gain < 1.3


@pytest.mark.parametrize("shape", [(48, 60), (96, 50), (64, 40)])
def test_own_images_need_not_be_square(shape):
    image = make_phantom(6, 96, 3)[:, : shape[0], : shape[1]].to(torch.complex64)
    for seed in range(12):
        one = draw(seed, images=[(image, True)], crop=64)
        assert one.noisy.shape == one.clean.shape and set(one.clean.shape[1:]) == {min(n, 64) for n in shape}


def test_loss_of_no_knowledge_is_one_and_of_the_truth_nothing():
    one = draw(3)
    model = ForwardModel.of_one_coil(torch.zeros(one.noisy.shape, dtype=torch.bool))
    state, sigma = State(one.noisy, model, False), one.sigma[0].item()

    def loss(score):
        return scene_loss(score, [state], [one.clean], [sigma], CONTEXT).item() / (2 * one.clean.numel())

    none = loss(lambda x, levels, neighbours: torch.zeros(len(x), 2, *x.shape[2:]))
    exact = torch.view_as_real((one.clean - one.noisy) / sigma**2).permute(0, 3, 1, 2)
    assert none == pytest.approx(1, abs=0.3) and loss(lambda x, levels, neighbours: exact) < 1e-6


def test_training_on_scenes_and_on_own_scans_and_using_them(tmp_path):
    flags = [flag for flag in TINY if "phantoms" not in flag and "batch_size" not in flag]
    flags += ["--config.training.scene_frames=4", "--config.training.batch_size=8", "--config.training.columns=32"]
    flags = [f"--config={ROOT / 'configs/ve/scenes.py'}", *flags, "--config.training.n_iters=2"]
    command("main.py", *flags, cwd=tmp_path)
    paths = [tmp_path / "exp" / name / "model.safetensors" for name in ("global", "local")]
    priors = [load_prior(path) for path in paths]
    assert all(prior.of_scenes for prior in priors)
    assert priors[0].context.mean and priors[1].context.offsets == (-2, -1, 1, 2) and not priors[1].context.own
    image = make_phantom(6, 64, 3).to(torch.complex64)
    kspace = torch.where(make_mask("uniform", tuple(image.shape), 4, 8), fft2c(image), 0)
    np.savez(tmp_path / "scan.npz", kspace=kspace.numpy(), image=image.numpy())  # the truth beside it is not learned
    learned = command("main.py", *flags, "--model=global", "--workdir=own", "--config.data.path=scan.npz",
                      "--config.data.key=kspace", "--config.data.frames=0", cwd=tmp_path)  # fmt: skip
    assert "training on its pseudo-references" in learned.stdout + learned.stderr
    done = command("PCsampling_demo_svd.py", "--data", "scan.npz", "--key", "kspace", "--out", "out",
                   "--checkpoint_global", paths[0], "--checkpoint_local", paths[1], cwd=tmp_path)  # fmt: skip
    assert "priors: GM" in done.stdout
