"""The jobs behind the commands: train the priors, reconstruct a scan, evaluate a folder of scans."""

import json
import platform
import shlex
import sys
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

from datasets import Acquisition, PseudoReferenceFrames, acquisitions, pseudo_reference_frames
from losses import ExponentialMovingAverage, dsm_loss, make_optimizer, optimize
from models import create_model
from models.checkpoint import save_model
from mri.fourier import ifft2c
from mri.interleave import pseudo_reference
from mri.metrics import COLUMNS, COMMON_SCALE_COLUMNS, evaluate, moving_row
from mri.weighting import KspaceWeight, from_channels
from sampling import Prior, Reconstruction, load_prior, optimization_unit_alone, reconstruct
from sde_lib import VESDE
from utils.errors import InputError
from utils.files import atomic_folder, atomic_path, refuse_existing
from utils.pictures import film, montage, xt_profile
from utils.tables import markdown, write_csv, write_markdown

Tensor = torch.Tensor

MODELS = ("global", "local")
METRICS = ("method", *COLUMNS, "seconds")
MUST_MATCH = ("data", "mask", "weight", "pseudo_reference", "model", "optim", "seed")  # to resume a run


# ---------------------------------------------------------------------------------------------- training


def train(config: ml_collections.ConfigDict, workdir: Path, models: tuple[str, ...]) -> None:
    """Train GM and LM on pseudo-references of the configured scans; resume when `workdir` holds a run.

    Writes `workdir/<model>/`: `model.safetensors` (EMA weights, all that a reconstruction needs),
    `checkpoints/checkpoint_<step>.pth`, `checkpoints-meta/checkpoint.pth` (to resume) and `tensorboard/`.
    """
    scans = list(
        tqdm(acquisitions(config, config.data.path, range(1, config.data.phantoms + 1)), desc="scans", unit="scan")
    )
    for name in models:
        frames = pseudo_reference_frames(config, scans, name)
        Training(config, workdir / name, name, frames).run()


class Training:
    """One model's training: its state, its steps, its files."""

    def __init__(self, config: ml_collections.ConfigDict, folder: Path, name: str, frames: Tensor) -> None:
        self.config, self.folder, self.name = config, folder, name
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        weight = KspaceWeight.fit(frames, config.weight.power, config.weight.data_std)
        self.data = PseudoReferenceFrames(frames, weight, config.training.max_gain, config.training.max_shift)
        self.sde = VESDE(config.model.sigma_min, config.model.sigma_max, config.model.num_scales)
        self.network = create_model(config).to(self.device, memory_format=torch.channels_last)
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.ema = ExponentialMovingAverage(self.parameters, config.model.ema_rate)
        self.optimizer = make_optimizer(self.parameters, config.optim)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step = 0

    def run(self) -> None:
        """Steps until `config.training.n_iters`, with logs and checkpoints on the way."""
        settings, resume_from = self.config.training, self.folder / "checkpoints-meta" / "checkpoint.pth"
        if resume_from.exists():
            self._resume(resume_from)
        writer = SummaryWriter(self.folder / "tensorboard")
        bar = tqdm(total=settings.n_iters, initial=self.step, desc=f"train {self.name}", unit="step")
        mean_loss, since = None, (time.perf_counter(), self.step)
        while self.step < settings.n_iters:
            loss, norm = self._train_step()
            self.step += 1
            mean_loss = loss if mean_loss is None else 0.98 * mean_loss + 0.02 * loss
            bar.update()
            if self.step % settings.log_freq == 0:
                rate = (self.step - since[1]) * settings.batch_size / (time.perf_counter() - since[0])
                since = (time.perf_counter(), self.step)
                bar.set_postfix(loss=f"{mean_loss:.4f}", images_per_s=f"{rate:.1f}")
                writer.add_scalar("loss", loss, self.step)
                writer.add_scalar("gradient_norm", norm, self.step)
                writer.add_scalar("images_per_s", rate, self.step)
            if self.step % settings.image_freq == 0:
                writer.add_image("clean, noisy, denoised", self._denoised_example(), self.step)
            last = self.step == settings.n_iters
            if self.step % settings.snapshot_freq_for_preemption == 0 or last:
                self._save(resume_from)
            if self.step % settings.snapshot_freq == 0 or last:
                self._save(self.folder / "checkpoints" / f"checkpoint_{self.step}.pth")
        bar.close()
        writer.close()

    def _train_step(self) -> tuple[float, float]:
        x = self.data.batch(self.config.training.batch_size, self.generator).to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        loss = dsm_loss(self.network, x.contiguous(memory_format=torch.channels_last), self.sde, self.generator)
        loss.backward()
        norm = optimize(self.optimizer, self.parameters, self.config.optim, self.step)
        self.ema.update(self.parameters)
        if not np.isfinite(loss.item()):
            raise InputError(f"the loss of {self.name} is not finite at step {self.step}; lower optim.lr.")
        return loss.item(), norm

    @torch.no_grad()
    def _denoised_example(self) -> Tensor:
        """A frame's image clean, with noise, and denoised by D = x + σ² s, at three noise levels: `(1, H, W)`."""
        generator = torch.Generator().manual_seed(0)
        x = self.data.batch(1, generator).to(self.device)
        rows = []
        for factor in (0.1, 0.3, 1.0):
            sigma = factor * self.data.weight.data_std
            noisy = x + sigma * torch.randn(x.shape, generator=generator).to(x)
            denoised = noisy + sigma**2 * self.network(noisy, torch.full((1,), sigma, device=x.device))
            stages = [ifft2c(self.data.weight.inverse(from_channels(s)))[0].abs() for s in (x, noisy, denoised)]
            rows.append(torch.cat([s / stages[0].max() for s in stages], dim=1))
        return torch.cat(rows)[None].clamp(0, 1).cpu()

    def _save(self, path: Path) -> None:
        """The state to resume from, and the EMA weights as `model.safetensors`."""
        state = {
            "optimizer": self.optimizer.state_dict(),
            "model": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "step": self.step,
            "generator": self.generator.get_state(),
            "config": self.config.to_json(),
        }
        with atomic_path(path) as temporary:
            torch.save(state, temporary)
        averaged = create_model(self.config)
        averaged.load_state_dict(self.network.state_dict())
        self.ema.copy_to([p for p in averaged.parameters() if p.requires_grad])
        save_model(
            averaged,
            self.folder / "model.safetensors",
            weight=self.data.weight.to_dict(),
            prior=self.name,
            step=self.step,
            command=command_line(),
            training_config=json.loads(self.config.to_json()),
        )

    def _resume(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        then, now = json.loads(state["config"]), json.loads(self.config.to_json())
        for part in MUST_MATCH:
            if then[part] != now[part]:
                names = [k for k in now[part] if then[part].get(k) != now[part][k]] if part != "seed" else []
                raise InputError(
                    f"{path} was made with another {part} ({', '.join(names) or then[part]}); give the same "
                    "configuration to resume it, or another --workdir."
                )
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.generator.set_state(state["generator"].cpu())
        self.step = state["step"]
        print(f"resuming {path} at step {self.step}")


# ---------------------------------------------------------------------------------------- reconstruction

Image = Callable[[], Tensor]


def compare_methods(
    scan: Acquisition, config: ml_collections.ConfigDict, priors: tuple[Prior, Prior], seed: int
) -> tuple[dict[str, Tensor], dict[str, float], Reconstruction]:
    """Images and seconds of every row of the table, and the reconstruction itself. Sees no reference."""
    periodic = config.data.periodic
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
    record = {
        "scan": scan.found,
        "sha256": scan.sha256,
        "command": command_line(),
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy", "ml_collections")},
        "python": platform.python_version(),
        **result.settings,
        "log": result.log,
    }
    if result.settings.get("trust", {}).get("sigma") == 0:
        print(
            "the priors predict the samples hidden from them no better than the optimization unit does: "
            "the result is the unit's"
        )
    out = out if isinstance(out, Path) else out()
    with atomic_folder(out) as folder:
        write_reconstruction(folder, result.image)
        write_pictures(folder, images, reference)
        (folder / "config.json").write_text(json.dumps(record, indent=2) + "\n")
        if rows:
            write_csv(folder / "metrics.csv", rows, METRICS)
            write_csv(folder / "metrics_common_scale.csv", rows, ("method", *COMMON_SCALE_COLUMNS))
    if not rows:  # scores of a run that is replaced belong to another image
        for name in ("metrics.csv", "metrics_common_scale.csv"):
            (out / name).unlink(missing_ok=True)
    return out, rows


def write_reconstruction(out: Path, image: Tensor) -> None:
    """`reconstruction.npy` (frames, height, width) and `.mat` (variable `image`, same axes), complex64."""
    array = image.to(torch.complex64).numpy()
    np.save(out / "reconstruction.npy", array)
    scipy.io.savemat(out / "reconstruction.mat", {"image": array}, do_compression=True)


def write_pictures(out: Path, images: dict[str, Tensor], reference: Tensor | None) -> None:
    """`montage.png`, `xt_profile.png` and `cine.gif`, the reference first when there is one."""
    series = {} if reference is None else {"reference": reference.abs().numpy()}
    series.update({name: image.abs().numpy() for name, image in images.items()})
    name = None if reference is None else "reference"
    frames = len(images["gldm"])
    montage(out / "montage.png", series, name, sorted({0, frames // 3, 2 * frames // 3}))
    xt_profile(out / "xt_profile.png", series, name, moving_row(images["gldm"]))
    film(out / "cine.gif", series, name)


def report(out: Path, rows: list[dict]) -> str:
    """What a command says at its end: the table, and where the files are."""
    table = markdown(rows, METRICS) + "\n\n" if rows else ""
    names = ["reconstruction.npy", "reconstruction.mat", "montage.png", "xt_profile.png", "cine.gif", "config.json"]
    if rows:
        names.insert(0, "metrics.csv")
    return table + "\n".join(str(out / name) for name in names)


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
    rows = []
    for scan in acquisitions(config, config.eval.path, range(1)):
        print(scan)
        _, scored = reconstruct_scan(scan, config, priors, out / scan.name, config.seed, scan.reference)
        rows += [{"scan": scan.name, **row} for row in scored]
    if rows:
        columns = ("scan", *METRICS)
        write_csv(out / "metrics.csv", rows, columns)
        write_markdown(out / "metrics.md", rows, columns)
        print(markdown(rows, columns) + f"\n\n{out / 'metrics.csv'}\n{out / 'metrics.md'}")
    else:
        print(f"no scan has a reference, so nothing is scored; reconstructions are in {out}")
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
