"""Adaptation of the priors to a scan by its own samples."""

from dataclasses import replace

import pytest
import torch

import adaptation
from adaptation import adapt_priors
from configs.ve.cpu_demo import get_config
from models.context import Context
from models.ncsnpp import NCSNpp
from mri.consistency import scan_scale
from mri.fourier import fft2c
from mri.holdout import hide, hide_for_training
from mri.masks import acs_rows, make_mask
from mri.phantom import make_phantom
from mri.weighting import KspaceWeight
from optimization_unit import with_adapted_noise_floor
from priors import Prior
from sampling import reconstruct
from utils.errors import InputError

SHAPE = (8, 64, 64)


@pytest.fixture(scope="module")
def scan():
    kspace, mask = fft2c(make_phantom(8, 64, 5).to(torch.complex64)), make_mask("uniform", SHAPE, 4, 8)
    return torch.where(mask, kspace, 0) / scan_scale(kspace, mask), mask


def untrained(role):
    """A network that changes nothing, as one is at the beginning of its training."""
    torch.manual_seed(0)
    context = Context(offsets=(-1, 1), merge=True)
    network = NCSNpp(image_size=64, in_channels=2 + context.channels, nf=8, ch_mult=(1, 2), num_res_blocks=1,
                     attn_resolutions=(), sigma_min=1e-4, sigma_max=1.0, centered=True)  # fmt: skip
    network = network.eval().requires_grad_(False)
    return Prior(network, KspaceWeight(0.0, 1.0, 1.0), f"{role}.safetensors", context=context, role=role)


def settings(**sampling):
    config = get_config()
    config.ou.operator, config.ou.llr_iterations = "llr", 20
    config.data.periodic = True
    config.sampling.update({"adapt_steps": 60, **sampling})
    return config


def test_an_untrained_prior_learns_from_the_scan_alone_and_repeatably(scan, monkeypatch):
    monkeypatch.setattr(adaptation, "RATE", 3e-3)
    results = []
    for _ in range(2):
        priors = [untrained("global")]
        before = {name: value.clone() for name, value in priors[0].network.state_dict().items()}
        adapted, records = adapt_priors(*scan, priors, settings(adapt_margin=0.0), 0)
        assert records[0]["kept"] and records[0]["error_after"] < records[0]["error_before"] <= 1
        assert records[0]["steps"] == 60
        assert all(torch.equal(value, before[name]) for name, value in priors[0].network.state_dict().items())
        results.append(adapted[0].network.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert any(not torch.equal(results[0][name], before[name]) for name in before)


def test_what_does_not_help_enough_is_not_kept(scan):
    priors = [untrained("global"), untrained("local")]
    adapted, records = adapt_priors(*scan, priors, settings(adapt_steps=20, adapt_margin=0.9), 0)
    assert [one is prior for one, prior in zip(adapted, priors, strict=True)] == [True, True]
    assert [record["kept"] for record in records] == [False, False]


def test_seconds_end_the_adaptation(scan, capsys):
    _, records = adapt_priors(*scan, [untrained("global")], settings(adapt=1e-3, adapt_steps=0), 0)
    assert records[0]["steps"] == 0 and not records[0]["kept"]
    assert "no time was left to train" in capsys.readouterr().out


def test_nothing_to_hide_is_said(scan, capsys):
    kspace, _ = scan
    mask = make_mask("uniform", SHAPE, 4, 0)
    priors = [untrained("global")]
    assert adapt_priors(torch.where(mask, kspace, 0), mask, priors, settings(), 0) == (priors, [])
    assert "too few samples to hide" in capsys.readouterr().out


def test_reconstruction_records_the_adaptation_and_refuses_priors_without_context(scan):
    config = settings(adapt_steps=20)
    priors = untrained("global"), untrained("local")
    result = reconstruct(*scan, *priors, config)
    assert [record["prior"] for record in result.settings["adaptation"]] == ["global", "local"]
    plain = [replace(prior, context=None) for prior in priors]
    with pytest.raises(InputError, match="need priors with context"):
        reconstruct(*scan, *plain, config)
    config.ou.after = "never"
    with pytest.raises(InputError, match="leave out ou.after"):
        reconstruct(*scan, *priors, config)
    config.ou.after, config.sampling.adapt = "both", -1.0
    with pytest.raises(InputError, match="0 or more"):
        reconstruct(*scan, *priors, config)


def test_another_noise_floor_is_taken_only_where_hidden_samples_gain_enough(scan, monkeypatch):
    config = settings()
    config.ou.noise_floor = 0.3  # far too much is thrown away
    found = with_adapted_noise_floor(config, *scan, 0)
    assert found.ou.noise_floor < 0.01 and config.ou.noise_floor == 0.3
    monkeypatch.setattr("optimization_unit.FLOOR_MARGIN", 0.99)
    assert with_adapted_noise_floor(config, *scan, 0).ou.noise_floor == 0.3
    kspace, _ = scan
    mask = make_mask("uniform", SHAPE, 4, 0)
    assert with_adapted_noise_floor(config, torch.where(mask, kspace, 0), mask, 0) is config


def test_adaptation_after_the_motion_was_followed(scan):
    config = settings(adapt_steps=2)
    config.ou.operator, config.ou.motion_patch, config.ou.motion_steps, config.ou.motion_taken = "motion", 6, 4, 3
    result = reconstruct(*scan, untrained("global"), untrained("local"), config)
    assert [record["steps"] for record in result.settings["adaptation"]] == [2, 2]
    assert result.settings["config"]["ou"]["operator"] == "motion"


def test_any_size_and_a_partial_echo_can_be_adapted_to():
    """100 is not divisible by 8; of a partial echo the columns of the image are no scans of their own."""
    kspace, mask = fft2c(make_phantom(5, 100, 5).to(torch.complex64)), make_mask("uniform", (5, 100, 100), 4, 8)
    mask[..., :30] = False
    measured = torch.where(mask, kspace, 0) / scan_scale(kspace, mask)
    _, records = adapt_priors(measured, mask, [untrained("global"), untrained("local")], settings(adapt_steps=2), 0)
    assert [record["steps"] for record in records] == [2, 2]


def test_validation_samples_are_never_learned_from(scan):
    """What is hidden for training lies within what the validation keeps."""
    mask = scan[1]
    kept, hidden = hide(mask)
    for seed in range(4):
        left, learned = hide_for_training(kept, seed)
        assert learned.any() and not (learned & hidden).any() and not (left & hidden).any()
        assert torch.equal(left | learned, kept) and not (left & learned).any()
        outside = ~acs_rows(mask)
        assert learned[:, outside].any() and learned[:, ~outside].any()
    radial = make_mask("radial", SHAPE, 6)
    left, learned = hide_for_training(radial, 0)
    assert learned.any() and torch.equal(left | learned, radial)
