"""The reconstruction: a cascade of two diffusion priors, GM → LM, with data consistency and the OU between.

`few_step_cascade` is the sampler to use; `published_cascade` is the paper's, for comparison. Both work on the
k-space of a scan of unit scale and see it, as the priors do, through a weight w (`mri.weighting`).
"""

import json
import math
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from configs.ve.cpu_demo import get_config
from models.checkpoint import load_model
from models.context import Context
from models.convert import load_published
from models.ncsnpp import NCSNpp
from mri.consistency import data_consistency, data_residual, scan_scale
from mri.fourier import fft2c, ifft2c
from mri.holdout import hide
from mri.interleave import looks_periodic, pseudo_reference
from mri.locally_low_rank import LocallyLowRank, fista_locally_low_rank
from mri.lowrank import HankelLowRank
from mri.masks import acs_rows, is_lines
from mri.weighting import KspaceWeight, from_channels, to_channels
from sde_lib import VESDE
from uncertainty import deviation_map
from utils.errors import InputError

Tensor = torch.Tensor

MODELS = ("global", "local")


def shipped(name: str, sampler: str) -> Path:
    """The shipped checkpoint of GM or LM (`name`): with context for `cascade`, the paper's kind for `published`."""
    folder = Path(__file__).parent / "checkpoints"
    return (folder / "dsm" if sampler == "published" else folder) / f"{name}.safetensors"


def few_step_cascade(kspace, dc, optimization_unit, denoise, steps, churn, generator, log):
    """A few deterministic steps from the OU's result, at the noise level of its error.

    Song et al. 2021 (DDIM) / Karras et al. 2022, Algorithm 1 without its second-order correction, in their
    symbols: D denoiser, σ noise level, x ← x + a (D(x; σ) − x), where a = 1 − σ_next/σ.
    GM takes the early levels, LM the late ones.

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

    prior: "Prior"
    sigma: float  # noise level that the denoiser is told
    share: float  # a, how far to follow it


def schedule(trust: "Trust", priors: list["Prior"], steps: int) -> list[Step]:
    """The steps from σ_0, for priors in the order of the cascade.

    Priors without context: the levels fall evenly from σ_0 to (1 − α) σ_0, so that a denoiser that hardly
    changes moves x by α (D − x) in all. Priors with context know what an OU leaves wrong, so each is followed
    by α, once, and leaves `remaining` (measured in its training) of the error to the next.
    """
    if trust.sigma == 0:
        return []
    if all(prior.context is not None for prior in priors):
        found, sigma = [], trust.sigma
        for prior in priors:
            found.append(Step(prior, sigma, trust.alpha))
            sigma *= 1 - trust.alpha * (1 - prior.remaining)
        return found
    sigmas = [trust.sigma * (1 - trust.alpha * i / steps) for i in range(steps + 1)]
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
NOISE_FLOORS = (2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3)  # units of the scan's scale, see `with_noise_floor`
SMALLEST_ACS = 2  # lines; one to hide, one to keep


@dataclass(frozen=True)
class Prior:
    """A score network, and how it sees a scan: weighted k-space (published), or images with context."""

    network: NCSNpp
    weight: KspaceWeight
    path: str
    batch_size: int = 16  # frames per network pass
    context: Context | None = None  # None: k-space, frame by frame
    remaining: float = 0.0  # with context: share of the error that it left in training

    def denoise(self, kspace: Tensor, sigma: float, mask: Tensor, periodic: bool) -> Tensor:
        """D(x; σ) = x + σ² s(x, σ), the mean of clean data given noisy (Tweedie), of a whole scan.

        Parameters
        ----------
        kspace
            weighted k-space, complex `(frames, height, width)`.
        mask, periodic
            for the context, see `models.context.Context`.
        """
        level = max(sigma, self.network.config["sigma_min"])
        if self.context is None:
            return kspace + sigma**2 * from_channels(self.score(to_channels(kspace), level))
        image = ifft2c(kspace)
        score = self.score(torch.cat([to_channels(image), self.context(image, mask, level, periodic)], dim=1), level)
        return kspace + sigma**2 * fft2c(from_channels(score))

    @torch.no_grad()
    def score(self, x: Tensor, sigma: float) -> Tensor:
        """∇ log p_σ of frames: real `(frames, 2, height, width)`, of x the same and its context channels.

        Sizes that the network cannot halve often enough are mirrored at the edge for the pass.
        """
        height, width = x.shape[-2:]
        divisor = self.network.divisor
        bottom, right = -height % divisor, -width % divisor
        padded = torch.nn.functional.pad(x, (0, right, 0, bottom), mode="reflect")
        scores = [
            self.network(chunk, torch.full((len(chunk),), sigma, device=x.device))
            for chunk in padded.split(self.batch_size)
        ]
        return torch.cat(scores)[..., :height, :width]


def load_prior(path: str | Path, device: torch.device | str = "cpu", batch_size: int = 16) -> Prior:
    """A prior from our `.safetensors` or a published `.pth` (which then has the published weight).

    Raises
    ------
    InputError
        when the file is missing, truncated, or of another architecture.
    """
    if Path(path).suffix == ".pth":
        network, weight, context = load_published(path), KspaceWeight.published(), None
    elif Path(path).suffix == ".safetensors":
        network, metadata = load_model(path)
        try:
            weight = KspaceWeight(**metadata["weight"])
            context = Context.from_config(metadata["context"]) if "context" in metadata else None
        except (KeyError, TypeError):
            raise InputError(
                f"{path} has no k-space weight; use a checkpoint that main.py --mode=train wrote."
            ) from None
    else:
        raise InputError(f"{path}: a checkpoint is a .safetensors of main.py or a published .pth; give one of these.")
    if network.config["num_channels"] != 2:
        raise InputError(
            f"{path} is a network of {network.config['num_channels']} channels; k-space has 2, real and imaginary: "
            "use a checkpoint of this project or a published one."
        )
    network = network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    remaining = metadata.get("loss", 1.0) ** 0.5 if context is not None else 0.0
    return Prior(network, weight, str(path), batch_size, context, remaining)


class OptimizationUnit:
    """Low rank, as `config.ou` says: `hankel` (structured, published), `llr` (locally low rank), or `both` in turn.

    `auto` is `hankel` with the published sampler and `llr`, which benchmarks/quality.py finds better, otherwise.
    """

    def __init__(self, config, seed: int = 0) -> None:
        ou = config.ou
        if ou.operator not in ("auto", "hankel", "llr", "both"):
            raise InputError(f"ou.operator '{ou.operator}' is unknown; choose auto, hankel, llr or both.")
        if ou.after not in ("both", "last", "never"):
            raise InputError(f"ou.after '{ou.after}' is unknown; choose both, last or never.")
        self.settings, self.seed = ou, seed
        automatic = "hankel" if config.sampling.sampler == "published" else "llr"
        self.operator = automatic if ou.operator == "auto" else ou.operator
        self.hankel = HankelLowRank(ou.window, ou.rank, ou.sweeps) if self.operator in ("hankel", "both") else None
        self.llr = None
        if self.operator in ("llr", "both"):
            self.llr = LocallyLowRank(ou.noise_floor, ou.patches, seed, ou.hard)

    def follows(self, last: bool) -> bool:
        """Whether the OU comes after this model, the last of its turn or not."""
        return self.settings.after == "both" or (last and self.settings.after == "last")

    def __call__(self, image: Tensor, strength: float = 1.0) -> Tensor:
        """One step on the images of a scan of unit scale, complex `(frames, height, width)`.

        `strength` 0 … 1 weakens it: the threshold of `llr` and the step of `hankel` towards low rank.
        """
        if self.llr is not None:
            image = self.llr(image, strength)
        if self.hankel is not None:
            image = image + strength * (self.hankel(image) - image)
        return image

    def alone(self, measured: Tensor, mask: Tensor, periodic: bool) -> Tensor:
        """k-space of a scan of unit scale by the OU without any network, from the nearest-in-time start.

        `llr`: FISTA. `hankel`: projection and data consistency in turn. `both`: the one after the other.
        """
        kspace, _ = pseudo_reference(measured, mask, "nearest", periodic=periodic)
        ou = self.settings
        if self.llr is not None:
            kspace = fista_locally_low_rank(
                kspace, measured, mask, ou.noise_floor, ou.patches, ou.llr_iterations, ou.anneal, self.seed, ou.hard
            )
        if self.hankel is not None:
            for _ in tqdm(range(ou.hankel_iterations), desc="OU (hankel)", leave=False):
                kspace = data_consistency(fft2c(self.hankel(ifft2c(kspace))), measured, mask)
        return kspace

    def check(self, frames: int, height: int, width: int) -> None:
        """Raise `InputError` for a window, rank or patch that does not fit a scan of this shape."""
        if self.hankel is not None:
            self.hankel.check(frames, height, width)
        patches = self.settings.patches
        if self.llr is not None and not (patches and all(1 <= patch <= min(height, width) for patch in patches)):
            raise InputError(f"ou.patches {tuple(patches)} must lie between 1 and {min(height, width)} pixels.")


def optimization_unit_alone(kspace: Tensor, mask: Tensor, config, seed: int = 0) -> Tensor:
    """Image `(frames, height, width)` by the OU of `config` without any network; arguments as `reconstruct`."""
    scale = scan_scale(kspace, mask)
    measured = torch.where(mask, kspace, 0) / scale
    config = with_periodicity(config, measured, mask)
    config = with_noise_floor(config, measured, mask, seed)
    return ifft2c(OptimizationUnit(config, seed).alone(measured, mask, config.data.periodic)) * scale


def with_periodicity(config, measured: Tensor, mask: Tensor):
    """The configuration with `data.periodic`, where it is left open (None), found in the data."""
    if config.data.periodic is not None:
        return config
    found = config.copy_and_resolve_references()
    found.data.periodic = looks_periodic(measured, mask)
    return found


def with_noise_floor(config, measured: Tensor, mask: Tensor, seed: int):
    """The configuration with the `llr` noise floor, where it is left open (0), found on hidden samples.

    Of the floors tried, the one whose OU predicts the hidden samples best, errors weighted by their distance to
    DC: without that weight the ACS, which is never missing, would decide.
    """
    if config.ou.noise_floor > 0 or OptimizationUnit(config).llr is None:
        return config
    config = with_periodicity(config, measured, mask)
    kept, hidden = hide(mask, seed=seed)
    weight = KspaceWeight(power=1.0, gain=1.0, data_std=1.0)
    known = torch.where(kept, measured, 0)
    tried = config.copy_and_resolve_references()
    errors = {}
    for floor in NOISE_FLOORS:
        tried.ou.noise_floor = floor
        predicted = OptimizationUnit(tried, seed).alone(known, kept, config.data.periodic)
        errors[floor] = weight(predicted - measured)[hidden].norm().item()
    tried.ou.noise_floor = min(errors, key=errors.get)
    return tried


def cascade_start(measured: Tensor, mask: Tensor, config, seed: int) -> Tensor:
    """k-space of unit scale that the few-step cascade starts from: the OU's, or without OU `sampling.start`."""
    if config.ou.after != "never":
        return OptimizationUnit(config, seed).alone(measured, mask, config.data.periodic)
    if config.sampling.start == "zero_filled":
        return measured
    return pseudo_reference(measured, mask, "nearest", periodic=config.data.periodic)[0]


@dataclass(frozen=True)
class Trust:
    """Where the priors enter, as measured on samples hidden from them."""

    sigma: float  # noise level that fits the start's error; 0 when no level helps
    alpha: float  # how far to follow the denoiser, 0 … 1
    error: float  # standard deviation per real channel of the start's error, estimated
    error_before: float  # weighted error of the OU on the hidden samples
    error_after: float  # the same after the denoiser


def find_trust(
    measured: Tensor, mask: Tensor, priors: list[Prior], config, seed: int, bar: tqdm | None = None
) -> Trust:
    """Choose σ_0 and α from the scan: hide samples, reconstruct without them, predict them.

    At every level tried, a denoiser proposes a change D − x of the OU's result x; α is its least-squares fit to
    the error on the hidden samples, errors weighted by their distance to DC. The level that explains most of that
    error wins, if it explains `sampling.trust_margin` of it. Priors without context: the levels are
    `sampling.trust_levels`, the proposal is their mean. Priors with context: the levels are `sampling.error_levels`
    times the error that the hidden samples tell of, and the first prior proposes.

    Parameters
    ----------
    measured
        complex `(frames, height, width)`, unit scale, 0 outside `mask`.
    bar
        progress bar to move on by one per level.
    """
    config = with_periodicity(config, measured, mask)
    kept, hidden = hide(mask, seed=seed)
    if not hidden.any():
        return Trust(0.0, 0.0, 0.0, 0.0, 0.0)
    start = cascade_start(torch.where(kept, measured, 0), kept, config, seed)
    with_context = all(prior.context is not None for prior in priors)
    weight = KspaceWeight(power=1.0, gain=1.0, data_std=1.0) if with_context else priors[-1].weight
    error = weight(measured - start)[hidden]
    before = error.norm().item()
    estimate = missing_error(measured - start, hidden, mask)
    best = Trust(0.0, 0.0, estimate, before, before)
    if with_context:
        level, factors = estimate, config.sampling.error_levels
    else:
        level, factors = priors[-1].weight.data_std, config.sampling.trust_levels
    for factor in factors:
        asked = priors[:1] if with_context else priors
        proposal = torch.stack([
            _proposed_change(prior, start, factor * level, kept, config.data.periodic) for prior in asked
        ]).mean(dim=0)
        change = weight(proposal)[hidden]
        alpha = (torch.vdot(change, error).real / change.norm().square().clamp(min=1e-30)).clamp(0, 1)
        after = (error - alpha * change).norm().item()
        # a gain smaller than the margin is chance, or lies in how hidden samples differ from missing ones
        if after < min(best.error_after, (1 - config.sampling.trust_margin) * before):
            best = Trust(factor * level, alpha.item(), estimate, before, after)
        if bar is not None:
            told = {"hidden_error": best.error_after / max(before, 1e-30), "sigma": best.sigma, "alpha": best.alpha}
            bar.set_postfix({name: f"{value:.3g}" for name, value in told.items()})
            bar.update()
    return best


def missing_error(error: Tensor, hidden: Tensor, mask: Tensor) -> float:
    """Standard deviation per real channel and pixel of the image error in the missing samples.

    Estimated from the error on the hidden ones, whose mean square is taken to fall as 1/r² with the distance r to
    DC, as that of the signal itself does.
    """
    weight = KspaceWeight(power=1.0, gain=1.0, data_std=1.0)
    level = weight(error)[hidden].abs().square().mean()
    falling = weight.on(error).expand(error.shape)[~mask].square().reciprocal().sum()
    return (level * falling / (2 * error.numel())).sqrt().item()


def _proposed_change(prior: Prior, kspace: Tensor, sigma: float, mask: Tensor, periodic: bool) -> Tensor:
    """D − x of one prior, as k-space."""
    x = prior.weight(kspace)
    return prior.weight.inverse(prior.denoise(x, sigma, mask, periodic) - x)


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
    models = {"global": global_model, "local": local_model}
    check_settings(config, mask)
    priors = [models[name] or load_prior(shipped(name, sampling.sampler), device) for name in sampling.order]
    check_noise_levels(sampling, priors)
    scale = scan_scale(kspace, mask)
    measured = (torch.where(mask, kspace, 0) / scale).to(device)
    mask = mask.to(device)

    def dc(k: Tensor, prior_std: Tensor) -> Tensor:
        return data_consistency(k, measured, mask, sampling.noise_std, prior_std)

    generator = torch.Generator().manual_seed(seed)
    config = with_periodicity(config, measured, mask)
    config = with_noise_floor(config, measured, mask, seed)
    unit = OptimizationUnit(config, seed)
    settings = {"config": json.loads(config.to_json()), "seed": seed, "scale": scale}
    settings["checkpoints"] = [prior.path for prior in priors]
    with_context = all(prior.context is not None for prior in priors)
    deviation = None
    if sampling.samples and not with_context:
        raise InputError("sampling.samples needs priors with context, as the shipped ones of --sampler cascade are.")
    tried = len(sampling.error_levels) if with_context else len(sampling.trust_levels) * len(priors)
    with tqdm(total=sampling.iterations, desc=f"GLDM ({sampling.sampler})") as bar:
        log = SamplerLog(measured, mask, bar)
        if sampling.sampler == "published":
            start = measured
            if sampling.start == "pseudo_reference":
                start, _ = pseudo_reference(measured, mask, "nearest", periodic=config.data.periodic)
            sde = VESDE(sampling.sigma_min, sampling.sigma_max, sampling.num_scales)
            result = published_cascade(start, dc, unit, priors, sde, sampling, generator, log)
            passes = len(log.steps) * len(priors) * (1 + sampling.copies)
        else:
            start = cascade_start(measured, mask, config, seed)
            trust = find_trust(measured, mask, priors, config, seed, bar)
            settings["trust"] = asdict(trust)
            taken = schedule(trust, priors, sampling.steps)
            bar.total = bar.n + len(taken)

            def denoise(prior: Prior, x: Tensor, sigma: float) -> Tensor:
                return prior.denoise(x, sigma, mask, config.data.periodic)

            result = few_step_cascade(start, dc, unit, denoise, taken, sampling.churn, generator, log)
            passes = len(log.steps) + tried + sampling.samples
            if sampling.samples:
                left = trust.error
                for step in taken:
                    left *= 1 - step.share * (1 - step.prior.remaining)
                last = partial(denoise, priors[-1])
                deviation = deviation_map(result, mask, left, last, sampling.samples, generator).cpu() * scale
    settings["passes_per_frame"] = passes
    return Reconstruction((ifft2c(result) * scale).cpu(), deviation, log.steps, settings)


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
    if sampling.copies < 1 or sampling.steps < 1 or not sampling.trust_levels:
        raise InputError("sampling.copies and sampling.steps must be at least 1, and trust_levels not empty.")
    if sampling.samples == 1 or sampling.samples < 0:
        raise InputError(f"sampling.samples must be 0 or at least 2, not {sampling.samples}.")
    unit.check(*mask.shape)
    if sampling.sampler == "cascade" and is_lines(mask) and acs_rows(mask).sum() < SMALLEST_ACS:
        raise InputError(
            f"the mask has {acs_rows(mask).sum()} ACS lines and the cascade finds its noise level from at least "
            f"{SMALLEST_ACS}; sample more central lines in every frame, or use --sampler published."
        )


def check_noise_levels(sampling, priors: list[Prior]) -> None:
    """Raise `InputError` when the sampler would ask a checkpoint for noise levels it was not trained for."""
    for prior in priors:
        if prior.context is not None and sampling.sampler == "published":
            raise InputError(
                f"{prior.path} sees images with their neighbours; the published sampler needs a model of weighted "
                "k-space (training.objective=dsm): use --sampler cascade."
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
