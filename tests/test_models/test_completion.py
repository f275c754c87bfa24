"""What a prior sees besides the noisy frame, and a step with data consistency."""

import pytest
import torch

from models.completion import State, denoise_consistently
from models.context import Context
from mri.fourier import fft2c
from mri.masks import make_mask
from mri.operators import ForwardModel
from mri.phantom import make_phantom

CONTEXT = Context(offsets=(-1, 1), mean=True, merge=True, own=True, near=True)


def state(frames=4, width=64, seed=0):
    image = make_phantom(frames, 64, seed)[..., :width].to(torch.complex64).contiguous()
    mask = make_mask("uniform", tuple(image.shape), 3, 4)
    return State(image, ForwardModel.of_one_coil(mask), False)


def test_context_images_add_up_and_wrap():
    torch.manual_seed(0)
    image = torch.randn(6, 64, 64, dtype=torch.complex64)
    mask = make_mask("uniform", (6, 64, 64), 3, 4)
    model = ForwardModel.of_one_coil(mask)
    context = CONTEXT(image, model, 0.5)
    assert CONTEXT.images == ["-1", "+1", "mean", "merge", "own", "near"]
    assert context.shape == (6, CONTEXT.channels, 64, 64)
    assert context[0, :2].abs().max() == 0  # nothing before the first frame
    assert CONTEXT(image, model, 0.5, periodic=True)[0, :2].abs().max() > 0
    parts = [torch.complex(context[:, i], context[:, i + 1]) for i in range(0, 12, 2)]
    assert max(part.abs().max() for part in parts[:4]) <= 10 + 1e-4
    rest = fft2c(image - parts[4] - parts[5]).abs() > 1e-4  # R = 3: own and both neighbours have every line
    assert not rest[1:-1].any() and rest[0].any()
    assert Context.from_mapping(CONTEXT.to_dict()) == CONTEXT and Context().channels == 0
    assert Context()(image, model, 0.5).shape == (6, 0, 64, 64)


def test_merge_is_the_nearest_measured_sample():
    image = torch.arange(1.0, 5)[:, None, None] * torch.ones(4, 32, 32, dtype=torch.complex64)
    mask = make_mask("uniform", (4, 32, 32), 2, 0)
    merge = Context(merge=True)(image, ForwardModel.of_one_coil(mask), 1e3)  # far from the limit
    # half of the lines of frame 1 come from the mean of frames 0 and 2, which is frame 1
    assert merge[1].abs().max() < 1e-6 and merge[3].abs().max() > 1e-4


def test_scans_of_one_pass_stay_apart():
    """Each is denoised as it would be alone, with its own σ and neighbours; what was measured stays."""
    states, sigmas = [state(seed=1), state(5, 32, 2), state(3, seed=3)], [0.1, 0.2, 0.3]

    def mixing(x, sigma, neighbours):
        assert neighbours.shape == (2, len(x))
        return x[neighbours[0], :2] - 2 * x[neighbours[1], :2] + sigma[:, None, None, None]

    together = denoise_consistently(mixing, states, CONTEXT, sigmas)
    for before, sigma, found in zip(states, sigmas, together, strict=True):
        (alone,) = denoise_consistently(mixing, [before], CONTEXT, [sigma])
        assert torch.allclose(alone.image, found.image, atol=1e-6)
        assert not torch.allclose(found.image, before.image, atol=1e-3)
        mask = before.model.mask
        assert torch.allclose(fft2c(found.image)[mask], fft2c(before.image)[mask], atol=1e-5)


def test_the_network_is_given_no_smaller_noise_level_than_it_was_trained_for():
    seen = []

    def score(x, sigma, neighbours):
        seen.append(sigma[0].item())
        return torch.zeros_like(x[:, :2])

    denoise_consistently(score, [state()], CONTEXT, [0.01], lowest=0.1)
    denoise_consistently(score, [state()], CONTEXT, [0.3], lowest=0.1)
    assert seen == pytest.approx([0.1, 0.3])
