"""Continue the training of the shipped GM and LM: `python -m benchmarks.train_shipped --out DIR`.

Each model gets `--minutes`: part of them for new scenes, the rest for as many steps as fit, with the learning rate
falling to 0 at the last. Then the cascade reconstructs scans that are neither in the training nor in the tables
(phantoms, hearts with coils and noise, synthetic scenes, and `--data`), with the shipped priors and with the new ones.
If both the mean PSNR and the mean SSIM rise, the new priors replace the shipped ones, which stay beside them as
`*.previous.safetensors`.
"""

import argparse
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import ml_collections
import numpy as np
import torch
from tqdm import tqdm

import run_lib
from benchmarks import scans
from benchmarks.gpu import logged
from benchmarks.scores import write_record
from configs.ve import cpu_demo, synthetic
from models.prior import MODELS, load_prior
from mri.formats import sha256
from mri.metrics import evaluate
from mri.scenes import make_scene
from report.tables import markdown, write_csv, write_markdown
from run_lib import Job
from sampling import reconstruct_problem
from training import loop
from training.objectives import loader_workers
from training.scene_files import advance_scenes, advanced_file, draw_scenes, scene_file
from training.settings import ModelSettings, OptimSettings, TrainingSettings
from utils.errors import InputError, exit_on_input_error
from utils.files import atomic_path, refuse_existing

MASKS = (("uniform", 4.0), ("uniform", 8.0), ("random", 6.0), ("radial", 6.0))
PHANTOMS = ("phantom100", "phantom101")  # the tables use seed 0, the training seeds from 1000 on
HEARTS = (100, 101)
FIRST_SCENE = 10**6  # number of the first scene to judge by; training scenes are numbered from 1
DATA_SHARE = 0.35  # share of a model's time for its scenes
SPARE = 0.9  # share of the steps that fit at the measured rate
MOST_SCENES = 10**5
SCORES = ("psnr", "ssim", "psnr_common", "nmse")
COLUMNS = ("scan", "pattern", "acceleration", "priors", *SCORES)


@dataclass(frozen=True)
class Budget:
    """The time of one model."""

    seconds: float
    begun: float

    @property
    def data_deadline(self) -> float:
        return self.begun + DATA_SHARE * self.seconds

    @property
    def left(self) -> float:
        return self.begun + self.seconds - time.monotonic()


def train_one(name: str, config: ml_collections.ConfigDict, workdir: Path, minutes: float) -> Path:
    """Train GM or LM (`name`) from `config.training.init` on for about `minutes`; returns the model's file."""
    config = config.copy_and_resolve_references()
    budget = Budget(60 * minutes, time.monotonic())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, training = config.model.image_size, TrainingSettings.from_mapping(config.training)
    scenes = scene_file(workdir / "data", training.ou, size)
    if name == "global":
        draw_scenes(scenes, MOST_SCENES, size, training.ou, loader_workers(training, device), budget.data_deadline)
        config.training.scenes = len(scenes)
    else:
        gm = workdir / "global" / "model.safetensors"
        advanced = advanced_file(scenes, sha256(gm))
        advance_scenes(scenes, advanced, len(scenes), load_prior(gm, device), device, budget.data_deadline)
        config.training.scenes = len(advanced)
    # the rate is measured in a short run of its own, which also compiles
    probe = config.copy_and_resolve_references()
    probe.training.n_iters = 2 * loop.LOG_STEPS
    shutil.rmtree(workdir / "probe", ignore_errors=True)
    (workdir / "probe" / "global").mkdir(parents=True)
    os.symlink((workdir / "data").resolve(), workdir / "probe" / "data")
    if name == "local":
        os.symlink((workdir / "global" / "model.safetensors").resolve(), workdir / "probe" / "global/model.safetensors")
    run_lib.train(probe, workdir / "probe", (name,))
    rate = logged(workdir / "probe" / name, "images_per_s")[-1] / config.training.batch_size
    config.training.n_iters = max(loop.LOG_STEPS, int(SPARE * rate * budget.left))
    print(f"{name}: {config.training.scenes} scenes, {rate:.3g} steps/s, {config.training.n_iters} steps")
    run_lib.train(config, workdir, (name,))
    return workdir / name / "model.safetensors"


def judge(
    priors: dict[str, dict[str, Path]], cases: list[scans.Case], config: ml_collections.ConfigDict
) -> list[dict]:
    """Scores of the cascade with each pair of `priors` (label → model → file) on each case."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = {label: tuple(load_prior(files[name], device) for name in MODELS) for label, files in priors.items()}
    job, rows = Job.from_config(config, 0), []
    for case in tqdm(cases, desc="judge", unit="case"):
        scan = case.measure(config, 0, device)
        for label, models in loaded.items():
            image = reconstruct_problem(scan.problem, models, job.ou, job.sampling, 0).image
            scores = evaluate(image, scan.reference)  # the result is final
            rows.append({**case.columns(scan.name), "priors": label, **{name: scores[name] for name in SCORES}})
    return rows


def improves(rows: list[dict]) -> tuple[bool, str]:
    """Whether the new priors are better than the shipped ones, and the means of both."""
    mean = {
        (label, score): float(np.mean([row[score] for row in rows if row["priors"] == label]))
        for label, score in product(("shipped", "new"), SCORES)
    }
    text = ", ".join(f"{score} {mean['shipped', score]:.4f} -> {mean['new', score]:.4f}" for score in SCORES)
    return all(mean["new", score] > mean["shipped", score] for score in ("psnr", "ssim")), text


def replace(new: dict[str, Path], folder: Path) -> None:
    """Put the new files into `folder` and keep the old ones beside them; no file is ever incomplete."""
    for name in new:
        with atomic_path(folder / f"{name}.previous.safetensors") as temporary:
            shutil.copyfile(folder / f"{name}.safetensors", temporary)
    for name, path in new.items():
        with atomic_path(folder / f"{name}.safetensors") as temporary:
            shutil.copyfile(path, temporary)


def cases_to_judge(folder: Path, size: int, frames: int, count: int, data: list[str]) -> list[scans.Case]:
    """Phantoms, hearts, `count` synthetic scenes (written into `folder`) and scan files, with every mask."""
    sources: list[Path | int | str] = [*PHANTOMS, *HEARTS]
    for seed in range(FIRST_SCENE, FIRST_SCENE + count):
        image, _ = make_scene(frames, size, size, seed)
        np.save(folder / f"scene{seed}.npy", image.numpy())
        sources.append(folder / f"scene{seed}.npy")
    sources += [Path(path) for path in data]
    return [scans.Case(source, *mask) for source in sources for mask in MASKS]


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_shipped", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9, help="for each of GM and LM (default 9)")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate after the warm-up (default 1e-3)")
    parser.add_argument("--batch", type=int, default=32, help="frames per step (default 32)")
    parser.add_argument("--precision", default="bf16" if torch.cuda.is_available() else "fp32", help="fp32 or bf16")
    parser.add_argument("--compile", action="store_true", help="torch.compile the training step")
    parser.add_argument("--size", type=int, default=96, help="pixels of scenes, phantoms and hearts (default 96)")
    parser.add_argument("--frames", type=int, default=16, help="frames of the scans to judge by (default 16)")
    parser.add_argument("--scenes", type=int, default=6, help="synthetic scenes to judge by (default 6)")
    parser.add_argument("--data", action="append", default=[],
                        help="fully sampled scan to judge by as well; not one of the tables")  # fmt: skip
    parser.add_argument("--checkpoints", type=Path, default=Path(__file__).parents[1] / "checkpoints",
                        help="folder of global.safetensors and local.safetensors (default: shipped)")  # fmt: skip
    parser.add_argument("--workdir", type=Path, help="folder of the training (default: DIR/training)")
    parser.add_argument("--out", type=Path, required=True, help="folder for train_shipped.csv, .md and .json")
    flags = parser.parse_args()
    if flags.minutes <= 0 or flags.scenes < 0 or flags.rate <= 0:
        raise InputError("--minutes and --rate must be above 0, --scenes 0 or more.")
    return flags


def main() -> None:
    flags = parse_flags()
    refuse_existing(flags.out, False)
    old = {name: flags.checkpoints / f"{name}.safetensors" for name in MODELS}
    for path in old.values():
        load_prior(path)  # before any work
    workdir = flags.workdir or flags.out / "training"
    config = synthetic.get_config()
    config.model.image_size, config.optim.lr = flags.size, flags.rate
    config.training.update({"batch_size": flags.batch, "precision": flags.precision, "compile": flags.compile})
    for part in (ModelSettings, OptimSettings, TrainingSettings):  # they check the flags before any work
        part.from_mapping(config[part.part])
    testing = cpu_demo.get_config()
    testing.ou.operator = "llr"  # the priors are trained on it; after `motion` they would hardly differ
    testing.data.size, testing.data.frames = flags.size, flags.frames
    with tempfile.TemporaryDirectory() as folder:
        cases = cases_to_judge(Path(folder), flags.size, flags.frames, flags.scenes, flags.data)
        for case in cases:
            case.acquire(testing, 0)  # a scan that cannot be used is reported before the training
        new = {}
        for name in MODELS:
            config.training.init = str(old[name])
            new[name] = train_one(name, config, workdir, flags.minutes)
        rows = judge({"shipped": old, "new": new}, cases, testing)
    write_csv(flags.out / "train_shipped.csv", rows, COLUMNS)
    write_markdown(flags.out / "train_shipped.md", rows, COLUMNS)
    write_record(flags.out / "train_shipped.json", "benchmarks.train_shipped", config)
    print(markdown(rows, COLUMNS))
    better, text = improves(rows)
    if better:
        replace(new, flags.checkpoints)
    print(f"{text}: {'replaced' if better else 'kept the shipped ones in'} {flags.checkpoints}")


if __name__ == "__main__":
    exit_on_input_error(main)
