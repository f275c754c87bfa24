"""Continue training the shipped priors through the sampler: `python -m benchmarks.train_shipped --out DIR`.

Each of GM and LM gets `--minutes`, for as many steps as fit, with the learning rate falling to 0 at the last. Scans
are simulated while it trains. Then the cascade reconstructs scans that are neither in the training nor in the tables
(phantoms, hearts with coils and noise, synthetic scenes, and `--data`) with the optimization unit alone, with the
shipped priors and with the new ones. If both the mean PSNR and the mean SSIM are above those with the shipped ones,
the new priors replace them in `checkpoints`, and the old stay beside them as `*.previous.safetensors`.
"""

import argparse
import shutil
import tempfile
import time
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
from configs.ve import cascade as cascade_config
from configs.ve import cpu_demo
from configs.ve import scenes as scenes_config
from models.prior import MODELS, load_prior
from mri.metrics import evaluate
from mri.scenes import make_scene
from report.tables import markdown, write_csv, write_markdown
from run_lib import Job
from sampling import reconstruct_problem
from training import loop
from training.settings import ModelSettings, OptimSettings, TrainingSettings
from utils.errors import InputError, exit_on_input_error
from utils.files import atomic_path, refuse_existing

MASKS = (("uniform", 4.0), ("uniform", 8.0), ("random", 6.0), ("radial", 6.0))
PHANTOMS = ("phantom100", "phantom101")  # the tables use seed 0, the training seeds from 1000 on
HEARTS = (100, 101)
FIRST_SCENE = 10**6  # number of the first scene to judge by; of 2³¹ that training draws from
SPARE = 0.9  # share of the steps that fit at the measured rate
SCORES = ("psnr_common", "ssim_common", "nmse", "edge_time")
PAIRS = ("none", "shipped", "new")
COLUMNS = ("scan", "pattern", "acceleration", "priors", *SCORES)


def train_one(name: str, config: ml_collections.ConfigDict, workdir: Path, minutes: float) -> Path:
    """Train GM or LM (`name`) from `config.training.init` on for about `minutes`; returns the model's file."""
    config = config.copy_and_resolve_references()
    begun = time.monotonic()
    if name == "local":
        config.model.sigma_max = scenes_config.LM_SIGMA_MAX
    # the rate is measured in a short run of its own, which also compiles
    probe = config.copy_and_resolve_references()
    probe.training.n_iters = 2 * loop.LOG_STEPS
    shutil.rmtree(workdir / "probe", ignore_errors=True)
    run_lib.train(probe, workdir / "probe", (name,))
    rate = logged(workdir / "probe" / name, "images_per_s")[-1] / config.training.batch_size
    left = begun + 60 * minutes - time.monotonic()
    config.training.n_iters = max(loop.LOG_STEPS, int(SPARE * rate * left))
    print(f"{name}: {rate:.3g} steps/s, {config.training.n_iters} steps")
    run_lib.train(config, workdir, (name,))
    return workdir / name / "model.safetensors"


def judge(
    priors: dict[str, dict[str, Path]], cases: list[scans.Case], config: ml_collections.ConfigDict
) -> list[dict]:
    """Scores of the OU alone, and of the cascade with each pair of `priors` (label → model → file), on each case."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = {label: tuple(load_prior(files[name], device) for name in MODELS) for label, files in priors.items()}
    job, rows = Job.from_config(config, 0), []
    for case in tqdm(cases, desc="judge", unit="case"):
        scan = case.measure(config, 0, device)
        results = {
            label: reconstruct_problem(scan.problem, models, job.ou, job.sampling, 0)
            for label, models in loaded.items()
        }
        images = {"none": next(iter(results.values())).start} | {label: one.image for label, one in results.items()}
        for label, image in images.items():
            scores = evaluate(image, scan.reference)  # the result is final
            rows.append({**case.columns(scan.name), "priors": label, **{name: scores[name] for name in SCORES}})
    return rows


def improves(rows: list[dict]) -> tuple[bool, str]:
    """Whether the new priors are better than the shipped ones, and the means of all."""
    mean = {
        (label, score): float(np.nanmean([row[score] for row in rows if row["priors"] == label]))
        for label, score in product(PAIRS, SCORES)
    }
    text = ", ".join(f"{score} {' -> '.join(f'{mean[label, score]:.4f}' for label in PAIRS)}" for score in SCORES)
    better = all(mean["new", score] > mean["shipped", score] for score in ("psnr_common", "ssim_common"))
    return better, f"{' -> '.join(PAIRS)}: {text}"


def replace(new: dict[str, Path], folder: Path) -> None:
    """Put the new files into `folder`, and keep the old ones beside them; no file is ever incomplete."""
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
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate after the warm-up (default 3e-4)")
    parser.add_argument("--batch", type=int, default=64, help="frames per step (default 64)")
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
    config = cascade_config.get_config()
    config.model.image_size, config.optim.lr = flags.size, flags.rate
    config.training.columns = min(config.training.columns, flags.size)
    config.training.update({"batch_size": flags.batch, "precision": flags.precision, "compile": flags.compile})
    for part in (ModelSettings, OptimSettings, TrainingSettings):  # they check the flags before any work
        part.from_mapping(config[part.part])
    testing = cpu_demo.get_config()
    testing.data.size, testing.data.frames = flags.size, flags.frames
    with tempfile.TemporaryDirectory() as folder:
        cases = cases_to_judge(Path(folder), flags.size, flags.frames, flags.scenes, flags.data)
        for case in cases:
            case.acquire(testing, 0)  # a scan that cannot be used is reported before the training
        new = {}
        for name in MODELS:
            other = MODELS[1 - MODELS.index(name)]
            config.training.init, config.training.partner = str(old[name]), str(new.get(other, old[other]))
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
