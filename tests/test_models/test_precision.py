"""Networks in bfloat16 and compiled, as the samplers run them."""

import math

import pytest
import torch

from models import precision
from models.context import neighbours
from models.prior import load_prior, shipped
from mri.metrics import evaluate
from reconstruction import in_turn
from reconstruction.prepare import prepare
from reconstruction.settings import PRECISIONS, OUSettings, SamplingSettings
from sampling import reconstruct_problem
from tests.conftest import simple_scan
from utils.errors import InputError


@pytest.fixture(scope="module")
def scan():
    return simple_scan(6, 64, seed=3)


@pytest.fixture(autouse=True)
def always_followed(monkeypatch):
    monkeypatch.setattr(in_turn, "MARGIN", -math.inf)
    monkeypatch.setattr(in_turn, "MUCH", -math.inf)


def reconstructed(scan, **sampling):
    ou = OUSettings(motion_steps=8)
    return reconstruct_problem(prepare(scan[0]), (None, None), ou, SamplingSettings(sampler="cascade", **sampling))


def test_bfloat16_costs_less_than_a_twentieth_of_a_decibel(scan):
    results = {name: reconstructed(scan, precision=name) for name in PRECISIONS}
    exact, short = (evaluate(results[name].image, scan[1].image) for name in PRECISIONS)
    assert abs(exact["psnr"] - short["psnr"]) < 0.05 and abs(exact["nmse"] / short["nmse"] - 1) < 0.02
    assert results["bf16"].image.dtype == torch.complex64
    assert not torch.equal(results["bf16"].image, results["fp32"].image)
    assert min(results["fp32"].settings["calibration"]["step_sizes"]) > 0  # the networks were used


def test_the_networks_are_compiled_and_give_the_same(monkeypatch, scan):
    """With the backend that needs no compiler: what is traced is what runs."""
    compile, traced = torch.compile, []

    def with_eager(network, **settings):
        traced.append(settings)
        return compile(network, backend="eager", dynamic=settings["dynamic"])

    plain = reconstructed(scan)
    monkeypatch.setattr(torch, "compile", with_eager)
    assert torch.allclose(reconstructed(scan, compile=True).image, plain.image, atol=1e-5)
    assert len(traced) == 2  # GM and LM


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of what PyTorch imports
def test_graphs_give_what_their_next_replay_cannot_change(monkeypatch):
    """On a GPU the output of a CUDA graph is the same memory at every replay."""
    memory = torch.zeros(3)

    def compile(network, mode, dynamic):
        assert mode == "reduce-overhead" and not dynamic
        return lambda x, sigma: memory.copy_(x)

    monkeypatch.setattr(torch, "compile", compile)
    run = precision.compiled(torch.nn.Identity(), "cuda")
    first = run(torch.ones(3), torch.ones(1))
    run(torch.zeros(3), torch.ones(1))
    assert torch.equal(first, torch.ones(3))


def test_unknown_precision(scan):
    with pytest.raises(InputError, match=r"'fp8' is unknown; choose fp32 or bf16"):
        reconstructed(scan, precision="fp8")


def test_a_prior_in_bfloat16_keeps_its_weights(scan):
    prior = load_prior(shipped("global", "cascade"), precision="bf16")
    assert all(parameter.dtype == torch.float32 for parameter in prior.network.parameters())
    channels = 2 + prior.context.channels
    x = 0.1 * torch.randn(1, channels, 96, 96, generator=torch.Generator().manual_seed(0))
    levels = torch.full((1,), 0.05)
    score = prior._run(x, levels, neighbours(1, True))
    assert score.dtype == torch.float32
    exact = load_prior(shipped("global", "cascade"))._run(x, levels, neighbours(1, True))
    assert 0 < (score - exact).norm() / exact.norm() < 0.1
