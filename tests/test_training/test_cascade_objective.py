"""Objective `cascade`: simulated scans, and a network trained through the sampler."""

from itertools import islice

import pytest
import torch
from tqdm import tqdm

from configs.ve import cascade as cascade_config
from models.prior import load_prior, load_shipped, shipped
from mri.lowrank.along_motion import motion_low_rank
from reconstruction.in_turn import ERROR_SHARE, follow_priors, schedule_with_priors
from reconstruction.optimization_unit import OptimizationUnit, images_of
from reconstruction.settings import OUSettings
from run_lib import Job
from tests.commands import ROOT, TINY, command
from training import settings as parts
from training.cascade import IMAGE_NOISE, PASSES, STEEPEST, Learner, SimulatedRun, ThroughTheCascade
from training.loop import new_network
from utils.errors import InputError

KINDS = (parts.PseudoReferenceSettings, parts.ModelSettings, parts.TrainingSettings, parts.OptimSettings)


def run_settings(**training):
    config = cascade_config.get_config()
    config.model.update({"nf": 8, "ch_mult": (1, 2), "image_size": 32})
    config.training.update({"batch_size": 6, "scene_frames": 6, "columns": 32, **training})
    job = Job.from_config(config)
    return parts.RunSettings(0, job.intake, job.prepare, *(kind.from_mapping(config[kind.part]) for kind in KINDS))


def gradient_of(network):
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def a_draw(objective, seed):
    return objective.draw(torch.Generator().manual_seed(seed))


def test_scans_are_seeded_and_agree_with_their_images():
    objective = ThroughTheCascade(run_settings(), [], "global")
    noises, of_images = set(), set()
    for seed in range(28):
        scan = a_draw(objective, seed)
        if seed < 4:
            assert all(torch.equal(one, other) for one, other in zip(scan, a_draw(objective, seed), strict=True))
        assert scan.clean.shape == (6, 32, 32) and scan.mask.shape == (6, 32, 32) and 0.5 < scan.clean.abs().max() < 2
        problem = scan.problem()
        residual = problem.model.forward(scan.clean) - scan.measured
        noise = (residual.abs().square().sum() / scan.mask.sum()).sqrt().item()
        if problem.noise_known and problem.noise_std == 0:  # the images may bring noise along
            assert noise <= 1.1 * max(IMAGE_NOISE) * scan.clean.abs().max()
            of_images.add(noise > 1e-5)
        else:
            assert noise < 1e-5 or (noise <= 1.5 * problem.noise_bound and noise <= 1.1 * problem.noise_std)
            noises.add(noise > 1e-5)
    assert noises == of_images == {True, False}


@pytest.mark.parametrize("name", ["global", "local"])
@pytest.mark.parametrize("followed", [True, False])
def test_the_run_is_that_of_the_unit_and_a_new_network_changes_nothing(name, followed, monkeypatch):
    monkeypatch.setattr("training.cascade.schedule_with_priors", lambda schedule, problem, error: schedule)
    objective = ThroughTheCascade(run_settings(), [], name)
    scan = a_draw(objective, 1)._replace(followed=torch.full((6,), followed))
    run = objective.simulated(scan)
    unit = OptimizationUnit(OUSettings(operator="motion"), bar=tqdm(total=1, disable=True))
    assert torch.allclose(run.without[run.schedule.steps - 1], unit.solve(scan.problem()), atol=1e-5)
    network = new_network(run_settings(), objective.context)  # knows nothing yet: its output is zero
    own = run.own_turns()
    states = run.states_before(max(own), network if followed else None)
    for first in own:
        assert torch.allclose(states[first].momentum, run.alone[first].momentum, atol=2e-3)  # rounding grows
    loss = objective.loss(network, scan)
    assert loss.item() == pytest.approx(1, abs=1e-3) and objective.size(scan) == 1
    loss.backward()
    assert network.conv_in.weight.grad is None or network.conv_in.weight.grad.isfinite().all()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_followed_means_with_the_network_in_the_turns_before():
    objective = ThroughTheCascade(run_settings(), [], "local")
    run = objective.simulated(a_draw(objective, 1))
    own = run.own_turns()

    def score(x, levels, neighbours):
        return -x[:, :2]

    states, learner = run.states_before(own[-1], score), Learner(score, objective.context)
    changed = [(states[first].momentum - run.alone[first].momentum).norm().item() for first in own]
    assert changed[0] > 0 and min(run.turns) < own[0]  # the turn of GM comes before
    # the rest of such a run is the same from any of its states
    image = run.go_on(learner, states[own[-1]], own[-1])
    *_, last = run.steps(learner, states[own[0]], own[0])
    assert torch.equal(images_of(run.problem, last), image)
    assert set(states) == set(run.turns) and set(run.states_before(own[0], score)) == {*own[:1], min(run.turns)}


def test_a_partner_takes_the_other_turns_and_is_not_trained():
    alone = ThroughTheCascade(run_settings(), [], "global")
    both = ThroughTheCascade(run_settings(partner=str(shipped("local", "cascade"))), [], "global")
    scan, network = a_draw(both, 1), new_network(run_settings(), both.context)  # its output is zero
    run = both.simulated(scan)
    first = run.own_turns()[0]
    learner = Learner(network, both.context)
    reached = run.go_on(learner, run.alone[first], first)
    assert not torch.equal(reached, alone.simulated(scan).go_on(learner, run.alone[first], first))
    by_hand = follow_priors([learner, load_shipped("local", "cascade")], run.schedule, run.problem.periodic,
                            run.error_std)  # fmt: skip
    steps = motion_low_rank(
        run.alone[first], run.problem.model, run.problem.measured, OUSettings().motion_patches,
        schedule_with_priors(run.schedule, run.problem, run.left), run.problem.periodic, 0, by_hand, first,
    )  # fmt: skip
    states = list(islice(steps, run.last_step(first) - first + 1))
    assert torch.allclose(images_of(run.problem, states[-1]), reached, atol=1e-5)
    assert both.partner.sigma_max == load_shipped("local", "cascade").sigma_max  # skipped above
    both.loss(network, scan).backward()
    through = gradient_of(network)
    assert through.abs().max() > 0 and all(p.grad is None for p in both.partner.network.parameters())
    change = both.partner.change
    object.__setattr__(both.partner, "change", lambda *given: change(*given).detach())
    network.zero_grad()
    both.loss(network, scan).backward()
    assert not torch.allclose(gradient_of(network), through, rtol=1e-3, atol=0)  # through the partner


def test_unsuitable_partners_are_refused():
    gm, lm, published = shipped("global", "cascade"), shipped("local", "cascade"), shipped("local", "published")
    with pytest.raises(InputError, match="global is the one being trained; give a local model"):
        ThroughTheCascade(run_settings(partner=str(gm)), [], "global")
    with pytest.raises(InputError, match="is not a prior of moving scenes"):
        ThroughTheCascade(run_settings(partner=str(published)), [], "global")
    with pytest.raises(InputError, match="objective cascade only"):
        run_settings(partner=str(lm), objective="scenes")


def test_the_loss_is_the_mean_of_an_early_and_a_late_entry():
    objective = ThroughTheCascade(run_settings(), [], "local")

    def score(x, levels, neighbours):
        return -0.1 * x[:, :2] / levels[:, None, None, None] ** 2  # D(x; σ) = 0.9 x

    losses = []
    for followed in (True, False):
        scan = a_draw(objective, 1)._replace(followed=torch.full((6,), followed))
        scan = scan._replace(entries=torch.tensor([[0.0, 0.99]]).expand(6, 2))
        run = objective.simulated(scan)
        own = run.own_turns()
        states = run.states_before(own[-1], score) if followed else run.alone
        expected = [run.share(score, states[first], first) for first in (own[0], own[-1])]
        losses.append(objective.loss(score, scan).item())
        assert losses[-1] == pytest.approx(sum(share.item() for share in expected) / 2, rel=1e-4)
        assert expected[0] != expected[1]
    assert losses[0] != pytest.approx(losses[1], rel=1e-2)
    # GM has a single turn in a short run: both entries are the same, and it is passed once
    alone = ThroughTheCascade(run_settings(), [], "global")
    run = alone.simulated(scan)
    own = run.own_turns()
    if len(own) == 1:
        once = run.share(score, run.alone[own[0]], own[0]).item()
        assert alone.loss(score, scan).item() == pytest.approx(once, rel=1e-4)


def test_the_first_noise_level_is_raised_as_held_out_samples_would():
    objective = ThroughTheCascade(run_settings(), [], "local")
    scan = a_draw(objective, 1)
    estimates = (torch.full((6,), by) for by in (1.0, 2.0))
    once, twice = (SimulatedRun(scan._replace(estimate=by), objective.context, 0.2, "local") for by in estimates)
    problem, half = scan.problem(), once.schedule.steps // 2
    unit = OptimizationUnit(OUSettings(operator="motion"), bar=tqdm(total=1, disable=True))
    halfway = unit.solved(problem).halfway.low_rank
    assert half < min(once.turns) + 2
    error = (halfway - scan.clean).abs().square().mean().item() ** 0.5 / 2**0.5
    assert once.error_std == pytest.approx(error, rel=1e-3)
    assert twice.error_std == pytest.approx(2 * once.error_std)
    assert SimulatedRun(scan._replace(estimate=torch.zeros(6)), objective.context, 0.2, "local").error_std == 0
    assert SimulatedRun(scan, objective.context, 1e-4, "local").error_std <= 1e-4 / ERROR_SHARE


@pytest.mark.parametrize("weight", [1.0, 0.01])
def test_the_gradient_of_a_pass_is_limited(weight):
    """Whatever the share is multiplied by: the number of scans in a batch, of parts or processes changes nothing."""
    objective = ThroughTheCascade(run_settings(), [], "local")
    image = torch.full((6, 32, 32), 0.5 + 0.5j)

    def slope(steepness, sigma=0.01):
        factor = torch.zeros((), requires_grad=True)
        learner = Learner(lambda x, levels, neighbours: factor * x[:, :2], objective.context)
        share = steepness * learner.change(image, sigma, False).real.sum()
        share.register_hook(learner.weight.append)
        (weight * share).backward()
        return factor.grad.item() / weight

    small, size = slope(1e-4), image.numel() ** 0.5
    assert slope(1e-3) == pytest.approx(10 * small, rel=1e-4)
    assert slope(1e6) == pytest.approx(slope(1e4), rel=1e-4)
    assert slope(1e4) == pytest.approx(small * STEEPEST / (0.01 * 1e-4 * size), rel=1e-3)


def test_it_learns_to_lower_the_error_of_a_scan():
    objective = ThroughTheCascade(run_settings(), [], "global")
    scan = a_draw(objective, 2)
    network = new_network(run_settings(), objective.context)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = objective.loss(network, scan)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses) < 0.97 * losses[0]


def test_the_gradient_passes_the_steps_between():
    """The first pass of the network has a gradient through the OU's steps and the later passes."""
    objective = ThroughTheCascade(run_settings(), [], "global")
    run = SimulatedRun(a_draw(objective, 3), objective.context, 0.2, objective.name)
    first = run.own_turns()[0]
    gains = []

    def score(x, levels, neighbours):
        gains.append(torch.ones((), requires_grad=True))
        return -gains[-1] * x[:, :2]

    run.share(score, run.alone[first], first).backward()
    assert len(gains) == PASSES and all(gain.grad.abs() > 0 for gain in gains)


def test_too_few_frames_are_refused():
    with pytest.raises(InputError, match="4 frames or more; raise training.batch_size"):
        ThroughTheCascade(run_settings(batch_size=3), [], "global")


def test_the_example_is_a_picture():
    objective = ThroughTheCascade(run_settings(), [], "local")
    words, picture = objective.example(new_network(run_settings(), objective.context), torch.device("cpu"))
    assert "without" in words and picture.shape == (1, 96, 96) and 0 <= picture.min() and picture.max() <= 1


def test_training_resumes_exactly_and_the_prior_is_one_of_scenes(tmp_path):
    flags = [flag for flag in TINY if "phantoms" not in flag and "batch_size" not in flag and "n_iters" not in flag]
    flags += ["--config.training.scene_frames=6", "--config.training.batch_size=6", "--config.training.columns=32"]
    flags = [f"--config={ROOT / 'configs/ve/cascade.py'}", *flags, "--model=local", "--config.optim.schedule=constant"]
    command("main.py", *flags, "--workdir=once", "--config.training.n_iters=2", cwd=tmp_path)
    for steps in (1, 2):
        command("main.py", *flags, "--workdir=twice", f"--config.training.n_iters={steps}", cwd=tmp_path)
    one, other = (load_prior(tmp_path / name / "local" / "model.safetensors") for name in ("once", "twice"))
    assert one.of_scenes and one.context.offsets == (-2, -1, 1, 2)
    assert all(torch.equal(a, b) for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True))
