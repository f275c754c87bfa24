"""What a prior is trained for: `dsm` (the paper's), `synthetic` (moving scenes) or `measured` (hidden samples).

An objective draws its batches, gives the loss of a network on one, and says what a checkpoint must record so that
a reconstruction can use the network.
"""

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_collections
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datasets import (
    PreparedScene,
    PseudoReferenceFrames,
    SceneBatch,
    SceneFile,
    SceneFrames,
    acquisition,
    advance_scene,
    data_checksum,
    prepare_measured,
    prepare_scene,
    pseudo_reference_file,
    training_sources,
)
from losses import NoisyBatch, advance, completion_loss, completion_size, draw_noise, dsm_loss
from models.context import Context
from models.precision import Score
from mri.consistency import scan_scale
from mri.fourier import ifft2c
from mri.io import sha256
from mri.masks import lines_along_rows
from mri.weighting import KspaceWeight, from_channels
from optimization_unit import OptimizationUnit, find_settings
from priors import Prior, load_prior
from sde_lib import VESDE
from utils.errors import InputError
from utils.files import atomic_path
from utils.frame_file import open_frames
from utils.processes import ALONE, Processes

Tensor = torch.Tensor

OBJECTIVES = ("dsm", "synthetic", "measured")


def frames_per_draw(config: ml_collections.ConfigDict) -> int:
    """The most frames of one draw, of which whole numbers make a batch."""
    settings = config.training
    return 1 if settings.objective == "dsm" else min(settings.scene_frames, settings.batch_size)


class Objective(ABC):
    """What `training.Training` needs of an objective; a batch is a tuple of tensors with a first axis of frames."""

    name: str  # global or local
    context: Context | None
    frames_per_draw: int

    @abstractmethod
    def draw(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """A small batch that `generator` alone decides: any process can draw any of them, at any time."""

    def join(self, draws: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Several draws as one batch."""
        return type(draws[0])(*(torch.cat(tensors) for tensors in zip(*draws, strict=True)))

    @abstractmethod
    def loss(self, score: Score, batch: tuple[Tensor, ...]) -> Tensor:
        """Summed over the batch: `(steps,)`, after each step of a cascade that is trained through."""

    @abstractmethod
    def size(self, batch: tuple[Tensor, ...]) -> Tensor | float:
        """What the summed loss is divided by, also summed; of all processes, when several share a batch."""

    @abstractmethod
    def metadata(self) -> dict:
        """What `priors.load_prior` needs beside the network."""

    @abstractmethod
    def example(self, score: Score, device: torch.device) -> tuple[str, Tensor]:
        """A picture `(1, height, width)` of what the network does, and its name."""


class DenoisingScoreMatching(Objective):
    """The published objective: denoise the weighted k-space of pseudo-references.

    `frames` are complex `(N, height, width)`, of scans of unit scale; an array, which may be memory-mapped.
    """

    frames_per_draw = 1

    def __init__(self, config: ml_collections.ConfigDict, frames: np.ndarray, name: str) -> None:
        self.name, self.context = name, None
        self.weight = KspaceWeight.fit(frames, config.weight.power, config.weight.data_std)
        self.data = PseudoReferenceFrames(frames, self.weight, config.training.max_gain, config.training.max_shift)
        self.sde = VESDE(config.model.sigma_min, config.model.sigma_max, config.model.num_scales)

    def draw(self, generator: torch.Generator) -> NoisyBatch:
        return draw_noise(self.data.draw(generator), self.sde, generator)

    def loss(self, score: Score, batch: NoisyBatch) -> Tensor:
        return dsm_loss(score, batch)[None]

    def size(self, batch: NoisyBatch) -> float:
        return batch.x.numel()

    def metadata(self) -> dict:
        return {"weight": self.weight.to_dict(), "objective": "dsm"}

    @torch.no_grad()
    def example(self, score: Score, device: torch.device) -> tuple[str, Tensor]:
        """A frame's image clean, with noise, and denoised by D = x + σ² s, at three noise levels: `(1, H, W)`."""
        generator = torch.Generator().manual_seed(0)
        x = self.data.draw(generator).to(device)
        rows = []
        for factor in (0.1, 0.3, 1.0):
            sigma = factor * self.weight.data_std
            noisy = x + sigma * torch.randn(x.shape, generator=generator).to(x)
            denoised = noisy + sigma**2 * score(noisy, torch.full((1,), sigma, device=x.device))
            stages = [ifft2c(self.weight.inverse(from_channels(s)))[0].abs() for s in (x, noisy, denoised)]
            rows.append(torch.cat([s / stages[0].max() for s in stages], dim=1))
        return "clean, noisy, denoised", torch.cat(rows)[None].clamp(0, 1).cpu()


class Completion(Objective):
    """Take away what the OU leaves wrong in the missing samples: of synthetic scenes, or of samples that were hidden.

    Parameters
    ----------
    scenes
        prepared ones; the first `count` are drawn from.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, scenes: Sequence[PreparedScene], count: int, name: str
    ) -> None:
        settings = config.training
        self.name, self.frames_per_draw = name, frames_per_draw(config)
        self.steps = settings.steps
        self.context = Context.from_config(config.context[name])
        self.kind = settings.objective
        self.data = SceneFrames(scenes, count, self.frames_per_draw, settings)

    def draw(self, generator: torch.Generator) -> SceneBatch:
        return self.data.draw(generator)

    def loss(self, score: Score, batch: SceneBatch) -> Tensor:
        told = batch.told[batch.place == 0].tolist()
        return completion_loss(score, batch.scans(), told, self.context, self.steps)

    def size(self, batch: SceneBatch) -> Tensor:
        return completion_size(batch.scans())

    def metadata(self) -> dict:
        plain = KspaceWeight(power=0.0, gain=1.0, data_std=1.0)
        return {"weight": plain.to_dict(), "objective": self.kind, "context": self.context.to_dict()}

    @torch.no_grad()
    def example(self, score: Score, device: torch.device) -> tuple[str, Tensor]:
        """The first frame of three scans: truth, start, denoised, the error × 10 of the last two: `(1, H, W)`."""
        rows = []
        for seed in range(3):
            draw = self.draw(torch.Generator().manual_seed(seed))
            (scan,) = SceneBatch(*(tensor.to(device) for tensor in draw)).scans()
            (after,) = advance(score, [scan], self.context, [scan.error_std()])
            truth, start, denoised = (image[0].abs() for image in (scan.image, scan.start, after.start))
            errors = [10 * (image[0] - scan.image[0]).abs() for image in (scan.start, after.start)]
            rows.append(torch.cat([truth, start, denoised, *errors], dim=1))
        width = max(row.shape[1] for row in rows)  # scans that are not sampled in lines are not cut
        rows = [torch.nn.functional.pad(row, (0, width - row.shape[1])) for row in rows]
        return "truth, start, denoised, errors x 10", torch.cat(rows)[None].clamp(0, 1).cpu()


def make_objective(
    config: ml_collections.ConfigDict, workdir: Path, name: str, among: Processes = ALONE
) -> Objective:
    """The objective of `config.training.objective` for GM or LM (`name`), its data made ready in `workdir/data`.

    The data are one memory-mapped file, made once by the first process. `measured` hides samples of scans
    (`measured_<hidings>_<checksum>.npy`). `synthetic` draws its scenes into
    `scenes_<size>.npy` (begun by `motion`: `scenes_motion_<size>.npy`); LM learns from what GM leaves of them
    (`…_after_<checksum of GM>.npy`), so GM must be there. A run that wants more scenes adds them.

    Raises
    ------
    InputError
        for an unknown objective.
    """
    settings, folder = config.training, workdir / "data"
    if settings.objective == "dsm":
        path = among.first_before_others(lambda: pseudo_reference_file(config, folder, name))
        return DenoisingScoreMatching(config, open_frames(path), name)
    if settings.objective not in OBJECTIVES:
        raise InputError(f"training.objective '{settings.objective}' is unknown; choose {' or '.join(OBJECTIVES)}.")
    path = workdir / "global" / "model.safetensors"
    if name == "local" and not path.is_file():
        raise InputError(f"{path} is not there, and LM learns from what GM leaves; train --model=global first.")
    if settings.objective == "synthetic":
        size = config.data.image_size
        scenes = scene_file(folder, settings.ou, size)
        workers = loader_workers(config, among.device)
        among.first_before_others(lambda: draw_scenes(scenes, settings.scenes, size, settings.ou, workers))
        count = settings.scenes
    else:
        scenes = among.first_before_others(lambda: measured_file(config, folder))
        count = len(scenes)
    if name == "global":
        return Completion(config, scenes, count, name)
    advanced = advanced_file(scenes, path)
    prior = load_prior(path, among.device)
    among.first_before_others(lambda: advance_scenes(scenes, advanced, count, prior, among.device, settings.error_gain))
    return Completion(config, advanced, count, name)


def scene_file(folder: Path, operator: str, size: int) -> SceneFile:
    """Where the synthetic scenes of this size are, begun by this OU."""
    return SceneFile(folder / f"scenes_{'' if operator == 'llr' else f'{operator}_'}{size}.npy")


def draw_scenes(
    scenes: SceneFile, count: int, size: int, operator: str, workers: int, deadline: float = math.inf
) -> None:
    """Add synthetic scenes to `scenes` until it has `count`, drawn by `workers` processes (0: this one).

    No further one after `deadline`, in seconds of `time.monotonic`, but one in any case.
    """
    numbers = range(len(scenes) + 1, count + 1)
    loader = DataLoader(_Drawn(numbers, size, operator), batch_size=None, num_workers=workers)
    for scene in tqdm(loader, desc="scenes", unit="scene", disable=not numbers):
        scenes.append(scene)
        if time.monotonic() > deadline:
            break


def measured_file(config: ml_collections.ConfigDict, folder: Path) -> SceneFile:
    """The scans of `config.data` with samples hidden in `training.hidings` ways each, in one file, made once."""
    sources = training_sources(config)
    if config.ou.operator == "auto" and config.sampling.sampler == "cascade":
        config = config.copy_and_resolve_references()
        config.ou.operator = config.training.ou  # as in the synthetic scenes
    operator = OptimizationUnit(config).operator  # ou.operator auto depends on the sampler
    checksum = data_checksum(config, sources, "mask", "ou")
    path = folder / f"measured_{config.training.hidings}_{operator}_{checksum}.npy"
    if path.exists():
        return SceneFile(path)
    with atomic_path(path) as temporary:
        written, size = SceneFile(temporary), None
        for source in tqdm(sources, desc="scans", unit="scan"):
            scan = acquisition(config, source)
            mask, kspace = lines_along_rows(scan.mask), scan.kspace
            if mask is not scan.mask:
                kspace = kspace.mT
            size = size or mask.shape[1:]
            if mask.shape[1:] != size:
                raise InputError(
                    f"{scan.name} is {tuple(mask.shape[1:])} and others are {tuple(size)}; train on scans of one "
                    "size (--config.data.scan_size)."
                )
            unit = kspace / scan_scale(kspace, mask)
            own, _ = find_settings(config, unit, mask, config.seed)
            for seed in range(config.training.hidings):
                written.append(prepare_measured(unit, mask, own, seed))
    return SceneFile(path)


def advanced_file(scenes: SceneFile, path: Path) -> SceneFile:
    """Where what the GM of the file `path` makes of `scenes` is: another GM makes others."""
    return SceneFile(scenes.path.with_name(f"{scenes.path.stem}_after_{sha256(path)[:12]}.npy"))


def advance_scenes(
    scenes: SceneFile,
    advanced: SceneFile,
    count: int,
    prior: Prior,
    device: torch.device,
    error_gain: float,
    deadline: float = math.inf,
) -> None:
    """Add to `advanced` what `prior` makes of the first `count` of `scenes`, as far as it is not there.

    `error_gain` as of `datasets.advance_scene`, `deadline` as of `draw_scenes`.
    """
    numbers = range(len(advanced), count)
    for number in tqdm(numbers, desc="scenes after GM", unit="scene", disable=not numbers):
        advanced.append(advance_scene(scenes[number], prior, device, error_gain))
        if time.monotonic() > deadline:
            break


@dataclass(frozen=True)
class _Drawn(Dataset):
    """Scenes by their place in `numbers`, made when they are asked for."""

    numbers: range
    size: int
    operator: str

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> PreparedScene:
        return prepare_scene(self.numbers[place], self.size, self.operator)


def loader_workers(config: ml_collections.ConfigDict, device: torch.device) -> int:
    """Processes that make data beside the training: `training.workers`; None: 0 on a CPU, else up to 12."""
    if config.training.workers is not None:
        return config.training.workers
    return min(12, max(1, (os.cpu_count() or 2) - 2)) if device.type == "cuda" else 0
