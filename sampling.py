"""The reconstruction: a cascade of two diffusion priors, GM → LM, with data consistency and the OU in between.

Priors of moving scenes, the default, run within the OU (`reconstruction.in_turn`); `cascade` applies priors after it;
`published_cascade` is the paper's, for comparison. Both work on images x of unit
scale; the forward model A and the measurement y of a scan come from `reconstruction.prepare`.
"""

import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from models.prior import Prior, load_shipped, shipped
from mri.fourier import fft2c, ifft2c
from mri.noise import chi
from mri.scan import Scan
from mri.weighting import from_channels, to_channels
from reconstruction.calibration import Schedule, calibrate
from reconstruction.in_turn import Followed, cascade_in_turn
from reconstruction.notes import likely_note, misfit_notes, ou_note, priors_note, report_notes
from reconstruction.optimization_unit import (
    OptimizationUnit,
    OUResult,
    run_optimization_unit,
    with_operator,
)
from reconstruction.prepare import Problem, prepare
from reconstruction.settings import OUSettings, PrepareSettings, SamplingSettings
from reconstruction.uncertainty import held_out_level, likely_error
from sde_lib import VESDE
from utils.errors import InputError

Tensor = torch.Tensor


def cascade(x, A, y, priors, steps, optimization_unit, periodic, log):
    """Apply each accepted prior once to the OU's result, at the noise level of the remaining error.

    Karras et al. 2022, Algorithm 1 without its second-order correction, in their symbols: D denoiser, σ noise level,
    x ← x + a (D(x; σ) − x). Each step has its prior, σ and a. Only unmeasured components are changed: the start already
    agrees with the samples as far as their noise allows.

    Parameters
    ----------
    x
        complex `(frames, height, width)` of unit scale: the start.
    A, y
        forward model and measurement.
    steps
        of `reconstruction.calibration.Schedule`; none leaves the start as it is.
    """
    for step in steps:
        D = priors[step.prior].denoise
        change = step.step_size * (D(x, A, step.sigma, periodic) - x)
        residual = A.residual(x + change, y)
        x = x + A.unmeasured(change)
        if optimization_unit.runs_after(step is steps[-1]):
            # weaker as σ falls: at full strength it would remove what the priors add
            x = x + A.unmeasured(optimization_unit(x, step.sigma / steps[0].sigma) - x)
        log.step(sigma=step.sigma, residual=residual)
    return x


def published_cascade(x, A, y, priors, sde, sampling, optimization_unit, generator, log):
    """The paper's predictor-corrector cascade (Guan et al. 2025, Algorithm 1 and Fig. 1).

    Symbols: s score, σ_i noise level, z noise, g mean score, ε Langevin step, r its signal-to-noise ratio. A prior sees
    k, the weighted k-space of x. The mean of the predictor is carried on, not a noisy sample, as the published code
    does.

    Parameters
    ----------
    x
        complex `(frames, height, width)` of unit scale: the start.
    """
    sigmas = [0.0, *sde.discrete_sigmas().tolist()]  # 0: the level below σ_min
    copies = torch.zeros(NOISE_COPIES, len(x), 2, *x.shape[1:], device=x.device)
    for i in range(len(sigmas) - 1, len(sigmas) - 1 - sampling.iterations, -1):
        sigma, sigma_next = sigmas[i], sigmas[i - 1]
        for prior in priors:
            # predictor: reverse diffusion
            k = to_channels(prior.weight(fft2c(x)))
            k = k + (sigma**2 - sigma_next**2) * prior.score(k, sigma)
            x = ifft2c(prior.weight.inverse(from_channels(k)))
            residual = A.residual(x, y)
            x = A.projected(x, y)
            # corrector: Langevin, one step shared by the noise copies
            k = to_channels(prior.weight(fft2c(x)))
            g = torch.stack([prior.score(k + noise, sigma) for noise in copies]).mean(dim=0)
            z = torch.randn(copies.shape, generator=generator).to(k)
            epsilon = 2 * (CORRECTOR_SNR * _mean_norm(z.flatten(0, 1)) / _mean_norm(g)) ** 2
            k = k + epsilon * g
            copies = torch.sqrt(2 * epsilon) * z
            x = A.projected(ifft2c(prior.weight.inverse(from_channels(k))), y)
            if optimization_unit.runs_after(prior is priors[-1]):
                x = A.projected(optimization_unit(x), y)
        log.step(sigma=sigma, residual=residual)
    return x


CORRECTOR_SNR, NOISE_COPIES = 0.075, 3  # published: r of the Langevin corrector; noise copies that share a step
MANY_ITERATIONS = 10  # from which it is worth two passes to tell how long they take
FEWEST_FRAMES = 5  # with fewer, frames are repeated as neighbours


@dataclass
class SamplerLog:
    """Progress bar and record of a reconstruction; sees only measured data."""

    bar: tqdm
    steps: list[dict[str, float]] = field(default_factory=list)

    def step(self, **numbers: float) -> None:
        self.steps.append(numbers)
        self.bar.set_postfix({name: f"{value:.3g}" for name, value in numbers.items()})
        self.bar.update()


@dataclass(frozen=True)
class Reconstruction:
    """What `reconstruct` returns.

    Attributes
    ----------
    image
        complex64 `(frames, height, width)`, in the input's units.
    start
        what the sampler began with, same shape and units; for the cascade, the OU's result.
    start_seconds
        spent on the start and on the settings that the OU chooses.
    error_std
        likely error, real, same shape and units; None where nothing was held out or view sharing is the result.
    maps
        complex64 `(virtual coils, height, width)`; ones for one coil.
    noise_std
        σ of a complex k-space sample, in the input's units.
    chi
        residual in units of the noise, see `mri.noise.chi`.
    notes
        one sentence for each decision.
    log
        per step: sigma, and the residual before data consistency; of priors in turn with the OU, each time that one was
        applied: step of the OU, sigma, and its place in the cascade.
    settings
        configuration, seed, checkpoints, scale, schedule of the priors, network passes per frame.
    """

    image: Tensor
    start: Tensor
    start_seconds: float
    error_std: Tensor | None
    maps: Tensor
    noise_std: float
    chi: float
    notes: list[str]
    log: list[dict[str, float]]
    settings: dict[str, Any]


def reconstruct(
    kspace: Tensor,
    mask: Tensor,
    global_model: Prior | None = None,
    local_model: Prior | None = None,
    config: Any = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    *,
    maps: Tensor | None = None,
    noise_samples: Tensor | None = None,
    noise_std: float | None = None,
) -> Reconstruction:
    """Reconstruct a dynamic scan from its measured samples alone.

    Parameters
    ----------
    kspace
        complex `(frames, height, width)`, or with coils `(frames, coils, height, width)`; orthonormal and centred.
        Values outside `mask` are ignored.
    mask
        boolean, or 0 and 1, `(frames, height, width)`, or one that `mri.masks.fit_mask` takes, e.g. `(frames, height)`.
    global_model, local_model
        GM and LM, see `models.prior.load_prior`; default: the shipped checkpoints.
    config
        a configuration with the parts `data`, `sampling` and `ou` (see `configs/default.py`); default: the cascade with
        its default settings.
    seed
        of the sampler's noise and of the held-out samples; repeatable on a CPU.
    maps
        complex `(coils, height, width)`; default: estimated from the scan.
    noise_samples
        complex `(coils, n)` measured without signal, to whiten the coils; default: the coils are taken as white.
    noise_std
        σ of a complex sample of one coil, E|n|² = σ², in the units of `kspace`; 0 for simulated data without noise;
        default: from the noise samples, else estimated, usually too high.

    Arrays are torch tensors or NumPy arrays.

    Raises
    ------
    InputError
        for a setting that fits neither the scan nor the checkpoints.
    """
    preparing, ou, sampling = stage_settings(config)
    scan = Scan.from_arrays(kspace, mask, coil_maps=maps, noise_samples=noise_samples, noise_std=noise_std)
    problem = prepare(scan, preparing, device)
    return reconstruct_problem(problem, (global_model, local_model), ou, sampling, seed)


def stage_settings(config: Any) -> tuple[PrepareSettings, OUSettings, SamplingSettings]:
    """The settings of the stages of a reconstruction; None: their defaults, with the cascade."""
    if config is None:
        return PrepareSettings(), OUSettings(), SamplingSettings(sampler="cascade")
    parts = (PrepareSettings, OUSettings, SamplingSettings)
    preparing, ou, sampling = (part.from_mapping(config[part.part]) for part in parts)
    return preparing, ou, sampling


def reconstruct_problem(
    problem: Problem,
    models: tuple[Prior | None, Prior | None],
    ou: OUSettings,
    sampling: SamplingSettings,
    seed: int = 0,
) -> Reconstruction:
    """Reconstruct a prepared scan by GM and LM; None stands for the shipped one. See `reconstruct`."""
    device = problem.measured.device
    ou = with_operator(ou, sampling.sampler)
    OptimizationUnit(ou, seed).check(problem.frames, *problem.model.mask.shape[1:])
    priors = _priors_in_order(models, sampling, device)
    generator = torch.Generator().manual_seed(seed)
    begun = time.perf_counter()
    result = _start(problem, ou, sampling, seed)
    start_seconds = time.perf_counter() - begun
    unit = OptimizationUnit(result.settings, seed)
    after_motion = unit.operator == "motion" and ou.after != "never" and not result.is_start
    notes = list(problem.notes)
    ours = [str(shipped(name, sampling.sampler)) for name in sampling.order]
    if 0 < sum(prior.path == path for prior, path in zip(priors, ours, strict=True)) < len(priors):
        notes.append("checkpoints: one was given, the other is the shipped one, which was trained on different images")
    x, A, y, periodic = result.image, problem.model, problem.measured, problem.periodic
    extra: dict[str, Any] = {}
    deviation = None
    if sampling.sampler == "published":
        if sampling.iterations >= MANY_ITERATIONS:
            seconds = sampling.iterations * (1 + NOISE_COPIES) * sum(_seconds_of_a_pass(prior, x) for prior in priors)
            tqdm.write(f"GLDM (published): network passes take about {max(seconds, 1):.0f} s")
        with tqdm(total=sampling.iterations, desc="GLDM (published)") as bar:
            log = SamplerLog(bar)
            known = priors[0].network.architecture
            sde = VESDE(known["sigma_min"], known["sigma_max"], sampling.num_scales)
            x = published_cascade(x, A, y, priors, sde, sampling, unit, generator, log)
        passes = len(log.steps) * len(priors) * (1 + NOISE_COPIES)
    else:
        with tqdm(total=len(priors), desc="GLDM (cascade)") as bar:
            log = SamplerLog(bar)
            if all(prior.of_scenes for prior in priors):
                if after_motion:
                    found = cascade_in_turn(problem, priors, result, seed, bar)
                else:
                    schedule = Schedule(step_sizes=(0.0,) * len(priors))
                    found = Followed(x, result.low_rank, schedule, result.without_held_out)
                x, low_rank, schedule = found.image, found.low_rank, found.schedule
                without, passes = found.without, found.passes
                log.steps += found.log
            else:
                schedule, without = calibrate(problem, priors, result, after_motion, bar)
                low_rank = result.low_rank
                bar.total = bar.n + len(schedule.steps)
                x = cascade(x, A, y, priors, schedule.steps, unit, periodic, log)
                tested = priors if schedule.held_out else []
                used = [priors[step.prior] for step in schedule.steps]
                passes = sum(prior.passes for prior in [*used, *tested])
        if without is not None and without is not result.start_without:
            assert result.held_out is not None
            error_power = held_out_level(problem, result.held_out, x, without)
            alone = None if x is result.image else result.image
            low_rank = unit(x) if low_rank is None else low_rank  # llr: one more step
            deviation = likely_error(x, without, alone, low_rank, error_power)
        if passes and problem.frames < FEWEST_FRAMES:
            notes.append(f"only {problem.frames} frames: the priors expect {FEWEST_FRAMES}, so neighbours are repeated")
        extra = {"calibration": asdict(schedule)}
        notes += [ou_note(result, ou, problem), priors_note(schedule, sampling.order, problem, result)]
        notes += [*report_notes(problem, result, without), likely_note(deviation, result)]
    level = chi(A, x, y, problem.noise_std)
    notes += misfit_notes(problem, x, level)
    settings = {
        "config": {"sampling": asdict(sampling), "ou": asdict(result.settings), "data": {"periodic": periodic}},
        "seed": seed,
        "scale": problem.scale,
        "checkpoints": [prior.path for prior in priors],
        "networks": [prior.network.architecture for prior in priors],
        **extra,
        "passes_per_frame": passes,
    }
    image, start = problem.finished(x), problem.finished(result.image)
    error_std = None if deviation is None else problem.finished(deviation)
    noise_std = problem.noise_std * problem.scale
    return Reconstruction(
        image, start, start_seconds, error_std, problem.finished_maps(), noise_std, level, notes, log.steps, settings
    )  # fmt: skip


def _start(problem: Problem, ou: OUSettings, sampling: SamplingSettings, seed: int) -> OUResult:
    """What the sampler starts from."""
    if sampling.sampler == "cascade" and ou.after != "never":
        return run_optimization_unit(problem, ou, seed)
    if sampling.sampler == "cascade":
        held_out = problem.held_out(seed)
        start = problem.restricted(held_out.kept).view_sharing()
        return OUResult(problem.view_sharing(), ou, held_out, start, start, is_start=True)
    if sampling.start == "pseudo_reference":
        return OUResult(problem.view_sharing(), ou)
    return OUResult(problem.model.adjoint(problem.measured), ou)


def _seconds_of_a_pass(prior: Prior, x: Tensor) -> float:
    """Seconds that the network takes for all frames of x, measured on the second of two passes."""
    k = to_channels(fft2c(x))
    for _ in range(2):
        begun = time.perf_counter()
        prior.score(k, prior.sigma_max).flatten()[0].item()  # waits for a GPU
    return time.perf_counter() - begun


def _priors_in_order(
    models: tuple[Prior | None, Prior | None], sampling: SamplingSettings, device: torch.device
) -> list[Prior]:
    """GM and LM in the order of the cascade, checked against the sampler."""
    given = dict(zip(("global", "local"), models, strict=True))
    for name, model in given.items():
        if isinstance(model, str | os.PathLike):
            raise InputError(f"{name}_model is {model!r}; load it with models.prior.load_prior(path).")
    run = (device, sampling.batch_size, sampling.precision, sampling.compile)
    priors = [given[name] or load_shipped(name, sampling.sampler, *run) for name in sampling.order]
    for name, prior in zip(sampling.order, priors, strict=True):
        if prior.role not in (None, name):
            raise InputError(f"{prior.path} is the {prior.role} model but was given as the {name} one; swap them.")
    check_priors(sampling, priors)
    return priors


def check_priors(sampling: SamplingSettings, priors: list[Prior]) -> None:
    """Raise `InputError` for checkpoints of a kind, or of noise levels, that the sampler cannot use."""
    for prior in priors:
        if prior.context is not None and sampling.sampler == "published":
            raise InputError(
                f"{prior.path} is a prior of images with their neighbours; the published sampler needs one of weighted "
                "k-space (training.objective=dsm): use --sampler cascade."
            )
        if prior.context is None and sampling.sampler == "cascade":
            raise InputError(
                f"{prior.path} is a model of weighted k-space (training.objective=dsm or a published checkpoint), "
                "which only the published sampler uses: add --sampler published."
            )
    ranges = {tuple(prior.network.architecture[name] for name in ("sigma_min", "sigma_max")) for prior in priors}
    if sampling.sampler == "published" and (len(ranges) > 1 or len({prior.weight.data_std for prior in priors}) > 1):
        raise InputError(
            f"{' and '.join(prior.path for prior in priors)} differ in their noise levels or in data_std; give GM "
            "and LM of one training."
        )


def _mean_norm(x: Tensor) -> Tensor:
    """Mean over the first axis of the Euclidean norms of its entries."""
    return x.flatten(1).norm(dim=1).mean()
