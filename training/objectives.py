"""What a prior is trained for: `dsm` (the paper's: merged frames), `scenes` (clean moving images); see also
`training.cascade` (through the sampler).

An objective draws its batches, gives the loss of a network on one, and says what a checkpoint must record so that
a reconstruction can use the network.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from datasets import CleanScenes, NoisyScenes, PseudoReferenceFrames
from losses import NoisyBatch, draw_noise, dsm_loss, scene_loss
from models.completion import State, tweedie_changes
from models.context import Context
from models.precision import Score
from models.prior import nothing_measured
from mri.fourier import ifft2c
from mri.weighting import KspaceWeight, from_channels
from sde_lib import VESDE
from training.processes import ALONE, Processes
from training.pseudo_references import own_images, pseudo_reference_file
from training.settings import RunSettings, TrainingSettings
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
        """Summed over the batch."""

    @abstractmethod
    def size(self, batch: tuple[Tensor, ...]) -> float:
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
        return dsm_loss(score, batch)

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
        states = [State(one.noisy, nothing_measured(one.noisy), bool(one.periodic[0])) for one in scenes]
        sigmas = [float(one.sigma[0]) for one in scenes]
        return scene_loss(score, states, [one.clean for one in scenes], sigmas, self.context)

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
            state = State(one.noisy, nothing_measured(one.noisy), bool(one.periodic[0]))
            (change,) = tweedie_changes(score, [state], self.context, [float(one.sigma[0])])
            images = (one.clean[0], one.noisy[0], one.noisy[0] + change[0])
            tiles = [*(image.abs() for image in images), 5 * (images[2] - images[0]).abs()]
            rows.append(torch.cat([pad_to(tile, self.data.crop) for tile in tiles], dim=1))
        return "clean, noisy, denoised, error x 5", torch.cat(rows)[None].clamp(0, 1).cpu()


def pad_to(image: Tensor, size: int) -> Tensor:
    """An image with zeros to the right and below, up to `size`."""
    return torch.nn.functional.pad(image, (0, size - image.shape[1], 0, size - image.shape[0]))


def make_objective(settings: RunSettings, workdir: Path, name: str, processes: Processes = ALONE) -> Objective:
    """The objective of `training.objective` for GM or LM (`name`), its data prepared in `workdir/data`.

    That of `dsm` is a memory-mapped file, made once by the first process; the others draw while they train.
    """
    if settings.training.objective == "dsm":
        path = processes.first_before_others(lambda: pseudo_reference_file(settings, workdir / "data", name))
        return DenoisingScoreMatching(settings, open_frames(path), name)
    images = own_images(settings, name) if settings.intake.data.path else []
    if settings.training.objective == "cascade":
        from training.cascade import ThroughTheCascade  # which knows `Objective`

        return ThroughTheCascade(settings, images, name)
    return SceneDenoising(settings, images, name)


def loader_workers(training: TrainingSettings, device: torch.device) -> int:
    """Processes that make data besides the training: `training.workers`; None: 0 on a CPU, else up to 12."""
    if training.workers is not None:
        return training.workers
    return min(12, max(1, (os.cpu_count() or 2) - 2)) if device.type == "cuda" else 0
