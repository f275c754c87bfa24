"""What a prior is trained for: `dsm` (the paper's), `synthetic` (moving scenes), `self_supervised` (held-out samples).

An objective draws its batches, gives the loss of a network on one, and says what a checkpoint must record so that
a reconstruction can use the network.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from datasets import CleanScenes, NoisyScenes, PseudoReferenceFrames, SceneBatch, SceneFrames
from losses import NoisyBatch, PreparedScene, completion_loss, completion_size, draw_noise, dsm_loss, scene_loss
from models.completion import State, denoise_consistently, tweedie_changes
from models.context import Context
from models.precision import Score
from models.prior import load_prior
from mri.formats import sha256
from mri.fourier import ifft2c
from mri.operators import ForwardModel
from mri.weighting import KspaceWeight, from_channels
from sde_lib import VESDE
from training.processes import ALONE, Processes
from training.scene_files import (
    advance_scenes,
    advanced_file,
    draw_scenes,
    own_images,
    pseudo_reference_file,
    scene_file,
    self_supervised_file,
)
from training.settings import RunSettings, TrainingSettings
from utils.errors import InputError
from utils.frame_file import open_frames

Tensor = torch.Tensor

WEIGHT_POWER, DATA_STD = 1.0, 0.5  # of weighted k-space: w ∝ r^power; its standard deviation per real channel
CONTEXTS = {"global": Context((-4, -2, -1, 1, 2, 4), mean=True), "local": Context((-2, -1, 1, 2))}


def frames_per_draw(settings: TrainingSettings) -> int:
    """The most frames of one draw; whole draws make a batch."""
    return 1 if settings.objective == "dsm" else min(settings.scene_frames, settings.batch_size)


class Objective(ABC):
    """What `training.loop.Training` needs of an objective; a batch is a tuple of tensors, frames first."""

    name: str  # global or local
    context: Context | None
    frames_per_draw: int

    @abstractmethod
    def draw(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """A small batch that `generator` alone decides: any process can draw any of them, at any time."""

    def collate(self, draws: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
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
        """What `models.prior.load_prior` needs besides the network."""

    @abstractmethod
    def example(self, score: Score, device: torch.device) -> tuple[str, Tensor]:
        """A picture `(1, height, width)` of what the network does, and its name."""


class DenoisingScoreMatching(Objective):
    """The published objective: denoise the weighted k-space of pseudo-references.

    `frames` are complex `(N, height, width)`, of scans of unit scale; an array, which may be memory-mapped.
    """

    frames_per_draw = 1

    def __init__(self, settings: RunSettings, frames: np.ndarray, name: str) -> None:
        self.name, self.context = name, None
        self.weight = KspaceWeight.fit(frames, WEIGHT_POWER, DATA_STD)
        self.data = PseudoReferenceFrames(frames, self.weight)
        self.sde = VESDE(settings.model.sigma_min, settings.model.sigma_max)

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
    """Remove the artefacts that the OU leaves: in synthetic scenes, or at held-out samples of real scans.

    Parameters
    ----------
    scenes
        prepared ones; the first `count` are drawn from.
    """

    def __init__(self, settings: RunSettings, scenes: Sequence[PreparedScene], count: int, name: str) -> None:
        training = settings.training
        self.name, self.frames_per_draw = name, frames_per_draw(training)
        self.steps, self.lowest = training.steps, settings.model.sigma_min
        self.context = CONTEXTS[name].of_completion()
        self.kind = training.objective
        self.data = SceneFrames(scenes, count, self.frames_per_draw, training.columns)

    def draw(self, generator: torch.Generator) -> SceneBatch:
        return self.data.draw(generator)

    def loss(self, score: Score, batch: SceneBatch) -> Tensor:
        scales = batch.sigma_scale[batch.place == 0].tolist()
        return completion_loss(score, batch.scans(), scales, self.context, self.steps, self.lowest)

    def size(self, batch: SceneBatch) -> Tensor:
        return completion_size(batch.scans())

    def metadata(self) -> dict:
        return {"weight": KspaceWeight.none().to_dict(), "objective": self.kind, "context": self.context.to_dict()}

    @torch.no_grad()
    def example(self, score: Score, device: torch.device) -> tuple[str, Tensor]:
        """The first frame of three scans: truth, start, denoised, the error × 10 of the last two: `(1, H, W)`."""
        rows = []
        for seed in range(3):
            draw = self.draw(torch.Generator().manual_seed(seed))
            (scan,) = SceneBatch(*(tensor.to(device) for tensor in draw)).scans()
            (after,) = denoise_consistently(score, [scan.state], self.context, [scan.error_std()], self.lowest)
            combined = (scan.truth * scan.maps.conj()).sum(dim=1)
            truth, start, denoised = (image[0].abs() for image in (combined, scan.start, after.image))
            errors = [10 * (image[0] - combined[0]).abs() for image in (scan.start, after.image)]
            rows.append(torch.cat([truth, start, denoised, *errors], dim=1))
        width = max(row.shape[1] for row in rows)  # scans that are not sampled in lines are not cut
        rows = [torch.nn.functional.pad(row, (0, width - row.shape[1])) for row in rows]
        return "truth, start, denoised, errors x 10", torch.cat(rows)[None].clamp(0, 1).cpu()


class SceneDenoising(Objective):
    """The score of clean moving scenes, images with their neighbours: what an image looks like, whatever the scan.

    Parameters
    ----------
    images
        what is learned from, see `datasets.CleanScenes`; empty: synthetic scenes without end.
    """

    def __init__(self, settings: RunSettings, images: Sequence[tuple[Tensor, bool]], name: str) -> None:
        training, model = settings.training, settings.model
        self.name, self.frames_per_draw = name, frames_per_draw(training)
        self.context = CONTEXTS[name]
        crop = training.columns or model.image_size
        self.data = CleanScenes(images, self.frames_per_draw, crop, (model.sigma_min, model.sigma_max))

    def draw(self, generator: torch.Generator) -> NoisyScenes:
        return self.data.draw(generator)

    def loss(self, score: Score, batch: NoisyScenes) -> Tensor:
        scenes = batch.scenes()
        states = [State(one.noisy, _unmeasured(one.noisy), bool(one.periodic[0])) for one in scenes]
        sigmas = [float(one.sigma[0]) for one in scenes]
        return scene_loss(score, states, [one.clean for one in scenes], sigmas, self.context)[None]

    def size(self, batch: NoisyScenes) -> float:
        return 2 * batch.clean.numel()

    def metadata(self) -> dict:
        return {"weight": KspaceWeight.none().to_dict(), "objective": "scenes", "context": self.context.to_dict()}

    @torch.no_grad()
    def example(self, score: Score, device: torch.device) -> tuple[str, Tensor]:
        """The first frame of three scenes: clean, noisy, denoised, and the error that is left × 5: `(1, H, W)`."""
        rows = []
        for seed in range(3):
            draw = self.draw(torch.Generator().manual_seed(seed))
            (one,) = NoisyScenes(*(tensor.to(device) for tensor in draw)).scenes()
            state = State(one.noisy, _unmeasured(one.noisy), bool(one.periodic[0]))
            (change,) = tweedie_changes(score, [state], self.context, [float(one.sigma[0])])
            images = (one.clean[0], one.noisy[0], one.noisy[0] + change[0])
            tiles = [*(image.abs() for image in images), 5 * (images[2] - images[0]).abs()]
            rows.append(torch.cat([pad_to(tile, self.data.crop) for tile in tiles], dim=1))
        return "clean, noisy, denoised, error x 5", torch.cat(rows)[None].clamp(0, 1).cpu()


def _unmeasured(image: Tensor) -> ForwardModel:
    """The forward model of a scene that nothing was measured of."""
    return ForwardModel.of_one_coil(torch.zeros(image.shape, dtype=torch.bool, device=image.device))


def pad_to(image: Tensor, size: int) -> Tensor:
    """An image with zeros to the right and below, up to `size`."""
    return torch.nn.functional.pad(image, (0, size - image.shape[1], 0, size - image.shape[0]))


Made = TypeVar("Made")


def make_objective(settings: RunSettings, workdir: Path, name: str, processes: Processes = ALONE) -> Objective:
    """The objective of `training.objective` for GM or LM (`name`), its data prepared in `workdir/data`.

    The data are memory-mapped files, made once by the first process. `synthetic` draws its scenes into
    `scenes_<size>.npy`; a run that wants more scenes adds them. LM learns from what GM leaves
    (`…_after_<checksum of GM>.npy`), so GM must be there.

    Raises
    ------
    InputError
        when LM is trained without GM.
    """
    training, folder = settings.training, workdir / "data"
    made: Callable[[Callable[[], Made]], Made] = processes.first_before_others
    if training.objective == "dsm":
        path = made(lambda: pseudo_reference_file(settings, folder, name))
        return DenoisingScoreMatching(settings, open_frames(path), name)
    if training.objective == "scenes":
        return SceneDenoising(settings, own_images(settings) if settings.intake.data.path else [], name)
    gm = workdir / "global" / "model.safetensors"
    if name == "local" and not gm.is_file():
        raise InputError(f"{gm} is not there, and LM learns from what GM leaves; train --model=global first.")
    if training.objective == "synthetic":
        size = settings.intake.data.size or settings.model.image_size
        scenes, count = scene_file(folder, training.ou, size), training.scenes
        workers = loader_workers(training, processes.device)
        made(lambda: draw_scenes(scenes, count, size, training.ou, workers))
    else:
        scenes = made(lambda: self_supervised_file(settings, folder))
        count = len(scenes)
    if name == "global":
        return Completion(settings, scenes, count, name)
    advanced = advanced_file(scenes, sha256(gm))
    prior = load_prior(gm, processes.device)
    made(lambda: advance_scenes(scenes, advanced, count, prior, processes.device))
    return Completion(settings, advanced, count, name)


def loader_workers(training: TrainingSettings, device: torch.device) -> int:
    """Processes that make data besides the training: `training.workers`; None: 0 on a CPU, else up to 12."""
    if training.workers is not None:
        return training.workers
    return min(12, max(1, (os.cpu_count() or 2) - 2)) if device.type == "cuda" else 0
