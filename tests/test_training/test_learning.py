"""SDE, loss, optimizer, average: what training stands on."""

import math

import pytest
import torch

from losses import ExponentialMovingAverage, draw_noise, dsm_loss, make_optimizer, optimize
from sde_lib import VESDE
from training.settings import OptimSettings
from utils.errors import InputError


def test_noise_levels():
    sde = VESDE(0.01, 4.0, 1000)
    assert sde.sigma(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0.01, 0.2, 4.0])
    sigmas = sde.discrete_sigmas()
    assert len(sigmas) == 1000 and sigmas[0] == pytest.approx(0.01) and sigmas[-1] == pytest.approx(4)
    assert torch.allclose(sigmas.log().diff(), torch.tensor(math.log(400) / 999), rtol=1e-2)
    assert torch.allclose(sigmas, sde.sigma(torch.linspace(0, 1, 1000)), rtol=1e-4)


@pytest.mark.parametrize("low,high,count", [(0, 1, 10), (2, 1, 10), (0.1, 1, 1)])
def test_bad_noise_levels(low, high, count):
    with pytest.raises(InputError):
        VESDE(low, high, count)


def test_loss_of_no_knowledge_is_one_and_of_the_exact_score_its_bayes_value():
    sde = VESDE(0.01, 4.0, 1000)
    x = 0.5 * torch.randn(512, 2, 8, 8, generator=torch.Generator().manual_seed(0))

    def exact(noisy, sigma):  # score of N(0, 0.25 + σ²)
        return -noisy / (0.25 + sigma[:, None, None, None] ** 2)

    def loss(score):
        batch = draw_noise(x, sde, torch.Generator().manual_seed(1))
        return dsm_loss(score, batch).item() / x.numel()

    assert loss(lambda noisy, sigma: torch.zeros_like(noisy)) == pytest.approx(1, abs=0.01)
    t = torch.linspace(0, 1, 10001)
    bayes = (0.25 / (0.25 + sde.sigma(t) ** 2)).mean().item()
    assert loss(exact) == pytest.approx(bayes, abs=0.02)
    assert loss(lambda noisy, sigma: 1.3 * exact(noisy, sigma)) > loss(exact)


def test_loss_is_seeded():
    sde, x = VESDE(0.01, 4.0, 10), torch.ones(2, 2, 4, 4)
    batches = [draw_noise(x, sde, torch.Generator().manual_seed(7)) for _ in range(2)]
    losses = [dsm_loss(lambda n, s: -n, batch) for batch in batches]
    assert losses[0] == losses[1]


def test_average_follows_the_published_rule():
    parameter = torch.zeros(3)
    ema = ExponentialMovingAverage([parameter], 0.9)
    expected = torch.zeros(3)
    for n in range(1, 60):
        parameter.fill_(n)
        ema.update([parameter])
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    assert torch.allclose(ema.shadow_params[0], expected)
    copy = ExponentialMovingAverage([parameter], 0.5)
    copy.load_state_dict(ema.state_dict())
    target = torch.zeros(3)
    copy.copy_to([target])
    assert torch.allclose(target, expected)


def test_optimizer_warms_up_and_clips():
    optim = OptimSettings()
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = make_optimizer([parameter], optim.lr)
    for step, rate in ((0, 2e-4 / 5000), (2499, 1e-4), (10000, 2e-4)):
        parameter.grad = torch.full((4,), 100.0)
        norm = optimize(optimizer, [parameter], optim, step)
        assert norm == pytest.approx(200)
        assert parameter.grad.norm().item() == pytest.approx(1, rel=1e-4)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_cosine_schedule_falls_to_zero():
    optim = OptimSettings(schedule="cosine", warmup=1)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer, rates = make_optimizer([parameter], optim.lr), []
    for step in (0, 50, 100):
        parameter.grad = torch.ones(1)
        optimize(optimizer, [parameter], optim, step, 100)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([2e-4, 1e-4, 0])
