"""The reconstruction: a cascade of two diffusion priors, GM → LM, with data consistency and the OU between.

`few_step_cascade` is the sampler to use; `published_cascade` is the paper's, for comparison. Both work on the
k-space of a scan of unit scale and see it, as the priors do, through a weight w (`mri.weighting`).
"""

import json
import math
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import torch
from tqdm import tqdm

from adaptation import adapt_priors
from configs.ve.cpu_demo import get_config
from models.precision import PRECISIONS
from mri.consistency import data_consistency, data_residual, scan_scale
from mri.fourier import fft2c, ifft2c
from mri.interleave import pseudo_reference
from mri.masks import acs_rows, is_lines, lines_along_rows
from mri.weighting import from_channels, to_channels
from optimization_unit import OptimizationUnit, find_settings, with_periodicity
from priors import MODELS, Prior, load_shipped
from sde_lib import VESDE
from trust import Trust, cascade_start, find_trust
from uncertainty import deviation_map
from utils.errors import InputError

Tensor = torch.Tensor


def few_step_cascade(kspace, dc, optimization_unit, denoise, steps, churn, generator, log):
    """A few deterministic steps from the OU's result, at the noise level of its error.

    Song et al. 2021 (DDIM) / Karras et al. 2022, Algorithm 1 without its second-order correction, in their
    symbols: D denoiser, σ noise level, x ← x + a (D(x; σ) − x). Each step brings its model, σ and a; in their
    algorithm a = 1 − σ_next/σ.

    Parameters
    ----------
    kspace
        complex `(frames, height, width)` of unit scale: the start.
    dc
        puts the measured samples back: `dc(kspace, σ / w)`.
    denoise
        `denoise(prior, x, σ)`, with x in the weighted k-space of the prior.
    steps
        the `Step`s, see `schedule`; none leaves the start as it is.
    churn
        fresh noise per step, in units of its σ.
    """
    for step in steps:
        x = step.prior.weight(kspace)
        noise = churn * step.sigma
        if noise > 0:
            x = x + noise * from_channels(torch.randn(to_channels(x).shape, generator=generator)).to(x)
        x = x + step.share * (denoise(step.prior, x, math.hypot(step.sigma, noise)) - x)
        kspace = step.prior.weight.inverse(x)
        residual = log.residual(kspace)
        prior_std = step.sigma / step.prior.weight.on(kspace)
        kspace = dc(kspace, prior_std)
        if optimization_unit.follows(step is steps[-1]):
            # weaker as σ falls: at full strength it would undo what the priors add
            kspace = dc(fft2c(optimization_unit(ifft2c(kspace), step.sigma / steps[0].sigma)), prior_std)
        log.step(sigma=step.sigma, residual=residual)
    return kspace


@dataclass(frozen=True)
class Step:
    """One step of the few-step cascade."""

    prior: Prior
    sigma: float  # noise level that the denoiser is told
    share: float  # a, how far to follow it


def schedule(trust: Trust, priors: list[Prior], steps: int) -> list[Step]:
    """The steps from σ_0, for priors in the order of the cascade.

    Priors without context: the levels fall evenly from σ_0 to (1 − α) σ_0, so that a denoiser that hardly
    changes moves x by α (D − x) in all. Priors with context know what an OU leaves wrong, so each is followed
    by its α, once, and leaves `remaining` (measured in its training) of the error to the next.
    """
    if trust.sigma == 0:
        return []
    if all(prior.context is not None for prior in priors):
        found, sigma = [], trust.sigma
        for prior, alpha in zip(priors, trust.alphas, strict=True):
            if alpha > 0:
                found.append(Step(prior, sigma, alpha))
            sigma *= 1 - alpha * (1 - prior.remaining)
        return found
    sigmas = [trust.sigma * (1 - trust.alphas[0] * i / steps) for i in range(steps + 1)]
    return [
        Step(priors[i * len(priors) // steps], sigmas[i], 1 - sigmas[i + 1] / sigmas[i]) for i in range(steps)
    ]


def published_cascade(kspace, dc, optimization_unit, priors, sde, sampling, generator, log):
    """The paper's predictor-corrector cascade (Guan et al. 2025, Algorithm 1 and Fig. 1).

    Symbols: s score, σ_i noise level, z noise, g mean score, ε Langevin step, r its signal-to-noise ratio.
    The mean x̄ of the predictor is carried on, not a noisy sample, as the published code does.

    Parameters
    ----------
    kspace
        complex `(frames, height, width)` of unit scale: the start.
    dc
        puts the measured samples back: `dc(kspace, σ / w)`.
    """
    sigmas = sde.discrete_sigmas().tolist()
    sigmas = [0.0, *sigmas]  # the level below σ_min
    copies = torch.zeros(sampling.copies, len(kspace), 2, *kspace.shape[1:], device=kspace.device)
    for i in range(len(sigmas) - 1, len(sigmas) - 1 - sampling.iterations, -1):
        sigma, sigma_next = sigmas[i], sigmas[i - 1]
        for prior in priors:
            prior_std = sigma / prior.weight.on(kspace)
            # predictor: reverse diffusion
            x = to_channels(prior.weight(kspace))
            x = x + (sigma**2 - sigma_next**2) * prior.score(x, sigma)
            kspace = prior.weight.inverse(from_channels(x))
            residual = log.residual(kspace)
            kspace = dc(kspace, prior_std)
            # corrector: Langevin, one step shared by the noise copies
            x = to_channels(prior.weight(kspace))
            g = torch.stack([prior.score(x + noise, sigma) for noise in copies]).mean(dim=0)
            z = torch.randn(copies.shape, generator=generator).to(x)
            epsilon = 2 * (sampling.snr * _mean_norm(z.flatten(0, 1)) / _mean_norm(g)) ** 2
            x = x + epsilon * g
            copies = torch.sqrt(2 * epsilon) * z
            kspace = dc(prior.weight.inverse(from_channels(x)), prior_std)
            if optimization_unit.follows(prior is priors[-1]):
                kspace = dc(fft2c(optimization_unit(ifft2c(kspace))), prior_std)
        log.step(sigma=sigma, residual=residual)
    return kspace


SAMPLERS = ("cascade", "published")
FEWEST_FRAMES = 5  # with fewer, frames stand in for neighbours that are not there
SMALLEST_ACS = 2  # lines; one to hide, one to keep


@dataclass
class SamplerLog:
    """Progress bar and record of a reconstruction; sees only measured data."""

    measured: Tensor
    mask: Tensor
    bar: tqdm
    steps: list[dict[str, float]] = field(default_factory=list)

    def residual(self, kspace: Tensor) -> float:
        return data_residual(kspace, self.measured, self.mask)

    def step(self, **numbers: float) -> None:
        self.steps.append(numbers)
        self.bar.set_postfix({name: f"{value:.3g}" for name, value in numbers.items()})
        self.bar.update()


@dataclass(frozen=True)
class Reconstruction:
    """What `reconstruct` returns."""

    image: Tensor  # complex64 (frames, height, width), in the input's units
    start: Tensor  # same shape and units: what the sampler began with; for the cascade, the OU's result
    start_seconds: float  # spent on it, and on what the OU finds in the scan
    deviation: Tensor | None  # likely error, real, same shape and units; with `sampling.samples`
    log: list[dict[str, float]]  # per step: sigma, residual of the data before data consistency
    settings: dict  # configuration, seed, checkpoints, scale, network passes per frame


def reconstruct(
    kspace: Tensor,
    mask: Tensor,
    global_model: Prior | None = None,
    local_model: Prior | None = None,
    config=None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Reconstruction:
    """Reconstruct a dynamic scan from its measured samples alone.

    Parameters
    ----------
    kspace
        complex `(frames, height, width)`, orthonormal and centred; values outside `mask` are ignored.
    mask
        boolean, same shape.
    global_model, local_model
        GM and LM, see `load_prior`; default: the shipped checkpoints.
    config
        a configuration with `sampling`, `ou` and `data.periodic` (see `configs/default.py`); default:
        `configs/ve/cpu_demo.py`.
    seed
        of the sampler's noise and of the samples hidden to find the trust; repeatable on a CPU.

    Raises
    ------
    InputError
        for a setting that fits neither the scan nor the checkpoints.
    """
    config = config or get_config()
    sampling = config.sampling
    kspace, mask = checked_scan(kspace, mask)
    if lines_along_rows(mask) is not mask:  # as the priors and the OU know them, and the other way round again
        turned = reconstruct(kspace.mT, mask.mT, global_model, local_model, config, seed, device)
        deviation = None if turned.deviation is None else turned.deviation.mT.contiguous()
        image, start = turned.image.mT.contiguous(), turned.start.mT.contiguous()
        return replace(turned, image=image, start=start, deviation=deviation)
    models = {"global": global_model, "local": local_model}
    check_settings(config, mask)
    run = (device, sampling.batch_size, sampling.precision, sampling.compile)
    priors = [models[name] or load_shipped(name, sampling.sampler, *run) for name in sampling.order]
    for name, prior in zip(sampling.order, priors, strict=True):
        if prior.role not in (None, name):
            raise InputError(f"{prior.path} is the {prior.role} model but is given as the {name} one; exchange them.")
    check_noise_levels(sampling, priors)
    scale = scan_scale(kspace, mask)
    measured = (torch.where(mask, kspace, 0) / scale).to(device)
    mask = mask.to(device)

    def dc(k: Tensor, prior_std: Tensor) -> Tensor:
        return data_consistency(k, measured, mask, sampling.noise_std, prior_std)

    generator = torch.Generator().manual_seed(seed)
    begun, hidden_start = time.perf_counter(), None
    if config.ou.after == "never":
        config = with_periodicity(config, measured, mask)
    else:
        config, hidden_start = find_settings(config, measured, mask, seed)
    if sampling.sampler == "published":
        start = measured
        if sampling.start == "pseudo_reference":
            start, _ = pseudo_reference(measured, mask, "nearest", periodic=config.data.periodic)
    else:
        start = cascade_start(measured, mask, config, seed)
    start_image = (ifft2c(start) * scale).cpu()
    start_seconds = time.perf_counter() - begun
    adapting = sampling.sampler == "cascade" and (sampling.adapt > 0 or sampling.adapt_steps > 0)
    unit = OptimizationUnit(config, seed)
    if unit.operator == "motion" and config.ou.after != "never":
        priors = [prior.after_motion or prior for prior in priors]
    settings = {"config": json.loads(config.to_json()), "seed": seed, "scale": scale}
    settings["checkpoints"] = [prior.path for prior in priors]
    settings["networks"] = [prior.network.config for prior in priors]
    with_context = all(prior.context is not None for prior in priors)
    if adapting:
        priors, settings["adaptation"] = adapt_priors(measured, mask, priors, config, seed, hidden_start)
    if with_context and len(mask) < FEWEST_FRAMES:
        print(f"the scan has {len(mask)} frames, fewer than {FEWEST_FRAMES}: the priors see less around each of them")
    deviation = None
    tried = len(priors) * (1 if with_context else len(sampling.trust_levels))
    total = sampling.iterations if sampling.sampler == "published" else tried
    with tqdm(total=total, desc=f"GLDM ({sampling.sampler})") as bar:
        log = SamplerLog(measured, mask, bar)
        if sampling.sampler == "published":
            sde = VESDE(sampling.sigma_min, sampling.sigma_max, sampling.num_scales)
            result = published_cascade(start, dc, unit, priors, sde, sampling, generator, log)
            passes = len(log.steps) * len(priors) * (1 + sampling.copies)
        else:
            trust = find_trust(measured, mask, priors, config, seed, bar, hidden_start)
            settings["trust"] = asdict(trust)
            taken = schedule(trust, priors, sampling.steps)
            bar.total = bar.n + len(taken)

            def denoise(prior: Prior, x: Tensor, sigma: float) -> Tensor:
                return prior.denoise(x, sigma, mask, config.data.periodic)

            result = few_step_cascade(start, dc, unit, denoise, taken, sampling.churn, generator, log)
            asked = [*priors] * (1 if with_context else len(sampling.trust_levels)) if trust.hidden else []
            drawn = [priors[-1]] * sampling.samples
            passes = sum(prior.passes for prior in [*(step.prior for step in taken), *asked, *drawn])
            if sampling.samples:
                left = sampling.error_gain * trust.error
                for step in taken:
                    left *= 1 - step.share * (1 - step.prior.remaining)
                last = partial(denoise, priors[-1])
                deviation = deviation_map(result, mask, left, last, sampling.samples, generator).cpu() * scale
    settings["passes_per_frame"] = passes
    image = (ifft2c(result) * scale).cpu()
    return Reconstruction(image, start_image, start_seconds, deviation, log.steps, settings)


def checked_scan(kspace: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """k-space as complex64 and the mask; raises `InputError` when they are no scan."""
    if kspace.ndim != 3 or not kspace.is_complex() or len(kspace) < 2:
        raise InputError(
            f"k-space is complex (frames, height, width) of 2 frames or more, not {kspace.dtype} {tuple(kspace.shape)}."
        )
    if mask.dtype != torch.bool or mask.shape != kspace.shape:
        raise InputError(
            f"the mask is boolean and of the shape of the k-space {tuple(kspace.shape)}, not {mask.dtype} "
            f"{tuple(mask.shape)}; see mri.masks.fit_mask."
        )
    if not kspace[mask].isfinite().all() or not mask.flatten(1).any(dim=1).all():
        raise InputError("every frame needs a measured sample, and no sample may be NaN or infinite; check the scan.")
    return kspace.to(torch.complex64), mask


def check_settings(config, mask: Tensor) -> None:
    """Raise `InputError` for settings that fit neither each other nor the scan, before any work."""
    sampling = config.sampling
    unit = OptimizationUnit(config)
    for name, known in {"sampler": SAMPLERS, "start": ("zero_filled", "pseudo_reference")}.items():
        if sampling[name] not in known:
            raise InputError(f"sampling.{name} '{sampling[name]}' is unknown; choose {' or '.join(known)}.")
    if not sampling.order or not set(sampling.order) <= set(MODELS):
        raise InputError(f"sampling.order {tuple(sampling.order)} must name global, local or both.")
    if not 1 <= sampling.iterations <= sampling.num_scales:
        raise InputError(
            f"sampling.iterations must lie between 1 and num_scales = {sampling.num_scales}, "
            f"not {sampling.iterations}."
        )
    check_running(sampling)
    if min(sampling.copies, sampling.steps) < 1:
        raise InputError("sampling.copies and sampling.steps must be at least 1.")
    if not sampling.trust_levels or sampling.error_gain <= 0:
        raise InputError("sampling.trust_levels must not be empty, and sampling.error_gain must be above 0.")
    if config.ou.anneal <= 0 or config.ou.noise_floor < 0:
        raise InputError("ou.anneal must be above 0, and ou.noise_floor 0 or above.")
    if sampling.adapt < 0 or sampling.adapt_steps < 0:
        raise InputError("sampling.adapt (--adapt) and sampling.adapt_steps must be 0 or more.")
    if config.ou.after == "never" and (sampling.adapt or sampling.adapt_steps):
        raise InputError("sampling.adapt (--adapt) learns what the OU leaves; leave out ou.after=never.")
    if sampling.samples == 1 or sampling.samples < 0:
        raise InputError(f"sampling.samples must be 0 or at least 2, not {sampling.samples}.")
    unit.check(*mask.shape)
    rows = lines_along_rows(mask)
    if sampling.sampler == "cascade" and is_lines(rows) and acs_rows(rows).sum() < SMALLEST_ACS:
        raise InputError(
            f"the mask has {acs_rows(rows).sum()} ACS lines and the cascade finds its noise level from at least "
            f"{SMALLEST_ACS}; sample more central lines in every frame, or use --sampler published."
        )


def check_running(sampling) -> None:
    """Raise `InputError` for a way to run the networks that is none."""
    if sampling.precision not in PRECISIONS:
        raise InputError(f"sampling.precision '{sampling.precision}' is unknown; choose {' or '.join(PRECISIONS)}.")
    if sampling.batch_size < 1:
        raise InputError(f"sampling.batch_size must be at least 1, not {sampling.batch_size}.")


def check_noise_levels(sampling, priors: list[Prior]) -> None:
    """Raise `InputError` when the sampler would ask a checkpoint for noise levels it was not trained for."""
    kinds = {(prior.context is None, prior.context is None and prior.weight.data_std) for prior in priors}
    if len(kinds) > 1:
        raise InputError(
            f"{' and '.join(prior.path for prior in priors)} are of different kinds (k-space of one data_std, or "
            "images with context); give GM and LM of one training."
        )
    for prior in priors:
        if prior.context is not None and sampling.sampler == "published":
            raise InputError(
                f"{prior.path} sees images with their neighbours; the published sampler needs a model of weighted "
                "k-space (training.objective=dsm): use --sampler cascade."
            )
        if prior.context is not None and sampling.noise_std:
            raise InputError(
                f"{prior.path} knows the missing samples alone, so the measured ones stay as they are; set "
                "sampling.noise_std to 0, or give priors of weighted k-space (training.objective=dsm)."
            )
        if prior.context is None and (sampling.samples or sampling.adapt or sampling.adapt_steps):
            raise InputError(
                "sampling.samples and sampling.adapt (--adapt) need priors with context, as those shipped for "
                "--sampler cascade are."
            )
        if prior.context is not None:
            continue
        if sampling.sampler == "published":
            low, high, fields = sampling.sigma_min, sampling.sigma_max, "sampling.sigma_min and sampling.sigma_max"
        else:
            levels = [factor * prior.weight.data_std for factor in sampling.trust_levels]
            low, high = min(levels), max(levels)
            fields = "--sampler published, or sampling.trust_levels (units of data_std)"
        known_low, known_high = prior.network.config["sigma_min"], prior.network.config["sigma_max"]
        if low < known_low * (1 - 1e-6) or high > known_high * (1 + 1e-6):
            raise InputError(
                f"σ from {low:g} to {high:g} leaves the range {known_low:g} to {known_high:g} that {prior.path} "
                f"was trained for; set {fields} within it."
            )


def _mean_norm(x: Tensor) -> Tensor:
    """Mean over the first axis of the Euclidean norms of its entries."""
    return x.flatten(1).norm(dim=1).mean()
