"""Is the predicted error the real one: `python -m benchmarks.calibration --out DIR [--data FILE …]`.

Reconstructs with posterior samples, sorts the pixels by their predicted deviation into ten groups of one size, and
compares the root mean square of the prediction with that of the error in each. Perfect: equal in every group.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullFormatter
from tqdm import tqdm

from benchmarks import scans
from benchmarks.quality import context_kind
from benchmarks.scores import write_record
from sampling import reconstruct
from utils.errors import InputError, exit_on_input_error
from utils.files import atomic_path, refuse_existing
from utils.tables import markdown, write_csv, write_markdown

GROUPS = 10
COLUMNS = ("scan", "pattern", "acceleration", "group", "predicted", "error")


def calibration(deviation: np.ndarray, error: np.ndarray) -> list[dict[str, float]]:
    """Root mean squares of prediction and error in groups of pixels, from the least to the largest prediction."""
    order = np.argsort(deviation, axis=None)
    return [
        {"predicted": _rms(deviation.flat[group]), "error": _rms(error.flat[group])}
        for group in np.array_split(order, GROUPS)
    ]


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def picture(path: Path, rows: list[dict]) -> None:
    """PNG: error against prediction, a line per case; the diagonal is perfect."""
    figure, axis = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
    for case in dict.fromkeys((row["scan"], row["pattern"], row["acceleration"]) for row in rows):
        own = [row for row in rows if (row["scan"], row["pattern"], row["acceleration"]) == case]
        label = f"{case[0]}, {case[1]} R={case[2]}"
        axis.loglog([row["predicted"] for row in own], [row["error"] for row in own], "o-", markersize=3, label=label)
    ends = [min(row["predicted"] for row in rows), max(row["predicted"] for row in rows)]
    axis.loglog(ends, ends, "k--", linewidth=0.8, label="perfect")
    axis.xaxis.set_minor_formatter(NullFormatter())  # between decades they would overlap
    axis.set_xlabel("predicted deviation, share of the brightest pixel")
    axis.set_ylabel("root mean square error")
    axis.legend(fontsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__.splitlines()[0])
    scans.add_flags(parser)
    flags = parser.parse_args()
    config = scans.configuration(flags)
    config.sampling.sampler = "cascade"
    config.sampling.samples = config.sampling.samples or 6
    if len(flags.seeds) > 1:
        raise InputError("--seeds: calibration uses one seed; give one.")
    models, seed, out = context_kind(scans.priors(flags)), flags.seeds[0], Path(flags.out)
    cases = scans.cases(flags, config)
    refuse_existing(out, flags.overwrite)
    rows = []
    for case in tqdm(cases, unit="case"):
        scan = case.acquire(config, seed, flags.device)
        result = reconstruct(scan.kspace, scan.mask, *models, config, seed, flags.device)
        top = scan.reference.abs().max().item()
        error = ((result.image - scan.reference).abs() / top).numpy()
        groups = calibration(result.deviation.numpy() / top, error)
        rows += [{**case.columns(scan.name), "group": i + 1, **group} for i, group in enumerate(groups)]
    write_csv(out / "calibration.csv", rows, COLUMNS)
    write_markdown(out / "calibration.md", rows, COLUMNS)
    picture(out / "calibration.png", rows)
    write_record(out / "calibration.json", "benchmarks.calibration", config)
    print(markdown(rows, COLUMNS) + "\n\n" + "\n".join(str(out / f"calibration.{end}") for end in ("csv", "md", "png")))


if __name__ == "__main__":
    exit_on_input_error(main)
