"""Objective `cascade`: GM and LM trained through the sampler, on simulated scans of moving scenes.

A denoiser of white noise knows nothing of aliasing, and one trained for a single step repeats its bias in every step.
So the OU reconstructs a simulated scan up to one of its later steps without gradients, and from there the sampler's
own code (`mri.lowrank.along_motion`, `reconstruction.in_turn.follow_priors`) runs for a few passes of the network with
data consistency between: the loss is the squared error at their end, as a share of that without the network.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from tqdm import tqdm

from datasets import CleanScenes, parts_of
from models.context import Context
from models.precision import Score
from models.prior import change_of
from mri.fourier import fft2c
from mri.lowrank.along_motion import Iterate, motion_low_rank
from mri.masks import make_mask
from mri.operators import ForwardModel
from mri.scan import Scan
from mri.scenes import Draw
from mri.weighting import KspaceWeight
from reconstruction.in_turn import EVERY, follow_priors, turns
from reconstruction.optimization_unit import OptimizationUnit, motion_schedule, put_back, shares_centre
from reconstruction.prepare import Problem, prepare
from reconstruction.settings import MODELS, OUSettings
from training.objectives import CONTEXTS, Objective, frames_per_draw, pad_to
from training.settings import RunSettings
from utils.errors import InputError

Tensor = torch.Tensor

PASSES = 4  # of the network, with the OU's steps between, that the gradient goes through
ACCELERATIONS = (4, 5, 6, 8, 8, 10, 12)
PATTERNS = ("uniform", "uniform", "uniform", "random", "radial")
LINES = (4, 6, 8)  # central ones, of masks of lines
NOISE = (0.0, 0.0, 0.0, 0.01, 0.02, 0.04)  # σ over the brightest pixel
FEWEST = 4  # frames
HARDLY_ANY = 1e-5  # NMSE: where the OU leaves less there is nothing to learn, and its share would be any number


class SimulatedScans(NamedTuple):
    """Scans with known images, one after the other; every tensor has the frames first."""

    clean: Tensor  # complex (frames, height, width), unit scale
    measured: Tensor  # complex (frames, 1, ky, kx)
    mask: Tensor  # bool (frames, ky, kx)
    noise: Tensor  # (frames, 3): σ, whether it is known, its upper bound
    entry: Tensor  # (frames,): 0 … 1, which of its turns the network begins with
    place: Tensor  # int64 (frames,): of a frame in its scan; 0 begins a scan
    periodic: Tensor  # bool (frames,)

    def scans(self) -> list["SimulatedScans"]:
        """Each scan of the batch."""
        return parts_of(self, self.place)

    def problem(self) -> Problem:
        """What the OU solves, of the first scan."""
        sigma, known, bound = self.noise[0].tolist()
        one = torch.eye(1, dtype=torch.complex64)
        return Problem(
            ForwardModel.of_one_coil(self.mask), self.measured, 1.0, bool(self.periodic[0]), sigma, bool(known), bound,
            False, self.mask.shape[1], one, (),
        )  # fmt: skip


@dataclass(frozen=True)
class Learner:
    """The network as `follow_priors` takes a prior, with gradients."""

    score: Score
    context: Context
    sigma_min: float = 0.0  # it learns at every level that it meets
    sigma_max: float = math.inf

    def change(self, image: Tensor, sigma: float, periodic: bool) -> Tensor:
        return change_of(self.score, self.context, image, sigma, periodic)


class ThroughTheCascade(Objective):
    """The images after a few passes of the network within the OU, against the truth.

    Parameters
    ----------
    images
        that scans are simulated from, see `datasets.CleanScenes`; empty: synthetic scenes without end.
    """

    def __init__(self, settings: RunSettings, images: Sequence[tuple[Tensor, bool]], name: str) -> None:
        self.name, self.context, model = name, CONTEXTS[name], settings.model
        self.frames_per_draw = frames_per_draw(settings.training)
        if self.frames_per_draw < FEWEST:
            raise InputError(
                f"training.objective cascade needs scans of {FEWEST} frames or more; raise training.batch_size and "
                "training.scene_frames."
            )
        crop = settings.training.columns or model.image_size
        self.data = CleanScenes(images, self.frames_per_draw, crop, (model.sigma_min, model.sigma_max))

    def draw(self, generator: torch.Generator) -> SimulatedScans:
        number, own = torch.randint(2**31, (2,), generator=generator).tolist()
        draw = Draw(own)
        image, _ = self.data.clean(draw, number)
        pattern, acceleration, noise = draw.choice(PATTERNS), draw.choice(ACCELERATIONS), draw.choice(NOISE)
        lines = 0 if pattern == "radial" else draw.choice(LINES)
        mask = make_mask(pattern, tuple(image.shape), acceleration, lines, number)
        level = noise * image.abs().max().item()
        phase = torch.polar(torch.tensor(1.0), torch.tensor(draw.uniform(0, 2 * torch.pi)))
        kspace = fft2c(image * phase)
        kspace = kspace + level / 2**0.5 * torch.view_as_complex(draw.normal(*image.shape, 2))
        # the user may know σ or not
        problem = prepare(Scan.from_arrays(kspace, mask, noise_std=level if draw.coin(0.5) else None))
        frames = len(image)
        known = torch.tensor([problem.noise_std, float(problem.noise_known), problem.noise_bound])
        return SimulatedScans(
            image * phase / problem.scale, problem.measured, problem.model.mask, known.expand(frames, 3),
            torch.full((frames,), draw.uniform(0, 1)), torch.arange(frames),
            torch.full((frames,), problem.periodic),
        )  # fmt: skip

    def loss(self, score: Score, batch: SimulatedScans) -> Tensor:
        shares = []
        for scan in batch.scans():
            state, first = self.state(scan)
            with torch.no_grad():
                without = squared_error(self.go_on(None, scan, state, first), scan.clean)
            error = squared_error(self.go_on(score, scan, state, first), scan.clean)
            shares.append(error / without.clamp(min=HARDLY_ANY * scan.clean.abs().square().sum().item()))
        return torch.stack(shares).sum()

    @torch.no_grad()
    def state(self, scan: SimulatedScans) -> tuple[Iterate, int]:
        """The OU's state before one of the steps that this network follows, and that step."""
        problem = scan.problem()
        own = [step for step, place in turns(motion_schedule(problem), 2).items() if MODELS[place] == self.name]
        first = sorted(own)[int(scan.entry[0] * len(own))]
        unit = OptimizationUnit(OUSettings(operator="motion"), 0, tqdm(disable=True), shares_centre(scan.mask))
        (state,) = deque(islice(unit.along_motion(problem.view_sharing(), problem), first), maxlen=1)
        return state, first

    def go_on(self, score: Score | None, scan: SimulatedScans, state: Iterate, first: int) -> Tensor:
        """Images after the next PASSES turns, with the network `score` or without."""
        problem = scan.problem()
        schedule = motion_schedule(problem)
        follow = None
        if score is not None:
            learner = Learner(score, self.context)
            follow = follow_priors([learner, learner], schedule, problem.periodic)
        steps = motion_low_rank(
            state, problem.model, problem.measured, OUSettings().motion_patches, schedule, problem.periodic, 0, follow,
            first,
        )  # fmt: skip
        (last,) = deque(islice(steps, EVERY * (PASSES - 1) + 1), maxlen=1)
        return last.low_rank + put_back(problem) * (last.consistent - last.low_rank)

    def size(self, batch: SimulatedScans) -> float:
        return float((batch.place == 0).sum())

    def metadata(self) -> dict:
        return {"weight": KspaceWeight.none().to_dict(), "objective": "cascade", "context": self.context.to_dict()}

    @torch.no_grad()
    def example(self, score: Score, device: torch.device) -> tuple[str, Tensor]:
        """The first frame of three scans: truth, and the error × 5 without and with the network: `(1, H, W)`."""
        rows = []
        for seed in range(3):
            draw = self.draw(torch.Generator().manual_seed(seed))
            scan = SimulatedScans(*(tensor.to(device) for tensor in draw))
            state, first = self.state(scan)
            images = [self.go_on(network, scan, state, first) for network in (None, score)]
            tiles = [scan.clean[0].abs(), *(5 * (image - scan.clean)[0].abs() for image in images)]
            rows.append(torch.cat([pad_to(tile, self.data.crop) for tile in tiles], dim=1))
        return "clean, error x 5 without, with", torch.cat(rows)[None].clamp(0, 1).cpu()


def squared_error(image: Tensor, clean: Tensor) -> Tensor:
    return torch.view_as_real(image - clean).square().sum()
