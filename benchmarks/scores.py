"""What every table of quality has in common: timing, scores over seeds, and the record of how it was made."""

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
import torch

from utils.files import atomic_path

Tensor = torch.Tensor

SCORES = (
    "psnr", "psnr_std", "ssim", "nmse", "psnr_common", "ssim_common", "gain", "gain_range", "edge_time", "seconds",
    "passes",
)  # fmt: skip


def timed(reconstruct: Callable[[], tuple[Tensor, int]]) -> tuple[Tensor, dict[str, float]]:
    """Image of `reconstruct`, on the CPU, and `seconds` and network `passes` per frame that it took."""
    start = time.perf_counter()
    image, passes = reconstruct()
    image = image.cpu()  # waits for a GPU to finish
    return image, {"seconds": time.perf_counter() - start, "passes": passes}


def over_seeds(scores: list[dict[str, float]]) -> dict[str, float]:
    """The columns `SCORES` of several runs: means, and for `psnr_std` the deviation over all their frames.

    Parameters
    ----------
    scores
        per seed, what `mri.metrics.evaluate` and `timed` return; the same number of frames each.
    """
    mean = {name: float(np.mean([score[name] for score in scores])) for name in SCORES}
    within = np.mean([score["psnr_std"] ** 2 for score in scores])
    between = np.var([score["psnr"] for score in scores])
    return {**mean, "psnr_std": float(np.sqrt(within + between)), "passes": round(mean["passes"])}


def write_record(path: Path, module: str, config: ml_collections.ConfigDict) -> None:
    """JSON with all that repeats a table: command, configuration, versions, threads."""
    record = {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "config": json.loads(config.to_json()),
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy", "scikit-image")},
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
