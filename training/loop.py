"""One model's training: its state, its steps, its files; by one process or, under `torchrun`, by several."""

import contextlib
import json
import math
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from losses import ExponentialMovingAverage, make_optimizer, optimize
from models.checkpoint import load_model, save_model
from models.context import Context
from models.ncsnpp import NCSNpp
from models.precision import Score, in_precision
from training.objectives import Objective, loader_workers
from training.processes import ALONE, Processes
from training.settings import RunSettings, TrainingSettings
from training.stop import StopRequest, leave_signals_to_parent
from utils.arguments import command_line
from utils.errors import InputError
from utils.files import atomic_path
from utils.memory import within_memory

Tensor = torch.Tensor

LOG_STEPS = 50  # between TensorBoard scalars
RECOMPILED = 16  # graphs of one network, at most; of more sizes it would run uncompiled
KEPT_SNAPSHOTS = 5  # the newest; one of the published network takes 1 GB
# parts of a configuration that must be the same to resume a run
MUST_MATCH = ("data", "mask", "pseudo_reference", "model", "training", "optim", "seed")
FREE_TO_CHANGE = (  # of the part `training`; n_iters only under a constant rate, as a cosine depends on it
    "n_iters", "snapshot_freq", "snapshot_freq_for_preemption", "compile", "accumulation", "workers",
)  # fmt: skip


def check_batch(settings: TrainingSettings, frames: int, processes: int) -> None:
    """Raise `InputError` when draws of so many frames make no batch, or one that `processes` cannot share."""
    parts = processes * settings.accumulation
    if settings.batch_size % frames or settings.batch_size // frames < parts:
        # with scans a small batch makes small draws, a larger one would make larger ones
        whole = 1 if frames == 1 else settings.scene_frames
        fewer = "" if frames == 1 else ", or fewer --config.training.scene_frames"
        raise InputError(
            f"training.batch_size {settings.batch_size} cannot be split over {processes} process(es) × "
            f"{settings.accumulation} accumulation step(s); use at least {whole * parts}"
            f"{f', a multiple of {whole}' if whole > 1 else ''}{fewer}."
        )


def start_from(network: NCSNpp, context: Context | None, path: str) -> str:
    """Give `network` the weights of a model of the same architecture, whose context may include more or fewer images.

    LM can thus start from GM, and GM from LM. Input weights for images that the loaded model does not see start at 0;
    temporal layers that it lacks start as the identity. Returns a description of the loaded model.

    Raises
    ------
    InputError
        when the architectures differ in more than that.
    """
    other, metadata = load_model(path)
    weights, own = other.state_dict(), network.state_dict()
    if not other.architecture["temporal"]:
        weights.update({name: value for name, value in own.items() if ".temporal." in name})
    theirs = ["frame", *Context.from_mapping(metadata["context"]).images] if "context" in metadata else ["frame"]
    ours = ["frame", *(context.images if context else [])]
    alike = ours == theirs or set(ours) < set(theirs) or (set(ours) > set(theirs) and "context" in metadata)
    if set(weights) == set(own) and alike:
        size = other.conv_in.weight.shape[1] // len(theirs)  # channels of one complex image
        target, source = (
            torch.cat([size * names.index(name) + torch.arange(size) for name in ours if name in theirs])
            for names in (ours, theirs)
        )
        for name, value in weights.items():
            if own[name].shape != value.shape and value.ndim == 4 and value.shape[1] == size * len(theirs):
                shape = (value.shape[0], size * len(ours), *value.shape[2:])
                weights[name] = value.new_zeros(shape).index_copy(1, target, value[:, source])
    if not alike or set(weights) != set(own) or any(own[name].shape != value.shape for name, value in weights.items()):
        raise InputError(
            f"training.init: {path} has another architecture or context than this configuration; give a matching model "
            "or configuration (for the shipped priors --config=configs/ve/scenes.py or cascade.py)."
        )
    network.load_state_dict(weights)
    role = {"global": "GM", "local": "LM"}.get(metadata.get("prior", ""), "a model")
    levels = [f"{one['sigma_min']:g} to {one['sigma_max']:g}" for one in (other.architecture, network.architecture)]
    change = f"noise levels {levels[1]}" + (f" (it was trained for {levels[0]})" if levels[0] != levels[1] else "")
    return f"initialized from {path} ({role}); {change}"


def new_network(run: RunSettings, context: Context | None) -> NCSNpp:
    """The score network, freshly initialised from the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        return run.model.network(context)


class Draws(Dataset):
    """The draws of an objective by number: the seed and the number alone decide what is in them.

    So any process can make any of them, beforehand or again, and a run that is resumed needs no state of a generator.
    """

    def __init__(self, objective: Objective, seed: int) -> None:
        self.objective, self.seed = objective, seed

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:
        return self.objective.draw(torch.Generator().manual_seed(seed_of(self.seed, number)))


def seed_of(*numbers: int) -> int:
    """A seed from several numbers, such as step and process."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class Share:
    """Numbers of the draws of this process, one batch after the other: part `i` of all parts of every step."""

    def __init__(self, first_step: int, last_step: int, draws: int, parts: int, own: range) -> None:
        self.steps, self.draws, self.parts, self.own = range(first_step, last_step), draws, parts, own

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            bounds = [self.draws * part // self.parts for part in range(self.parts + 1)]
            for part in self.own:
                yield list(range(step * self.draws + bounds[part], step * self.draws + bounds[part + 1]))


class Training:
    """One model's training.

    A step takes `training.batch_size` frames in all (fewer where scans have fewer than `training.scene_frames`): of
    every process and every accumulated part together, which see the same frames as one process would. Gradients are
    averaged by DistributedDataParallel; the first process alone shows progress and writes files.

    Raises
    ------
    InputError
        when a batch cannot be shared so.
    """

    def __init__(
        self,
        run: RunSettings,
        folder: Path,
        objective: Objective,
        processes: Processes = ALONE,
        upgrade: Callable[[dict], dict] = lambda record: record,
    ) -> None:
        self.settings, self.folder, self.objective, self.name = run, folder, objective, objective.name
        self.processes, self.device, self.upgrade = processes, processes.device, upgrade
        settings = run.training
        frames = objective.frames_per_draw
        self.draws, self.parts = settings.batch_size // frames, processes.count * settings.accumulation
        check_batch(settings, frames, processes.count)
        self.network = new_network(run, objective.context).to(self.device, memory_format=torch.channels_last)
        self.begun_from = ""
        if settings.init:
            self.begun_from = start_from(self.network, objective.context, settings.init)
        self.parallel = self.network
        if processes.count > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            # buffers are constants; sent before every pass, they would have processes that make another number of
            # passes wait for each other
            self.parallel = DistributedDataParallel(
                self.network, ids, forward_sync_buffers=False
            )
        # a graph for each size of scans: of one for all sizes, PyTorch cannot order the strides of the gradients
        compiled = self.parallel
        if settings.compile:
            # objective cascade passes each size without gradients, with those of the weights, and of the images too
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILED)
            compiled = torch.compile(self.parallel, dynamic=False)
        self.score = in_precision(compiled, settings.precision, self.device)
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.ema = ExponentialMovingAverage(self.parameters, run.model.ema_rate)
        self.optimizer = make_optimizer(self.parameters, run.optim.lr)
        self.step = 0
        self.mean_loss: float | None = None
        self.frames = 0  # since the last entry of the log

    def run(self) -> None:
        """Steps until `training.n_iters`, with logs and checkpoints on the way."""
        settings, resume_from = self.settings.training, self.folder / "checkpoints-meta" / "checkpoint.pth"
        if resume_from.exists():
            self._resume(resume_from)
        elif self.begun_from:
            self._tell(f"{self.name}: {self.begun_from}")
        if self.step >= settings.n_iters:
            self._tell(f"{self.folder} has already reached training.n_iters (step {self.step})")
            return
        with StopRequest() as stop:
            self._steps(stop, resume_from)
        self._tell(f"wrote {self.folder / 'model.safetensors'}")

    def _steps(self, stop: StopRequest, resume_from: Path) -> None:
        settings = self.settings.training
        writer = SummaryWriter(self.folder / "tensorboard") if self.processes.first else contextlib.nullcontext()
        bar = tqdm(total=settings.n_iters, initial=self.step, desc=f"train {self.name}", unit="step",
                   disable=not self.processes.first)  # fmt: skip
        since, batches = time.perf_counter(), self._batches()
        with bar, writer as log:
            while self.step < settings.n_iters:
                loss, norm, stopping = self._train_step(batches, stop.asked)
                self.step += 1
                before = self.mean_loss or loss
                self.mean_loss = 0.99 * before + 0.01 * loss
                self._snapshots(resume_from, last=stopping or self.step == settings.n_iters)  # before what may fail
                bar.update()
                if log and (self.step % LOG_STEPS == 0 or self.step == settings.n_iters):
                    rate = self.frames / (time.perf_counter() - since)
                    since, self.frames = time.perf_counter(), 0
                    bar.set_postfix(loss=f"{self.mean_loss:.4f}", images_per_s=f"{rate:.1f}")
                    for name, value in {"loss": loss, "gradient_norm": norm, "images_per_s": rate}.items():
                        log.add_scalar(name, value, self.step)
                if log and self.step % settings.snapshot_freq == 0:
                    log.add_image(*self.objective.example(self.network, self.device), self.step)
                if stopping:
                    self._tell(f"stopped on request: step {self.step} is in {resume_from}; the same command resumes")
                    sys.exit(stop.status)

    def _batches(self) -> Iterator[tuple[Tensor, ...]]:
        """The batches of this process from the step at hand on, made beforehand where there are workers."""
        own = range(self.processes.rank * self.settings.training.accumulation,
                    (self.processes.rank + 1) * self.settings.training.accumulation)
        share = Share(self.step, self.settings.training.n_iters, self.draws, self.parts, own)
        workers, gpu = loader_workers(self.settings.training, self.device), self.device.type == "cuda"
        loader = DataLoader(
            Draws(self.objective, self.settings.seed), batch_sampler=share, collate_fn=self.objective.collate,
            num_workers=workers, pin_memory=gpu, prefetch_factor=4 if workers else None,
            worker_init_fn=leave_signals_to_parent,
        )  # fmt: skip
        for batch in loader:
            yield type(batch)(*(tensor.to(self.device, non_blocking=gpu) for tensor in batch))

    def _train_step(self, batches: Iterator, asked: bool) -> tuple[float, float, bool]:
        """The loss, the norm of its gradient, and whether any process was asked to stop."""
        settings = self.settings.training
        parts = [next(batches) for _ in range(settings.accumulation)]
        # of dropout; after the loader, which takes a number when it begins
        torch.manual_seed(seed_of(self.settings.seed, self.step, self.processes.rank))
        own = sum(self.objective.size(part) for part in parts)
        size, stop, frames = self.processes.total(own, asked, sum(len(part[0]) for part in parts))
        self.frames += int(frames)
        self.optimizer.zero_grad(set_to_none=True)
        own_loss = 0.0
        for number, part in enumerate(parts, 1):
            together = self.processes.count == 1 or number == len(parts)
            with contextlib.nullcontext() if together else self.parallel.no_sync():
                own_loss += self._add_gradient(part, size)
        norm = optimize(self.optimizer, self.parameters, self.settings.optim, self.step, settings.n_iters)
        self.ema.update(self.parameters)
        (loss,) = self.processes.total(own_loss)
        if not math.isfinite(loss):
            raise InputError(f"the loss of {self.name} is not finite at step {self.step}; lower optim.lr.")
        return loss, norm, stop > 0

    def _add_gradient(self, part: tuple[Tensor, ...], size: float) -> float:
        """Add the gradient of a part; return its fraction of the loss. Out-of-memory errors say how many frames fit."""

        def backward(score: Score, part: tuple[Tensor, ...]) -> float:
            share = self.objective.loss(score, part) / size
            (share * self.processes.count).backward()  # gradients are averaged, losses are shares of a sum
            return share.item()

        def attempt(count: int) -> None:
            backward(in_precision(self.network, self.settings.training.precision, self.device),
                     type(part)(*(tensor[:count] for tensor in part)))  # fmt: skip

        def mend(count: int) -> str:
            parts = self.settings.training.accumulation * -(-len(part[0]) // count)
            return f"use --config.training.accumulation={parts}"

        frames, scans = self.objective.frames_per_draw, self.objective.context is not None
        otherwise = "give fewer --config.training.scene_frames, or use" if scans else "use"
        return within_memory(partial(backward, self.score, part), attempt, len(part[0]), mend, frames, otherwise)

    def _snapshots(self, resume_from: Path, last: bool) -> None:
        settings = self.settings.training
        if not self.processes.first:
            return
        if self.step % settings.snapshot_freq_for_preemption == 0 or last:
            self._save(resume_from)
        if self.step % settings.snapshot_freq == 0 or last:
            self._save(self.folder / "checkpoints" / f"checkpoint_{self.step}.pth")
            self._prune()

    def _prune(self) -> None:
        """Remove all but the newest kept checkpoints."""
        kept = sorted((self.folder / "checkpoints").glob("checkpoint_*.pth"), key=lambda path: path.stat().st_mtime)
        for path in kept[:-KEPT_SNAPSHOTS]:
            path.unlink()

    def _save(self, path: Path) -> None:
        """The state to resume from, and the EMA weights as `model.safetensors`."""
        state = {
            "optimizer": self.optimizer.state_dict(),
            "model": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "step": self.step,  # with config.seed, all that data order and dropout depend on
            "mean_loss": self.mean_loss,
            "config": json.dumps(self.settings.record()),
        }
        averaged = new_network(self.settings, self.objective.context)
        averaged.load_state_dict(self.network.state_dict())
        self.ema.copy_to([p for p in averaged.parameters() if p.requires_grad])
        model = self.folder / "model.safetensors"
        try:
            with atomic_path(path) as temporary:
                torch.save(state, temporary)
            save_model(
                averaged,
                model,
                **self.objective.metadata(),
                prior=self.name,
                step=self.step,
                loss=self.mean_loss,
                command=command_line(),
                training_config=self.settings.record(),
            )
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{path} or {model} cannot be written ({reason}); earlier files are intact: free disk space, then "
                "start the same command again."
            ) from None

    def _resume(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            then, now = json.loads(state["config"]), self.settings.record()
        except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError):
            raise InputError(
                f"{path} is truncated or not a checkpoint of this training; replace it with the newest file in "
                f"{self.folder / 'checkpoints'}, or delete it to start over."
            ) from None
        then = self.upgrade(then)
        cosine = now["optim"]["schedule"] == "cosine"
        free = FREE_TO_CHANGE if not cosine else [field for field in FREE_TO_CHANGE if field != "n_iters"]
        for part in MUST_MATCH:
            before = then.get(part, {})
            if part == "seed":
                names = []
            else:  # a field that did not exist then had today's default
                names = [k for k in now[part] if k not in free and k in before and before[k] != now[part][k]]
            if names or (part == "seed" and before != now[part]):
                if "n_iters" in names:  # that its rate fell to 0 at
                    names[names.index("n_iters")] = "n_iters under optim.schedule=cosine"
                raise InputError(
                    f"{path} has other settings: {part} ({', '.join(names) or before}). To resume it, use its "
                    "configuration; to continue with new settings, give a new --workdir and --config.training.init=…/"
                    "model.safetensors."
                )
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.step, mean = state["step"], state["mean_loss"]
        self.mean_loss = mean[-1] if isinstance(mean, list) else mean  # one for each step of a cascade, once
        self._tell(f"resuming {path} at step {self.step}")

    def _tell(self, words: str) -> None:
        if self.processes.first:
            print(words)
