"""Priors adapted to the scan at hand, by samples hidden from them: nothing but its own measurement is seen."""

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import ml_collections
import torch
from tqdm import tqdm

from datasets import PreparedScene, SceneBatch, SceneFrames, advance_scene, prepare_measured
from losses import ExponentialMovingAverage, completion_loss, completion_size
from models.precision import in_precision
from mri.holdout import hide
from optimization_unit import OptimizationUnit, with_periodicity
from priors import Prior
from trust import Answer, Question, answer, cascade_start

Tensor = torch.Tensor

FRAMES = 16  # per step, at most
HIDINGS = 4  # ways to hide samples of the scan, to learn from …
HIDINGS_MOTION = 2  # … where the OU follows the motion, which takes several times as long
RATE = 2e-4  # of Adam: a tenth of the training's, which learned from all kinds of scenes
DECAY = 0.95  # of the average of the weights
SETTINGS = ("columns", "max_gain", "sigma_jitter")  # of config.training, that an adaptation depends on
EVERY = 5  # steps between validations
PATIENCE = 6  # validations without a better one


@dataclass(frozen=True)
class Adaptation:
    """How the adaptation of one prior went; errors are shares of the OU's on the validation samples."""

    prior: str
    steps: int
    seconds: float
    error_before: float
    error_after: float  # the best
    kept: bool


def adapt_priors(
    measured: Tensor,
    mask: Tensor,
    priors: list[Prior],
    config: ml_collections.ConfigDict,
    seed: int,
    start: Tensor | None = None,
) -> tuple[list[Prior], list[dict]]:
    """Adapt each prior in turn, LM to what GM leaves, for `sampling.adapt` seconds or `sampling.adapt_steps` steps.

    Of the measured samples some are validation samples, those that `find_trust` asks for. The others are hidden in
    part, in several ways, and the network learns to predict them from what the OU makes without them (objective
    `measured`). The weights that predict the validation samples best are taken, if they do so better than those of
    before by `sampling.adapt_margin`; else the prior stays as it was.

    Parameters
    ----------
    measured
        complex k-space `(frames, height, width)` of unit scale, 0 outside `mask`.
    priors
        with context.
    start
        as of `find_trust`.

    Returns
    -------
    the priors, and the record of each adaptation (empty, and said, where the mask leaves nothing to hide).
    """
    begun = time.perf_counter()
    config = with_periodicity(config, measured, mask)
    kept, hidden = hide(mask, seed=seed)
    if not hidden.any() or not hide(kept, seed=seed)[1].any():
        print("the mask leaves too few samples to hide, so the priors are not adapted to the scan")
        return priors, []
    known = torch.where(kept, measured, 0)
    if start is None:
        start = cascade_start(known, kept, config, seed)
    question = Question(start, measured, kept, hidden, config)
    ways = HIDINGS_MOTION if OptimizationUnit(config).operator == "motion" else HIDINGS
    scenes = [
        prepare_measured(known, kept, config, seed + number)
        for number in tqdm(range(1, ways + 1), desc="adapt: OU without hidden samples", unit="way", leave=False)
    ]
    kspace, sigma = question.start, config.sampling.error_gain * question.error
    adapted, records = [], []
    for place, prior in enumerate(priors):
        now = time.perf_counter()
        left = config.sampling.adapt - (now - begun) if config.sampling.adapt else float("inf")
        deadline = now + left / (len(priors) - place)
        ask = partial(answer, question, kspace=kspace, sigma=sigma)
        one, record = _adapt(prior, scenes, ask, deadline, config, seed)
        found = answer(question, one, kspace, sigma)
        kspace, sigma = found.kspace, found.sigma
        if place + 1 < len(priors):
            device = measured.device
            scenes = [advance_scene(scene, one, device, config.sampling.error_gain) for scene in scenes]
        adapted.append(one)
        records.append(asdict(record))
        if record.steps < EVERY:
            print(
                f"{record.prior} is as it was: of --adapt {config.sampling.adapt:g} s no time was left to train it and "
                f"look at the validation samples ({now - begun:.0f} s had passed); give more"
            )
            continue
        print(
            f"{record.prior} adapted to the scan in {record.steps} steps: error on validation samples "
            f"{record.error_before:.3f} -> {record.error_after:.3f} of the optimization unit's"
            f"{'' if record.kept else ', not kept'}"
        )
    return adapted, records


def _adapt(
    prior: Prior,
    scenes: list[PreparedScene],
    ask: Callable[[Prior], Answer],
    deadline: float,
    config: ml_collections.ConfigDict,
    seed: int,
) -> tuple[Prior, Adaptation]:
    sampling, begun = config.sampling, time.perf_counter()
    settings = config.training.copy_and_resolve_references()
    settings.error_gain = sampling.error_gain
    data = SceneFrames(scenes, len(scenes), FRAMES, settings)
    network = copy.deepcopy(prior.network).requires_grad_(True).train()
    parameters = list(network.parameters())
    device = parameters[0].device
    score = in_precision(network, sampling.precision, device)
    averaged = copy.deepcopy(prior.network)
    # compiled code belongs to the weights of before
    run = in_precision(averaged, sampling.precision, device) if sampling.precision != "fp32" else None
    candidate = replace(prior, network=averaged, run=run)
    ema = ExponentialMovingAverage(parameters, DECAY)
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    generator = torch.Generator().manual_seed(seed)
    first = ask(prior)
    before = best = first.after
    weights, steps, since = None, 0, 0
    bar = tqdm(total=sampling.adapt_steps or None, desc=f"adapt {prior.role or 'prior'}", unit="step")
    with bar:
        while time.perf_counter() < deadline and since < PATIENCE and steps != (sampling.adapt_steps or -1):
            batch = SceneBatch(*(tensor.to(device) for tensor in data.draw(generator)))
            scans, told = batch.scans(), batch.told[:1].tolist()
            loss = completion_loss(score, scans, told, prior.context, len(prior.shares)) / completion_size(scans)
            optimizer.zero_grad(set_to_none=True)
            loss.mean().backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            ema.update(parameters)
            steps += 1
            bar.update()
            if steps % EVERY == 0:
                ema.copy_to(list(averaged.parameters()))
                now = ask(candidate).after
                since += 1
                if now < best:
                    best, since = now, 0
                    weights = copy.deepcopy(averaged.state_dict())
                bar.set_postfix(validation=f"{now / max(first.before, 1e-30):.4f}")
    better = weights is not None and best < (1 - sampling.adapt_margin) * before
    if better:
        averaged.load_state_dict(weights)
    errors = (error / max(first.before, 1e-30) for error in (before, best))
    record = Adaptation(prior.role or "prior", steps, time.perf_counter() - begun, *errors, better)
    return candidate if better else prior, record
