"""The jobs behind the commands: train the priors, reconstruct a scan, evaluate a folder of scans."""

import json
import pickle
import platform
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import ml_collections
import numpy as np
import scipy.io
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from datasets import Acquisition, acquisition, scan_files
from losses import ExponentialMovingAverage, make_optimizer, optimize
from models import create_model
from models.checkpoint import load_model, save_model
from models.context import Context
from models.ncsnpp import NCSNpp
from mri.fourier import ifft2c
from mri.interleave import pseudo_reference
from mri.io import sha256
from mri.metrics import COLUMNS, COMMON_SCALE_COLUMNS, evaluate, moving_row
from objectives import make_objective
from optimization_unit import optimization_unit_alone, with_periodicity
from priors import MODELS, Prior, load_prior
from sampling import Reconstruction, reconstruct
from utils.errors import InputError
from utils.files import atomic_folder, atomic_path, refuse_existing, refuse_unwritable
from utils.pictures import deviation_picture, film, montage, xt_profile
from utils.tables import markdown, write_csv, write_markdown

Tensor = torch.Tensor

METRICS = ("method", *COLUMNS, "seconds")
# of a configuration, to resume a run
MUST_MATCH = ("data", "mask", "weight", "pseudo_reference", "model", "context", "training", "optim", "seed")
FREE_TO_CHANGE = (  # of config.training, n_iters only under a constant rate: the other depends on it
    "n_iters", "log_freq", "image_freq", "snapshot_freq", "snapshot_freq_for_preemption", "keep_snapshots", "compile",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------- training


def train(config: ml_collections.ConfigDict, workdir: Path, models: tuple[str, ...]) -> None:
    """Train GM and LM for the configured objective; resume when `workdir` holds a run.

    Writes `workdir/<model>/`: `model.safetensors` (EMA weights, all that a reconstruction needs),
    `checkpoints/checkpoint_<step>.pth`, `checkpoints-meta/checkpoint.pth` (to resume) and `tensorboard/`.
    """
    check_training(config)
    refuse_unwritable(workdir)
    for name in models:
        Training(config, workdir / name, make_objective(config, workdir, name)).run()


def check_training(config: ml_collections.ConfigDict) -> None:
    """Raise `InputError` for a number that leaves nothing to train."""
    least = {"training.batch_size": 1, "training.n_iters": 1, "training.keep_snapshots": 1, "training.log_freq": 1,
             "training.image_freq": 1, "training.snapshot_freq": 1, "training.snapshot_freq_for_preemption": 1,
             "training.scenes": 1, "training.scene_frames": 1, "sampling.batch_size": 1,
             "data.image_size": 64, "data.frames": 2, "data.phantoms": 0 if config.data.path else 1}
    for field, smallest in least.items():
        part, name = field.split(".")
        if config[part][name] < smallest:
            raise InputError(f"{field} must be at least {smallest}, not {config[part][name]}.")
    if config.training.max_gain < 1 or config.training.sigma_jitter < 0:
        raise InputError("training.max_gain must be at least 1, and training.sigma_jitter at least 0.")
    for field, known in {"optim.schedule": ("constant", "cosine"), "data.phase": ("smooth", "none")}.items():
        part, name = field.split(".")
        if config[part][name] not in known:
            raise InputError(f"{field} '{config[part][name]}' is unknown; choose {' or '.join(known)}.")
    if config.data.num_channels != 2:
        raise InputError(f"data.num_channels must be 2, real and imaginary part, not {config.data.num_channels}.")


def start_from(network: NCSNpp, context: Context | None, path: str) -> None:
    """Give `network` the weights of a model of the same architecture, whose context may hold more images.

    So LM can begin from GM.

    Raises
    ------
    InputError
        when the architectures differ in more than that.
    """
    other, metadata = load_model(path)
    weights, own = other.state_dict(), network.state_dict()
    theirs = ["frame", *Context.from_config(metadata["context"]).images] if "context" in metadata else ["frame"]
    ours = ["frame", *(context.images if context else [])]
    if set(weights) == set(own) and set(ours) <= set(theirs):
        size = other.conv_in.weight.shape[1] // len(theirs)  # channels of one complex image
        columns = torch.cat([size * theirs.index(name) + torch.arange(size) for name in ours])
        for name, value in weights.items():
            if own[name].shape != value.shape and value.ndim == 4 and value.shape[1] == size * len(theirs):
                weights[name] = value[:, columns]
    if set(weights) != set(own) or any(own[name].shape != value.shape for name, value in weights.items()):
        raise InputError(f"training.init: {path} is a model of another architecture or context; give one that fits.")
    network.load_state_dict(weights)


class StopRequest:
    """SIGTERM asks the training to write a checkpoint after the step at hand, and to end."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python gives signals to no other
            self.before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.before)

    def _ask(self, *_) -> None:
        self.asked = True


class Training:
    """One model's training: its state, its steps, its files."""

    def __init__(self, config: ml_collections.ConfigDict, folder: Path, objective) -> None:
        self.config, self.folder, self.objective, self.name = config, folder, objective, objective.name
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = create_model(config, objective.context).to(self.device, memory_format=torch.channels_last)
        if config.training.init:
            start_from(self.network, objective.context, config.training.init)
        self.score = torch.compile(self.network) if config.training.compile else self.network
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.ema = ExponentialMovingAverage(self.parameters, config.model.ema_rate)
        self.optimizer = make_optimizer(self.parameters, config.optim)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step, self.mean_loss = 0, None

    def run(self) -> None:
        """Steps until `config.training.n_iters`, with logs and checkpoints on the way."""
        settings, resume_from = self.config.training, self.folder / "checkpoints-meta" / "checkpoint.pth"
        if resume_from.exists():
            self._resume(resume_from)
        if self.step >= settings.n_iters:
            print(f"{self.folder} is at step {self.step} already, all of training.n_iters")
            return
        with StopRequest() as stop:
            self._steps(stop, resume_from)
        print(f"wrote {self.folder / 'model.safetensors'}")

    def _steps(self, stop: StopRequest, resume_from: Path) -> None:
        settings = self.config.training
        writer = SummaryWriter(self.folder / "tensorboard")
        bar = tqdm(total=settings.n_iters, initial=self.step, desc=f"train {self.name}", unit="step")
        since = (time.perf_counter(), self.step)
        while self.step < settings.n_iters:
            loss, norm = self._train_step()
            self.step += 1
            self.mean_loss = loss if self.mean_loss is None else 0.99 * self.mean_loss + 0.01 * loss
            bar.update()
            if self.step % settings.log_freq == 0:
                rate = (self.step - since[1]) * settings.batch_size / (time.perf_counter() - since[0])
                since = (time.perf_counter(), self.step)
                bar.set_postfix(loss=f"{self.mean_loss:.4f}", images_per_s=f"{rate:.1f}")
                writer.add_scalar("loss", loss, self.step)
                writer.add_scalar("gradient_norm", norm, self.step)
                writer.add_scalar("images_per_s", rate, self.step)
            if self.step % settings.image_freq == 0:
                writer.add_image(*self.objective.example(self.network, self.device), self.step)
            stopping = stop.asked  # asked for once: a request that comes while the files are written waits a step
            last = self.step == settings.n_iters or stopping
            if self.step % settings.snapshot_freq_for_preemption == 0 or last:
                self._save(resume_from)
            if self.step % settings.snapshot_freq == 0 or last:
                self._save(self.folder / "checkpoints" / f"checkpoint_{self.step}.pth")
                self._prune()
            if stopping:
                sys.exit(143)
        bar.close()
        writer.close()

    def _prune(self) -> None:
        """Remove all but the newest kept checkpoints: one of the published network takes 1 GB."""
        kept = sorted((self.folder / "checkpoints").glob("checkpoint_*.pth"), key=lambda path: path.stat().st_mtime)
        for path in kept[: -self.config.training.keep_snapshots]:
            path.unlink()

    def _train_step(self) -> tuple[float, float]:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective.loss(self.score, self.generator, self.device)
        loss.backward()
        settings = self.config.training
        norm = optimize(self.optimizer, self.parameters, self.config.optim, self.step, settings.n_iters)
        self.ema.update(self.parameters)
        if not np.isfinite(loss.item()):
            raise InputError(f"the loss of {self.name} is not finite at step {self.step}; lower optim.lr.")
        return loss.item(), norm

    def _save(self, path: Path) -> None:
        """The state to resume from, and the EMA weights as `model.safetensors`."""
        state = {
            "optimizer": self.optimizer.state_dict(),
            "model": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "step": self.step,
            "mean_loss": self.mean_loss,
            "generator": self.generator.get_state(),
            "torch_generator": torch.get_rng_state(),  # of dropout
            "config": self.config.to_json(),
        }
        with atomic_path(path) as temporary:
            torch.save(state, temporary)
        averaged = create_model(self.config, self.objective.context)
        averaged.load_state_dict(self.network.state_dict())
        self.ema.copy_to([p for p in averaged.parameters() if p.requires_grad])
        save_model(
            averaged,
            self.folder / "model.safetensors",
            **self.objective.metadata(),
            prior=self.name,
            step=self.step,
            loss=self.mean_loss,
            command=command_line(),
            training_config=json.loads(self.config.to_json()),
        )

    def _resume(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            then, now = json.loads(state["config"]), json.loads(self.config.to_json())
        except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError):
            raise InputError(
                f"{path} is truncated or no checkpoint of this training; put the newest file of "
                f"{self.folder / 'checkpoints'} in its place, or remove it to begin again."
            ) from None
        for config in (then, now):
            cosine = config["optim"].get("schedule") == "cosine"
            free = FREE_TO_CHANGE if not cosine else [field for field in FREE_TO_CHANGE if field != "n_iters"]
            config["training"] = {name: value for name, value in config["training"].items() if name not in free}
        for part in MUST_MATCH:
            if then.get(part) != now[part]:
                before = then.get(part, {})
                names = [k for k in now[part] if before.get(k) != now[part][k]] if part != "seed" else []
                raise InputError(
                    f"{path} was made with another {part} ({', '.join(names) or before}); give the same "
                    "configuration to resume it, or another --workdir (begun from this one by --config.training.init, "
                    "if it shall learn on)."
                )
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["torch_generator"].cpu())
        self.step, self.mean_loss = state["step"], state["mean_loss"]
        print(f"resuming {path} at step {self.step}")


# ---------------------------------------------------------------------------------------- reconstruction

Image = Callable[[], Tensor]


def compare_methods(
    scan: Acquisition, config: ml_collections.ConfigDict, priors: tuple[Prior, Prior], seed: int
) -> tuple[dict[str, Tensor], dict[str, float], Reconstruction]:
    """Images and seconds of every row of the table, and the reconstruction itself. Sees no reference."""
    periodic = with_periodicity(config, scan.kspace, scan.mask).data.periodic
    device = "cuda" if torch.cuda.is_available() else "cpu"
    final: list[Reconstruction] = []

    def merge(window: str) -> Tensor:
        return ifft2c(pseudo_reference(scan.kspace, scan.mask, window, periodic=periodic)[0])

    def gldm() -> Tensor:
        final.append(reconstruct(scan.kspace, scan.mask, *priors, config, seed, device))
        return final[0].image

    methods: dict[str, Image] = {
        "zero_filled": lambda: ifft2c(scan.kspace),
        "global_merge": lambda: merge("global"),
        "nearest_merge": lambda: merge("nearest"),
        "ou_only": lambda: optimization_unit_alone(scan.kspace, scan.mask, config, seed),
        "gldm": gldm,
    }
    images, seconds = {}, {}
    for name, method in methods.items():
        start = time.perf_counter()
        images[name] = method()
        seconds[name] = time.perf_counter() - start
    return images, seconds, final[0]


def reconstruct_scan(
    scan: Acquisition,
    config: ml_collections.ConfigDict,
    priors: tuple[Prior, Prior],
    out: Path | Callable[[], Path],
    seed: int,
    reference: Tensor | None,
) -> tuple[Path, list[dict]]:
    """Reconstruct one scan into a folder, which is there with all its files or not at all.

    Parameters
    ----------
    out
        the folder, or what names it once there is something to write.
    reference
        what the final images are scored against, `(frames, height, width)`.

    Returns
    -------
    the folder, and the table's rows (empty without a reference).
    """
    images, seconds, result = compare_methods(scan, config, priors, seed)
    rows = []
    if reference is not None:
        rows = [{"method": m, **evaluate(image, reference), "seconds": seconds[m]} for m, image in images.items()]
        gain = (result.image.norm() / reference.norm()).item()
        if not 0.5 < gain < 2:
            print(f"the reconstruction is {gain:.3g} times as bright as the reference: NMSE compares them as they are")
    record = {
        "scan": scan.found,
        "sha256": scan.sha256,
        "mask_sha256": sha256(config.mask.path) if config.mask.path else "",
        "checkpoints_sha256": [sha256(path) for path in result.settings["checkpoints"]],
        "threads": torch.get_num_threads(),
        "command": command_line(),
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy", "ml_collections")},
        "python": platform.python_version(),
        **result.settings,
        "log": result.log,
    }
    trust = result.settings.get("trust", {})
    if trust.get("sigma") == 0:
        why = "predict the samples hidden from them no better than the optimization unit does"
        if not trust["hidden"]:
            why = "cannot be tested, because the mask leaves no sample to hide from them"
        print(f"the priors {why}: the result is the optimization unit's")
    out = out if isinstance(out, Path) else out()
    with atomic_folder(out) as folder:
        write_reconstruction(folder, result.image)
        if result.deviation is not None:
            np.save(folder / "deviation.npy", result.deviation.numpy())
        write_pictures(folder, images, reference, result.deviation)
        (folder / "config.json").write_text(json.dumps(record, indent=2) + "\n")
        if rows:
            write_csv(folder / "metrics.csv", rows, METRICS)
            write_csv(folder / "metrics_common_scale.csv", rows, ("method", *COMMON_SCALE_COLUMNS))
    # what a run that is replaced left and this one has not belongs to another image
    stale = [] if rows else ["metrics.csv", "metrics_common_scale.csv"]
    stale += [] if result.deviation is not None else ["deviation.npy", "deviation.png"]
    for name in stale:
        (out / name).unlink(missing_ok=True)
    return out, rows


def write_reconstruction(out: Path, image: Tensor) -> None:
    """`reconstruction.npy` (frames, height, width) and `.mat` (variable `image`, same axes), complex64."""
    array = image.to(torch.complex64).numpy()
    np.save(out / "reconstruction.npy", array)
    scipy.io.savemat(out / "reconstruction.mat", {"image": array}, do_compression=True)


def write_pictures(
    out: Path, images: dict[str, Tensor], reference: Tensor | None, deviation: Tensor | None = None
) -> None:
    """`montage.png`, `xt_profile.png` and `cine.gif`, the reference first when there is one; `deviation.png`."""
    series = {} if reference is None else {"reference": reference.abs().numpy()}
    series.update({name: image.abs().numpy() for name, image in images.items()})
    name = None if reference is None else "reference"
    frames = len(images["gldm"])
    montage(out / "montage.png", series, name, sorted({0, frames // 3, 2 * frames // 3}))
    xt_profile(out / "xt_profile.png", series, name, moving_row(images["gldm"]))
    film(out / "cine.gif", series, name)
    if deviation is not None:
        error = None if reference is None else (images["gldm"] - reference).abs().numpy()
        deviation_picture(out / "deviation.png", images["gldm"].abs().numpy(), deviation.numpy(), error, frames // 3)


def report(out: Path, rows: list[dict]) -> str:
    """What a command says at its end: the table, and where the files are."""
    table = ""
    if rows:
        table = markdown(rows, ("method", *COLUMNS, "psnr_common", "seconds")) + (
            "\npsnr, ssim and mse_e4 (× 10⁴) divide every frame by its own brightest pixel, as the paper does;"
            "\npsnr_common and nmse compare the scan as it is.\n\n"
        )
    files = ["reconstruction.npy", "reconstruction.mat", "montage.png", "xt_profile.png", "cine.gif", "config.json"]
    if rows:
        files = ["metrics.csv", "metrics_common_scale.csv", *files]
    files += [name for name in ("deviation.npy", "deviation.png") if (out / name).exists()]
    return table + "\n".join(str(out / name) for name in files)


# -------------------------------------------------------------------------------------------- evaluation


def evaluate_folder(
    config: ml_collections.ConfigDict, workdir: Path, eval_folder: str, overwrite: bool
) -> list[dict]:
    """Reconstruct the scan or folder of `config.eval.path`; one table for all in `workdir/eval_folder`."""
    out = workdir / eval_folder
    refuse_existing(out, overwrite)
    checkpoints = [
        config.eval[f"checkpoint_{name}"] or workdir / name / "model.safetensors" for name in MODELS
    ]
    priors = load_priors(config, *checkpoints)
    refuse_unwritable(out)
    rows, failures = [], []
    sources = scan_files(config.eval.path) if config.eval.path else [0]
    for source in sources:
        try:
            scan = acquisition(config, source)
            print(scan)
            _, scored = reconstruct_scan(scan, config, priors, out / scan.name, config.seed, scan.reference)
        except InputError as error:
            failures.append(str(error))
            print(f"left out: {error}", file=sys.stderr)
            continue
        rows += [{"scan": scan.name, **row} for row in scored]
    if rows:
        columns = ("scan", *METRICS)
        write_csv(out / "metrics.csv", rows, columns)
        write_markdown(out / "metrics.md", rows, columns)
        print(markdown(rows, columns) + f"\n\n{out / 'metrics.csv'}\n{out / 'metrics.md'}")
    for name in ("metrics.csv", "metrics.md") if not rows else ():  # of a run that is replaced
        (out / name).unlink(missing_ok=True)
    if not rows and len(failures) < len(sources):
        print(f"no scan has a reference, so nothing is scored; reconstructions are in {out}")
    if failures:
        raise InputError(f"{len(failures)} of {len(sources)} scans left out: " + " | ".join(failures))
    return rows


def load_priors(config: ml_collections.ConfigDict, global_path: Path | str, local_path: Path | str):
    """GM and LM on the device at hand."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = config.sampling.batch_size
    return load_prior(global_path, device, size), load_prior(local_path, device, size)


def command_line() -> str:
    """The command that is running, as one would type it."""
    script = Path(sys.argv[0])
    if script.is_absolute() and script.is_relative_to(Path.cwd()):
        script = script.relative_to(Path.cwd())
    return shlex.join(["python", str(script), *sys.argv[1:]])
