"""What a prior is trained for: `dsm` (the paper's) or `synthetic` (moving scenes).

An objective draws its batches, gives the loss of a network on one, and says what a checkpoint must record so that
a reconstruction can use the network.
"""

from pathlib import Path

import ml_collections
import torch
from tqdm import tqdm

from datasets import (
    PseudoReferenceFrames,
    SceneFrames,
    acquisition,
    advance_scene,
    prepare_scene,
    pseudo_reference_frames,
    scan_files,
)
from losses import Score, completion_loss, denoise, dsm_loss
from models.context import Context
from mri.fourier import ifft2c
from mri.io import sha256
from mri.weighting import KspaceWeight, from_channels
from priors import load_prior
from sde_lib import VESDE
from utils.errors import InputError

Tensor = torch.Tensor

OBJECTIVES = ("dsm", "synthetic")


class DenoisingScoreMatching:
    """The published objective: denoise the weighted k-space of pseudo-references."""

    def __init__(self, config: ml_collections.ConfigDict, frames: Tensor, name: str) -> None:
        self.batch_size, self.name, self.context = config.training.batch_size, name, None
        self.weight = KspaceWeight.fit(frames, config.weight.power, config.weight.data_std)
        self.data = PseudoReferenceFrames(frames, self.weight, config.training.max_gain, config.training.max_shift)
        self.sde = VESDE(config.model.sigma_min, config.model.sigma_max, config.model.num_scales)

    def loss(self, score: Score, generator: torch.Generator, device: torch.device) -> Tensor:
        x = self.data.batch(self.batch_size, generator).to(device).contiguous(memory_format=torch.channels_last)
        return dsm_loss(score, x, self.sde, generator)

    def metadata(self) -> dict:
        """What `sampling.load_prior` needs beside the network."""
        return {"weight": self.weight.to_dict(), "objective": "dsm"}

    @torch.no_grad()
    def example(self, score: Score, device: torch.device) -> tuple[str, Tensor]:
        """A frame's image clean, with noise, and denoised by D = x + σ² s, at three noise levels: `(1, H, W)`."""
        generator = torch.Generator().manual_seed(0)
        x = self.data.batch(1, generator).to(device)
        rows = []
        for factor in (0.1, 0.3, 1.0):
            sigma = factor * self.weight.data_std
            noisy = x + sigma * torch.randn(x.shape, generator=generator).to(x)
            denoised = noisy + sigma**2 * score(noisy, torch.full((1,), sigma, device=x.device))
            stages = [ifft2c(self.weight.inverse(from_channels(s)))[0].abs() for s in (x, noisy, denoised)]
            rows.append(torch.cat([s / stages[0].max() for s in stages], dim=1))
        return "clean, noisy, denoised", torch.cat(rows)[None].clamp(0, 1).cpu()


class Completion:
    """Take away what the OU leaves wrong in the missing samples of synthetic scenes."""

    def __init__(self, config: ml_collections.ConfigDict, files: list[Path], name: str) -> None:
        self.batch_size, self.name = config.training.batch_size, name
        self.context = Context.from_config(config.context[name])
        self.data = SceneFrames(files, self.context, config.training)

    def loss(self, score: Score, generator: torch.Generator, device: torch.device) -> Tensor:
        return completion_loss(score, self.data.batch(self.batch_size, generator).to(device))

    def metadata(self) -> dict:
        plain = KspaceWeight(power=0.0, gain=1.0, data_std=1.0)
        return {"weight": plain.to_dict(), "objective": "synthetic", "context": self.context.to_dict()}

    @torch.no_grad()
    def example(self, score: Score, device: torch.device) -> tuple[str, Tensor]:
        """Three frames: truth, start, denoised, and the error × 10 of the last two: `(1, H, W)`."""
        batch = self.data.batch(3, torch.Generator().manual_seed(0)).to(device)
        denoised = denoise(score, batch)
        errors = [10 * (image - batch.truth).abs() for image in (batch.image, denoised)]
        columns = [batch.truth.abs(), batch.image.abs(), denoised.abs(), *errors]
        return "truth, start, denoised, errors x 10", torch.cat(columns, dim=2).flatten(0, 1)[None].clamp(0, 1).cpu()


def make_objective(config: ml_collections.ConfigDict, workdir: Path, name: str):
    """The objective of `config.training.objective` for GM or LM (`name`), its data made ready under `workdir`.

    `synthetic` draws its scenes once, into `workdir/scenes`; LM learns from what GM leaves of them
    (`workdir/scenes_after_global_<checksum of GM>`), so GM must be there.

    Raises
    ------
    InputError
        for an unknown objective.
    """
    settings = config.training
    if settings.objective == "dsm":
        sources = scan_files(config.data.path) if config.data.path else range(1, config.data.phantoms + 1)
        scans = [acquisition(config, source) for source in tqdm(sources, desc="scans", unit="scan")]
        return DenoisingScoreMatching(config, pseudo_reference_frames(config, scans, name), name)
    if settings.objective != "synthetic":
        raise InputError(f"training.objective '{settings.objective}' is unknown; choose {' or '.join(OBJECTIVES)}.")
    path = workdir / "global" / "model.safetensors"
    if name == "local" and not path.is_file():
        raise InputError(f"{path} is not there, and LM learns from what GM leaves; train --model=global first.")
    numbers = range(1, settings.scenes + 1)
    drawn = [
        prepare_scene(workdir / "scenes", number, config.data.image_size)
        for number in tqdm(numbers, desc="scenes", unit="scene")
    ]
    if name == "local":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        prior = load_prior(path, device)
        folder = workdir / f"scenes_after_global_{sha256(path)[:12]}"  # another GM makes others
        drawn = [
            advance_scene(file, folder, prior, device)
            for file in tqdm(drawn, desc="scenes after GM", unit="scene")
        ]
    return Completion(config, drawn, name)
