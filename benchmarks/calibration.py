"""Calibration of the error map: `python -m benchmarks.calibration --out DIR [--data FILE …]`.

Reconstructs, sorts the pixels by their predicted error into ten groups of equal size, and compares in each group the
root mean square of the prediction with that of the actual error. They should be equal. Also, of all pixels together:
the rank correlation of prediction and error, in single pixels and in neighbourhoods of 3 × 3 (the prediction is a
standard deviation; the error of one pixel is a single draw), and how reliably the prediction finds the 5 % of the
pixels with the largest error (area under the ROC curve; 0.5 is chance).
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import scipy.ndimage
import scipy.stats
import torch
from matplotlib.ticker import NullFormatter
from tqdm import tqdm

from benchmarks import scans
from benchmarks.quality import context_kind
from benchmarks.scores import write_record
from mri.metrics import image_error
from report.tables import markdown, write_csv, write_markdown
from run_lib import Job
from sampling import reconstruct_problem
from utils.errors import InputError, exit_on_input_error
from utils.files import atomic_path, refuse_existing

Tensor = torch.Tensor

GROUPS = 10
WORST = 0.05  # share of the pixels that a reader wants to be warned of
COLUMNS = ("scan", "pattern", "acceleration", "noise", "group", "predicted", "error", "rank_correlation",
           "rank_correlation_3x3", "auc")  # fmt: skip


def calibration(error_std: np.ndarray, error: np.ndarray) -> list[dict[str, float]]:
    """Root mean squares of prediction and error in groups of pixels, from the smallest to the largest prediction."""
    order = np.argsort(error_std, axis=None)
    return [
        {"predicted": _rms(error_std.flat[group]), "error": _rms(error.flat[group])}
        for group in np.array_split(order, GROUPS)
    ]


def agreement(error_std: np.ndarray, error: np.ndarray) -> dict[str, float]:
    """Spearman's rank correlation, pixel by pixel and with the root mean square of the error in the 3 × 3 pixels around
    each, and the area under the ROC curve of finding the pixels of largest error; of `(frames, height, width)`.
    """
    around = scipy.ndimage.uniform_filter(np.square(error, dtype=np.float64), (1, 3, 3))
    ranks = scipy.stats.rankdata(error_std)
    worst = error.ravel() >= np.quantile(error, 1 - WORST)
    count, rest = worst.sum(), (~worst).sum()
    area = (ranks.ravel()[worst].sum() - count * (count + 1) / 2) / (count * rest)
    pixels, neighbourhoods = (
        np.corrcoef(ranks.ravel(), scipy.stats.rankdata(one).ravel())[0, 1] for one in (error, around)
    )
    return {"rank_correlation": float(pixels), "rank_correlation_3x3": float(neighbourhoods), "auc": float(area)}


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def picture(path: Path, rows: list[dict]) -> None:
    """PNG: error against prediction, one line per case; the diagonal is a perfect prediction."""
    figure, axis = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    axis.set_prop_cycle(color=plt.colormaps["tab20"].colors)
    for case in dict.fromkeys((row["scan"], row["pattern"], row["acceleration"], row["noise"]) for row in rows):
        own = [row for row in rows if (row["scan"], row["pattern"], row["acceleration"], row["noise"]) == case]
        label = f"{case[0]}, {case[1]} R={case[2]}" + (f", noise {case[3]}" if float(case[3]) else "")
        axis.loglog([row["predicted"] for row in own], [row["error"] for row in own], "o-", markersize=3, label=label)
    ends = [min(row["predicted"] for row in rows), max(row["predicted"] for row in rows)]
    axis.loglog(ends, ends, "k--", linewidth=0.8, label="perfect")
    axis.xaxis.set_minor_formatter(NullFormatter())  # labels between decades would overlap
    axis.set_xlabel("predicted RMS error / brightest pixel")
    axis.set_ylabel("RMS error / brightest pixel")
    figure.legend(fontsize=7, loc="outside right upper")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__.splitlines()[0])
    scans.add_flags(parser)
    flags = parser.parse_args()
    config = scans.configuration(flags)
    config.sampling.sampler = "cascade"
    if len(flags.seeds) > 1:
        raise InputError("--seeds: calibration uses a single seed; give one.")
    models, out = context_kind(scans.priors(flags)), Path(flags.out)
    cases, seed = scans.cases(flags, config), flags.seeds[0]
    refuse_existing(out, flags.overwrite)
    job, rows = Job.from_config(config, seed), []
    for case in tqdm(cases, unit="case"):
        scan = case.measure(config, seed, flags.device)
        result = reconstruct_problem(scan.problem, models, job.ou, job.sampling, seed)
        top = scan.reference.abs().max().item()
        error = image_error(result.image, scan.reference, scan.problem.model.coils)
        if result.error_std is None:
            raise InputError(f"{scan.name}: no likely error: too few held-out samples, or view sharing is the result.")
        predicted, actual = result.error_std.numpy() / top, error.numpy() / top
        whole = {**case.columns(scan.name), **agreement(predicted, actual)}
        rows += [{**whole, "group": i + 1, **group} for i, group in enumerate(calibration(predicted, actual))]
    write_csv(out / "calibration.csv", rows, COLUMNS)
    write_markdown(out / "calibration.md", rows, COLUMNS)
    picture(out / "calibration.png", rows)
    write_record(out / "calibration.json", "benchmarks.calibration", config)
    print(markdown(rows, COLUMNS) + "\n\n" + "\n".join(str(out / f"calibration.{end}") for end in ("csv", "md", "png")))


if __name__ == "__main__":
    exit_on_input_error(main)
