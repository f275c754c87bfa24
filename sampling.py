"""The reconstruction: a cascade of two diffusion priors, GM → LM, with data consistency and the OU between."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from models.checkpoint import load_model
from models.convert import load_published
from models.ncsnpp import NCSNpp
from mri.consistency import data_consistency, data_residual, scan_scale
from mri.fourier import fft2c, ifft2c
from mri.interleave import pseudo_reference
from mri.locally_low_rank import LocallyLowRank, fista_locally_low_rank
from mri.lowrank import HankelLowRank
from mri.weighting import KspaceWeight, from_channels, to_channels
from sde_lib import VESDE
from utils.errors import InputError

Tensor = torch.Tensor


def published_cascade(kspace, dc, optimization_unit, gm, lm, sde, config, generator, log):
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
    copies = torch.zeros(config.copies, len(kspace), 2, *kspace.shape[1:], device=kspace.device)
    for i in range(len(sigmas) - 1, len(sigmas) - 1 - config.iterations, -1):
        sigma, sigma_next = sigmas[i], sigmas[i - 1]
        for prior in (gm, lm):
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
            epsilon = 2 * (config.snr * _mean_norm(z.flatten(0, 1)) / _mean_norm(g)) ** 2
            x = x + epsilon * g
            copies = torch.sqrt(2 * epsilon) * z
            kspace = dc(prior.weight.inverse(from_channels(x)), prior_std)
            if prior is lm or optimization_unit.after == "both":
                kspace = dc(fft2c(optimization_unit(ifft2c(kspace))), prior_std)
        log.step(sigma=sigma, residual=residual)
    return kspace


SAMPLERS = {"published": published_cascade}


@dataclass(frozen=True)
class Prior:
    """A score network and the weighted k-space it was trained on."""

    network: NCSNpp
    weight: KspaceWeight
    path: str
    batch_size: int = 16  # frames per network pass

    @torch.no_grad()
    def score(self, x: Tensor, sigma: float) -> Tensor:
        """∇ log p_σ(x) of weighted frames, real `(frames, 2, height, width)`.

        Sizes that the network cannot halve often enough are mirrored at the edge of k-space for the pass.
        """
        height, width = x.shape[-2:]
        divisor = 2 ** (len(self.network.config["ch_mult"]) - 1)
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
        network, weight = load_published(path), KspaceWeight.published()
    else:
        network, metadata = load_model(path)
        if "weight" not in metadata:
            raise InputError(f"{path} has no k-space weight; use a checkpoint that main.py --mode=train wrote.")
        weight = KspaceWeight(**metadata["weight"])
    network = network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return Prior(network, weight, str(path), batch_size)


class OptimizationUnit:
    """Low rank: `hankel` (structured, published) or `llr` (locally low rank), as `config.ou` says."""

    def __init__(self, ou, seed: int = 0) -> None:
        if ou.operator not in ("hankel", "llr"):
            raise InputError(f"ou.operator '{ou.operator}' is unknown; choose hankel or llr.")
        if ou.after not in ("both", "last"):
            raise InputError(f"ou.after '{ou.after}' is unknown; choose both or last.")
        self.after = ou.after
        self.project: Callable[[Tensor], Tensor]
        if ou.operator == "hankel":
            self.project = HankelLowRank(ou.window, ou.rank, ou.sweeps)
        else:
            self.project = LocallyLowRank(ou.threshold, ou.patch, seed)

    def __call__(self, image: Tensor) -> Tensor:
        """One step on the images of a scan of unit scale, complex `(frames, height, width)`."""
        return self.project(image)


def optimization_unit_alone(kspace: Tensor, mask: Tensor, ou, seed: int = 0, periodic: bool = False) -> Tensor:
    """The OU without any network, from the nearest-in-time start: image `(frames, height, width)`.

    `hankel`: projection and data consistency in turn. `llr`: FISTA, which is the same with momentum.
    """
    scale = scan_scale(kspace, mask)
    measured = kspace / scale
    start, _ = pseudo_reference(measured, mask, "nearest", periodic=periodic)
    if ou.operator == "llr":
        result = fista_locally_low_rank(start, measured, mask, ou.threshold, ou.patch, ou.iterations, seed)
        return ifft2c(result) * scale
    unit, result = OptimizationUnit(ou, seed), start
    for _ in range(ou.iterations):
        result = data_consistency(fft2c(unit(ifft2c(result))), measured, mask)
    return ifft2c(result) * scale


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
    log: list[dict[str, float]]  # per step: sigma, residual of the data before data consistency
    settings: dict  # configuration, seed, checkpoints, scale, network passes per frame


def reconstruct(
    kspace: Tensor,
    mask: Tensor,
    global_model: Prior,
    local_model: Prior,
    config,
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
        GM and LM, see `load_prior`.
    config
        a configuration with `sampling`, `ou` and `data.periodic` (see `configs/default.py`).
    seed
        of the sampler's noise; the result is repeatable on a CPU.

    Raises
    ------
    InputError
        for a setting that fits neither the scan nor the checkpoints.
    """
    sampling = config.sampling
    sde = _checked_sde(sampling, (global_model, local_model))
    scale = scan_scale(kspace, mask)
    measured = (torch.where(mask, kspace, 0) / scale).to(device)
    mask = mask.to(device)

    def dc(k: Tensor, prior_std: Tensor) -> Tensor:
        return data_consistency(k, measured, mask, sampling.noise_std, prior_std)

    start = measured
    if sampling.start == "pseudo_reference":
        start, _ = pseudo_reference(measured, mask, "nearest", periodic=config.data.periodic)
    bar = tqdm(total=sampling.iterations, desc=f"GLDM ({sampling.sampler})")
    log = SamplerLog(measured, mask, bar)
    generator = torch.Generator().manual_seed(seed)
    unit = OptimizationUnit(config.ou, seed)
    with bar:
        result = SAMPLERS[sampling.sampler](
            start, dc, unit, global_model, local_model, sde, sampling, generator, log
        )
    settings = {
        "sampling": sampling.to_dict(),
        "ou": config.ou.to_dict(),
        "seed": seed,
        "checkpoint_global": global_model.path,
        "checkpoint_local": local_model.path,
        "scale": scale,
        "passes_per_frame": sampling.iterations * 2 * (1 + sampling.copies),
    }
    return Reconstruction((ifft2c(result) * scale).cpu(), log.steps, settings)


def _checked_sde(sampling, priors: tuple[Prior, Prior]) -> VESDE:
    """The sampler's SDE, after checking that the checkpoints know its noise levels."""
    if sampling.sampler not in SAMPLERS:
        raise InputError(
            f"sampling.sampler '{sampling.sampler}' is unknown; choose one of {', '.join(SAMPLERS)}."
        )
    if sampling.start not in ("zero_filled", "pseudo_reference"):
        raise InputError(
            f"sampling.start '{sampling.start}' is unknown; choose zero_filled or pseudo_reference."
        )
    if not 1 <= sampling.iterations <= sampling.num_scales:
        raise InputError(
            f"sampling.iterations must lie between 1 and num_scales = {sampling.num_scales}, "
            f"not {sampling.iterations}."
        )
    if sampling.copies < 1:
        raise InputError("sampling.copies must be at least 1.")
    sde = VESDE(sampling.sigma_min, sampling.sigma_max, sampling.num_scales)
    for prior in priors:
        low, high = prior.network.config["sigma_min"], prior.network.config["sigma_max"]
        if sampling.sigma_min < low * (1 - 1e-6) or sampling.sigma_max > high * (1 + 1e-6):
            raise InputError(
                f"σ from {sampling.sigma_min:g} to {sampling.sigma_max:g} leaves the range {low:g} to {high:g} "
                f"that {prior.path} was trained for; set sampling.sigma_min and sampling.sigma_max within it."
            )
    return sde


def _mean_norm(x: Tensor) -> Tensor:
    """Mean over the first axis of the Euclidean norms of its entries."""
    return x.flatten(1).norm(dim=1).mean()
