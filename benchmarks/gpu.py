"""Steps of `benchmarks/gpu.sh` that no other benchmark covers: `python -m benchmarks.gpu PART FOLDER [--small]`.

PART is `parity`, `reconstruction`, `training` or `scenes`; each writes FOLDER/PART.json. `collect` then combines all
results in FOLDER into one JSON and one Markdown file.
"""

import argparse
import csv
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ml_collections
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import run_lib
from benchmarks import scans
from benchmarks.network import build, peak_of, random_network
from benchmarks.quality import Priors
from configs.ve import SIAT_kdata_ncsnpp, cpu_demo
from configs.ve import scenes as scenes_config
from models.convert import fixture_error, load_fixture
from models.precision import compiled, in_precision
from models.prior import Prior
from mri.scenes import make_scene
from mri.weighting import KspaceWeight
from op.dispatch import forced
from reconstruction.prepare import prepare
from report.tables import markdown
from sampling import reconstruct_problem
from training.objectives import CONTEXTS, DATA_STD
from training.settings import ModelSettings
from utils.errors import InputError, exit_on_input_error
from utils.files import atomic_path
from utils.memory import is_out_of_memory

Tensor = torch.Tensor

FIXTURES = ("ncsnpp_small.npz", "ncsnpp_tiny_centered.npz")  # of GLDM_SHARED/parity
LARGEST_ERROR = 1e-3  # of scores in float32 without TF32, relative to the largest
WAYS = (("fp32", False), ("bf16", False), ("bf16", True))  # precision, compiled
OPERATORS = {"published": "hankel", "cascade": "motion"}  # of the OU in the rows that time the networks
LOWEST = 1e-4  # σ of random priors of the cascade: they are applied at every level


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def published_config(small: bool) -> ml_collections.ConfigDict:
    """The published configuration; with `small` one that a CPU runs in seconds."""
    config = SIAT_kdata_ncsnpp.get_config()
    if small:
        config.model.image_size, config.data.frames = 64, 4
        config.model.nf, config.model.ch_mult, config.model.num_res_blocks = 8, (1, 2), 1
        config.training.batch_size = 2
        config.ou.motion_patches, config.ou.motion_steps = (4,), 5
    config.data.phantoms = 2
    return config


# ------------------------------------------------------------------------------------------------- parts


def parity(small: bool) -> Iterator[dict]:
    """Scores on the device compared with those of the CPU in plain float32, and with published scores."""
    forms = [("native", "fp32", False), ("native", "bf16", False)]
    if device().type == "cuda":
        forms += [("triton", "fp32", False), ("triton", "bf16", False)]
    yield from network_parity("small" if small else "published", 64 if small else 96, forms)
    if not small:  # compiling the published network takes minutes
        yield from network_parity("small", 96, [("native", "fp32", True), ("triton", "fp32", True)])
    yield from fixture_parity()


def network_parity(name: str, size: int, forms: list[tuple[str, str, bool]]) -> Iterator[dict]:
    """A random network in several forms, each GLDM_OPS, precision, compiled."""
    network, batch = build(name, size).eval(), 2
    x, sigma = torch.randn(batch, 2, size, size), torch.linspace(0.1, 1, batch)
    with torch.no_grad(), forced("native"):
        expected = network(x, sigma)
    network = network.to(device(), memory_format=torch.channels_last)
    x, sigma = x.to(device(), memory_format=torch.channels_last), sigma.to(device())
    for operations, precision, compile in forms:
        for tf32 in (False, True) if device().type == "cuda" and precision == "fp32" and not compile else (False,):
            torch.backends.cudnn.allow_tf32 = tf32
            score = in_precision(compiled(network, device()) if compile else network, precision, device())
            with torch.no_grad(), forced(operations):
                error = (score(x, sigma).cpu() - expected).abs().max() / expected.abs().max()
            yield {"what": f"{name} network against the CPU", "operations": operations, "precision": precision,
                   "compiled": compile, "tf32": tf32, "max_relative_error": error.item()}  # fmt: skip
            torch.backends.cudnn.allow_tf32 = True


def fixture_parity() -> Iterator[dict]:
    """Networks for which the published code computed the scores."""
    torch.backends.cudnn.allow_tf32 = False
    folder = os.environ.get("GLDM_SHARED")
    for fixture in FIXTURES if folder else ():
        network, tensors = load_fixture(Path(folder) / "parity" / fixture)
        network = network.to(device(), memory_format=torch.channels_last)
        tensors = {key: tensor.to(device()) for key, tensor in tensors.items()}
        for operations in ("native", "triton") if device().type == "cuda" else ("native",):
            with forced(operations):
                error = fixture_error(network, tensors)
            yield {"what": f"published scores, {fixture}", "operations": operations, "precision": "fp32",
                   "compiled": False, "tf32": False, "max_relative_error": error}  # fmt: skip
    if not folder:
        yield {"what": "published scores: left out, GLDM_SHARED does not name the folder of parity/"}
    torch.backends.cudnn.allow_tf32 = True


def random_priors(config: ml_collections.ConfigDict, precision: str = "fp32", compile: bool = False) -> Priors:
    """GM and LM with random weights, of the kind that the sampler needs. They take as long as trained ones."""
    cascade = config.sampling.sampler == "cascade"
    settings = replace(ModelSettings.from_mapping(config.model), temporal=cascade)
    if cascade:  # of weighted k-space the levels are others
        settings = replace(settings, sigma_min=LOWEST)

    def prior(role: str, seed: int) -> Prior:
        torch.manual_seed(seed)
        context = CONTEXTS[role] if cascade else None
        network = random_network(settings, context).to(device(), memory_format=torch.channels_last)
        network = network.eval().requires_grad_(False)
        run = in_precision(compiled(network, device()) if compile else network, precision, device())
        weight = KspaceWeight(power=0.0 if cascade else 1.0, gain=1.0, data_std=DATA_STD)
        return Prior(network, weight, "random", config.sampling.batch_size, context, role=role, run=run,
                     of_scenes=cascade)  # fmt: skip

    return prior("global", 0), prior("local", 1)


def reconstruction(small: bool) -> Iterator[dict]:
    """Whole reconstructions: the shipped priors, and random ones of published size by both samplers."""
    rows = [("phantom0", "motion"), (0, "motion")]
    for size in (64,) if small else (96, 192):
        for source, operator in rows:
            config = cpu_demo.get_config()
            config.data.size, config.data.frames = size, 5 if small else 16
            config.ou.operator = operator
            if small:
                config.ou.motion_patches, config.ou.motion_steps = (4,), 5
            row = {"what": f"cascade, shipped priors, OU {operator}", "precision": "fp32", "compiled": False}
            yield from timed(row, config, (None, None), source)
    iterations = 2 if small else 10
    for precision, compile in WAYS[:1] if small else WAYS:  # compiled forms last
        for sampler in ("cascade", "published"):
            config = published_config(small)
            config.sampling.sampler, config.sampling.iterations = sampler, iterations
            config.ou.operator = OPERATORS[sampler]
            full = SIAT_kdata_ncsnpp.get_config().sampling.iterations
            row = {"what": f"{sampler}, published network at random", "precision": precision, "compiled": compile}
            yield from timed(row, config, random_priors(config, precision, compile), "phantom0",
                             full / iterations if sampler == "published" else 1.0)  # fmt: skip


def timed(
    row: dict, config: ml_collections.ConfigDict, priors: Priors, source: int | str, scale: float = 1.0
) -> Iterator[dict]:
    """Times of the first run, which compiles, and of the second, which counts.

    Parameters
    ----------
    source
        as of `benchmarks.scans.Case`: `phantom0` has one coil, the built-in heart phantom 0 has eight.
    """
    job, scan, _ = scans.Case(source, "uniform", 4.0).acquire(config, 0)
    seconds, results = [], []

    def run() -> None:
        begun = time.perf_counter()
        problem = prepare(scan, job.prepare, device())
        results.append(reconstruct_problem(problem, priors, job.ou, job.sampling, 0))
        seconds.append(time.perf_counter() - begun)  # the result is on the CPU: the device has finished

    frames, coils, size = scan.kspace.shape[:3]
    row = {**row, "size": size, "frames": frames, "coils": coils}
    try:
        run()
        peak = peak_of(run, device())
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        yield {**row, "note": "out of memory"}
        return
    except InputError as error:  # network passes that do not fit into the memory
        yield {**row, "note": str(error)}
        return
    row |= {"first_seconds": seconds[0], "seconds": seconds[1], "peak_mib": peak,
            "passes_per_frame": results[1].settings["passes_per_frame"]}  # fmt: skip
    if scale > 1:
        row["note"] = f"{config.sampling.iterations} iterations; all would take {seconds[1] * scale:.3g} s (scaled up)"
    yield row


def training(small: bool) -> Iterator[dict]:
    """Images per second of `main.py --mode=train`, with data, logs and optimizer, from its own log."""
    steps = 4 if small else 40
    cases = [(published_config(small), precision, compile) for precision, compile in (WAYS[:2] if small else WAYS)]
    moving = scenes_config.get_config()
    if small:
        moving.model.image_size, moving.model.nf = 64, 8
        moving.training.scene_frames = moving.training.batch_size = 4
    cases += [(moving, precision, compile) for precision, compile in (WAYS[:1] if small else WAYS)]
    cases.sort(key=lambda case: case[2])  # compiled forms last
    with tempfile.TemporaryDirectory() as folder:
        for number, (config, precision, compile) in enumerate(cases):
            config.training.update(
                {"precision": precision, "compile": compile, "n_iters": steps,
                 "snapshot_freq": 10**9, "snapshot_freq_for_preemption": 10**9}
            )  # fmt: skip
            workdir = Path(folder) / str(number)
            run_lib.train(config, workdir, ("global",))
            rate, loss = (logged(workdir / "global", name)[-1] for name in ("images_per_s", "loss"))
            yield {"what": f"training, {config.training.objective}", "size": config.model.image_size,
                   "batch": config.training.batch_size, "precision": precision, "compiled": compile,
                   "images_per_s": rate, "last_loss": loss}  # fmt: skip


def logged(folder: Path, name: str) -> list[float]:
    """The values of a scalar in the TensorBoard log of a training."""
    log = EventAccumulator(str(folder / "tensorboard"))
    log.Reload()
    return [event.value for event in log.Scalars(name)]


def scenes(small: bool) -> Iterator[dict]:
    """Synthetic scenes of 16 frames of 96×96 per second."""
    count, size = (2, 64) if small else (40, 96)
    make_scene(16, size, size, 0, device())
    begun = time.perf_counter()
    for seed in range(count):
        last, _ = make_scene(16, size, size, seed, device())
    last.abs().sum().item()  # waits for the device
    yield {"what": f"scenes of 16×{size}×{size}", "scenes_per_s": count / (time.perf_counter() - begun)}


PARTS = {"parity": parity, "reconstruction": reconstruction, "training": training, "scenes": scenes}


# --------------------------------------------------------------------------------------------- collection


def machine() -> dict:
    """The machine and versions that the numbers belong to."""
    found = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "python": platform.python_version(),
             "card": "none, CPU"}  # fmt: skip
    for name in ("torch", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"card": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1),
                  "capability": f"{properties.major}.{properties.minor}", "cuda": torch.version.cuda}  # fmt: skip
    return found


def collect(folder: Path, out: Path) -> None:
    """Write `gpu.json` and `gpu.md` in `out` from steps.tsv, network*/network.csv and the parts in `folder`."""
    with open(folder / "steps.tsv", newline="") as file:
        steps = list(csv.DictReader(file, delimiter="\t"))
    for step in steps:
        log = folder / f"{step['step']}.log"
        step["end_of_log"] = log.read_text(errors="replace").splitlines()[-12:] if log.is_file() else []
    record: dict = {"machine": machine(), "steps": steps}
    for path in sorted(folder.glob("network*/network.csv")):
        with open(path, newline="") as file:
            record.setdefault("network", []).extend(csv.DictReader(file))
    for part in PARTS:
        if (folder / f"{part}.json").is_file():
            record[part] = json.loads((folder / f"{part}.json").read_text())
    with atomic_path(out / "gpu.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
    with atomic_path(out / "gpu.md") as temporary:
        temporary.write_text(text_of(record))
    print(f"{out / 'gpu.json'}\n{out / 'gpu.md'}")


def text_of(record: dict) -> str:
    lines = ["# Measured on a GPU" if "capability" in record["machine"] else "# Tried on a CPU", ""]
    lines += ["; ".join(f"{name} {value}" for name, value in record["machine"].items()), ""]
    lines += [table([{k: v for k, v in step.items() if k != "end_of_log"} for step in record["steps"]])]
    for step in record["steps"]:
        if step["exit"] != "0":
            lines += ["", f"End of the log of {step['step']}:", "", "```", *step["end_of_log"], "```"]
    for part in ("network", *PARTS):
        if record.get(part):
            lines += ["", f"## {part}", "", table(record[part])]
    return "\n".join(lines) + "\n"


def table(rows: list[dict]) -> str:
    """A table of rows whose columns may differ."""
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    shown = [{name: _digits(row.get(name, "")) for name in columns} for row in rows]
    return markdown(shown, columns)


def _digits(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else value


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=(*PARTS, "collect"))
    parser.add_argument("folder", type=Path, help="folder of the parts' results")
    parser.add_argument("--out", type=Path, help="collect: folder for gpu.json and gpu.md")
    parser.add_argument("--small", action="store_true", help="sizes that a CPU runs in seconds")
    flags = parser.parse_args()
    if flags.part == "collect":
        if flags.out is None:
            raise InputError("collect needs --out, the folder for gpu.json and gpu.md.")
        collect(flags.folder, flags.out)
        return
    rows = []
    for row in PARTS[flags.part](flags.small):
        rows.append(row)
        print(row, flush=True)
        with atomic_path(flags.folder / f"{flags.part}.json") as temporary:  # kept if a later row fails
            temporary.write_text(json.dumps(rows, indent=2) + "\n")
    wrong = [row for row in rows if row.get("precision") == "fp32" and not row.get("tf32")
             and row.get("max_relative_error", 0) > LARGEST_ERROR]  # fmt: skip
    if wrong:
        raise InputError(f"scores are wrong by more than {LARGEST_ERROR} of the largest: {wrong[0]}; do not use them.")


if __name__ == "__main__":
    exit_on_input_error(main)
