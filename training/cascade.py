"""Objective `cascade`: GM and LM trained through the sampler, on simulated scans of moving scenes.

A denoiser of white noise knows nothing of aliasing, and one trained for a single step repeats its bias in every step.
So the sampler's own code (`mri.lowrank.along_motion`, `reconstruction.in_turn.follow_priors`) reconstructs a simulated
scan without gradients, in half of the scans with the network in all turns, in the others without it. From some of the
network's own turns it goes on for a few passes with gradients: the loss is the squared error at their end, as a share
of that of the OU alone at the same step. The OU alone keeps its own noise levels; with the network they are those of
`schedule_with_priors`. A frozen prior may take the turns that are not the network's own.
"""

import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
from tqdm import tqdm

from datasets import CleanScenes, parts_of
from models.context import Context
from models.ncsnpp import NCSNpp
from models.precision import Score
from models.prior import change_of, load_prior
from mri.draw import Draw
from mri.fourier import fft2c
from mri.lowrank.along_motion import Iterate, motion_low_rank
from mri.masks import make_mask
from mri.operators import ForwardModel
from mri.scan import Scan
from mri.weighting import KspaceWeight
from reconstruction.in_turn import ERROR_SHARE, EVERY, follow_priors, schedule_with_priors, turns
from reconstruction.optimization_unit import OptimizationUnit, images_of, motion_schedule, shares_centre
from reconstruction.prepare import Problem, prepare
from reconstruction.settings import MODELS, OUSettings
from training.objectives import CONTEXTS, Objective, frames_per_draw, pad_to
from training.settings import RunSettings
from utils.errors import InputError

Tensor = torch.Tensor

PASSES = 4  # of the network or its partner, with OU steps between, through which the gradient is propagated
ENTRIES = 2  # of each scan: turns from which the gradient begins, one early and one late
ESTIMATES = (1.0, 3.0)  # what held-out samples tell of the error halfway, over the true one
# σ ‖∂share/∂D(x; σ)‖ of a pass, at most; 0.001 to 0.01 is usual. Where the OU leaves almost no error it is ten times as
# large and more, and the step would depend on such a scan alone.
STEEPEST = 0.012
ACCELERATIONS = (4, 5, 6, 8, 8, 10, 12)
PATTERNS = ("uniform", "uniform", "uniform", "random", "radial")
LINES = (4, 6, 8)  # central ones, of masks of lines
NOISE = (0.0, 0.0, 0.0, 0.01, 0.02, 0.04)  # σ over the brightest pixel
# For scans without measurement noise: σ of the noise in the images themselves, over the brightest pixel. Scans
# simulated from real images, as in the benchmarks, contain such noise, although σ is stated as 0 (`mri/intake.py`).
IMAGE_NOISE = (0.0, 0.003, 0.006, 0.012)
FEWEST = 4  # frames
HARDLY_ANY = 1e-5  # NMSE: where the OU leaves less there is nothing to learn, and its share would be any number


class SimulatedScans(NamedTuple):
    """Scans with known images, one after the other; every tensor has the frames first."""

    clean: Tensor  # complex (frames, height, width), unit scale
    measured: Tensor  # complex (frames, 1, ky, kx)
    mask: Tensor  # bool (frames, ky, kx)
    noise: Tensor  # (frames, 3): σ, whether it is known, its upper bound
    entries: Tensor  # (frames, ENTRIES): 0 … 1, where in each part of its turns the gradient begins
    estimate: Tensor  # (frames,): held-out estimate of the error halfway, over the true error; 0: σ is not raised
    followed: Tensor  # bool (frames,): whether the network is followed in the turns before
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
    """The network as `follow_priors` takes a prior, with gradients, which `limit` bounds.

    Attributes
    ----------
    weight
        ∂loss/∂share, as it reaches the share of the error that this learner's passes lead to; one number.
    """

    score: Score
    context: Context
    weight: list[Tensor] = field(default_factory=list)
    sigma_min: float = 0.0  # it learns at every level that it meets
    sigma_max: float = math.inf

    def change(self, image: Tensor, sigma: float, periodic: bool) -> Tensor:
        change = change_of(self.score, self.context, image, sigma, periodic)
        if change.requires_grad:
            change.register_hook(partial(self.limit, sigma))
        return change

    def limit(self, sigma: float, slope: Tensor) -> Tensor:
        """∂loss/∂D(x; σ), made shorter where that of the share is steeper than STEEPEST allows."""
        most = STEEPEST * self.weight[0].abs()
        return slope * (most / (sigma * slope.norm()).clamp(min=most.clamp(min=1e-30)))


@dataclass(frozen=True)
class Partner:
    """The other prior of the cascade, frozen; gradients pass through it to the network's earlier passes."""

    network: NCSNpp
    context: Context
    sigma_min: float
    sigma_max: float

    @classmethod
    def load(cls, path: str, trained: str) -> "Partner":
        """Load from a file the partner of the prior in training (`trained`: global or local).

        Raises
        ------
        InputError
            if the file is not a prior of moving scenes, or has the same role as the prior in training.
        """
        prior = load_prior(path)
        if prior.context is None or not prior.of_scenes:
            raise InputError(f"training.partner: {path} is not a prior of moving scenes; use one from checkpoints/.")
        if prior.role == trained:
            other = MODELS[1 - MODELS.index(trained)]
            raise InputError(
                f"training.partner: {path} is a {trained} model, but {trained} is the one being trained; give a "
                f"{other} model as the partner."
            )
        return cls(prior.network.eval().requires_grad_(False), prior.context, prior.sigma_min, prior.sigma_max)

    def change(self, image: Tensor, sigma: float, periodic: bool) -> Tensor:
        return change_of(self.network, self.context, image, sigma, periodic)


class ThroughTheCascade(Objective):
    """The images after a few passes of the network within the OU, against the truth.

    Parameters
    ----------
    images
        that scans are simulated from, see `datasets.CleanScenes`; empty: synthetic scenes without end.
    """

    def __init__(self, settings: RunSettings, images: Sequence[tuple[Tensor, bool]], name: str) -> None:
        self.name, self.context, model = name, CONTEXTS[name], settings.model
        partner = settings.training.partner
        self.partner = Partner.load(partner, name) if partner else None
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
        peak = image.abs().max().item()
        phase = torch.polar(torch.tensor(1.0), torch.tensor(draw.uniform(0, 2 * torch.pi)))
        image_noise = 0.0 if noise else draw.choice(IMAGE_NOISE)
        white = torch.view_as_complex(draw.normal(*image.shape, 2)) / 2**0.5
        kspace = fft2c(image * phase) + (noise or image_noise) * peak * white
        # with image noise, σ is stated as 0; of the other scans, half state σ
        stated = noise * peak if image_noise or draw.coin(0.5) else None
        problem = prepare(Scan.from_arrays(kspace, mask, noise_std=stated))
        frames = len(image)
        known = torch.tensor([problem.noise_std, float(problem.noise_known), problem.noise_bound])
        entries = torch.tensor([draw.uniform(0, 1) for _ in range(ENTRIES)])
        estimate = draw.uniform(*ESTIMATES) if draw.coin(0.5) else 0.0
        return SimulatedScans(
            image * phase / problem.scale, problem.measured, problem.model.mask, known.expand(frames, 3),
            entries.expand(frames, ENTRIES), torch.full((frames,), estimate), torch.full((frames,), draw.coin(0.5)),
            torch.arange(frames), torch.full((frames,), problem.periodic),
        )  # fmt: skip

    def loss(self, score: Score, batch: SimulatedScans) -> Tensor:
        shares = []
        for scan in batch.scans():
            run = self.simulated(scan)
            own = run.own_turns()
            firsts = Counter(
                own[int((part + entry) / ENTRIES * len(own))] for part, entry in enumerate(scan.entries[0].tolist())
            )
            states = run.states_before(max(firsts), score if scan.followed[0] else None)
            shares += [count * run.share(score, states[first], first) for first, count in firsts.items()]
        return torch.stack(shares).sum() / ENTRIES

    def simulated(self, scan: SimulatedScans) -> "SimulatedRun":
        if self.partner is not None:
            self.partner.network.to(scan.clean.device)
        return SimulatedRun(scan, self.context, self.data.sigmas[1], self.name, self.partner)

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
            run = self.simulated(scan)
            first, learner = run.own_turns()[0], Learner(score, self.context)
            images = [run.without[run.last_step(first)], run.go_on(learner, run.alone[first], first)]
            tiles = [scan.clean[0].abs(), *(5 * (image - scan.clean)[0].abs() for image in images)]
            rows.append(torch.cat([pad_to(tile, self.data.crop) for tile in tiles], dim=1))
        return "clean, error x 5 without, with", torch.cat(rows)[None].clamp(0, 1).cpu()


class SimulatedRun:
    """The OU on one simulated scan, and from any of its turns on the sampler with a network.

    Parameters
    ----------
    sigma_max
        highest σ at which the network will be used.
    name, partner
        the prior in training ("global" or "local"), and the frozen prior that takes the other turns; None: the
        network takes all turns.

    Attributes
    ----------
    alone
        state of the OU alone before each of the turns.
    without
        its images after each step of the later half, `(frames, height, width)`.
    left
        error per real channel of the last of them.
    """

    @torch.no_grad()
    def __init__(
        self, scan: SimulatedScans, context: Context, sigma_max: float, name: str, partner: Partner | None = None
    ) -> None:
        self.scan, self.context, self.problem = scan, context, scan.problem()
        self.name, self.partner = name, partner
        self.schedule = motion_schedule(self.problem)
        self.turns = turns(self.schedule, len(MODELS))
        self.alone: dict[int, Iterate] = {}
        self.without: dict[int, Tensor] = {}
        unit = OptimizationUnit(OUSettings(operator="motion"), 0, tqdm(disable=True), shares_centre(scan.mask))
        half, error = self.schedule.steps // 2, 0.0
        for step, state in enumerate(unit.along_motion(self.problem.view_sharing(), self.problem)):
            if step + 1 == half:
                error = (state.low_rank - scan.clean).abs().square().mean().div(2).sqrt().item()
            if step + 1 in self.turns:
                self.alone[step + 1] = state
            if step >= min(self.turns):
                self.without[step] = images_of(self.problem, state)
        # σ begins no higher than the network will be used at
        self.error_std = min(scan.estimate[0].item() * error, sigma_max / ERROR_SHARE)
        self.left = (self.without[self.schedule.steps - 1] - scan.clean).abs().square().mean().div(2).sqrt().item()

    def own_turns(self) -> list[int]:
        """The OU steps after which the network is applied in a reconstruction."""
        return sorted(step for step, place in self.turns.items() if MODELS[place] == self.name)

    @torch.no_grad()
    def states_before(self, last: int, score: Score | None) -> dict[int, Iterate]:
        """The state before each of the turns up to the step `last`: of the OU alone, or with `score` in all turns,
        those of its partner excepted.
        """
        if score is None:
            return self.alone
        begin = min(self.turns)
        states, start = {begin: self.alone[begin]}, self.alone[begin]
        steps = self.steps(Learner(score, self.context), start, begin)
        for step, state in enumerate(islice(steps, last - begin), begin + 1):
            if step in self.turns:
                states[step] = state
        return states

    def share(self, score: Score, state: Iterate, first: int) -> Tensor:
        """Squared error after the PASSES turns from step `first` on, over that of the OU alone."""
        learner, clean = Learner(score, self.context), self.scan.clean
        least = HARDLY_ANY * clean.abs().square().sum()
        without = squared_error(self.without[self.last_step(first)], clean).clamp(min=least)
        share = squared_error(self.go_on(learner, state, first), clean) / without
        if share.requires_grad:
            share.register_hook(learner.weight.append)
        return share

    def last_step(self, first: int) -> int:
        """The last step of PASSES turns from step `first` on, or the last of all."""
        return min(first + EVERY * (PASSES - 1), self.schedule.steps - 1)

    def go_on(self, learner: Learner, state: Iterate, first: int) -> Tensor:
        """The images after the step `last_step(first)`, with the network (and its partner, if any) from `first` on."""
        steps = islice(self.steps(learner, state, first), self.last_step(first) - first + 1)
        return images_of(self.problem, deque(steps, maxlen=1)[0])

    def steps(self, learner: Learner, state: Iterate, first: int) -> Iterator[Iterate]:
        """The state after each sampler step from `first` on, with the network (and its partner, if any)."""
        problem, other = self.problem, self.partner or learner
        priors = [learner if name == self.name else other for name in MODELS]
        follow = follow_priors(priors, self.schedule, problem.periodic, self.error_std)
        return motion_low_rank(
            state, problem.model, problem.measured, OUSettings().motion_patches,
            schedule_with_priors(self.schedule, problem, self.left), problem.periodic, 0, follow, first,
        )  # fmt: skip


def squared_error(image: Tensor, clean: Tensor) -> Tensor:
    return torch.view_as_real(image - clean).square().sum()
