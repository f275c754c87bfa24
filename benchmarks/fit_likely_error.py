"""Fit the constants of the likely error: `python -m benchmarks.fit_likely_error --out DIR`.

Simulates scans, reconstructs them as the cascade does, and fits SPREAD, CORRECTION, BRIGHTNESS, LEVEL, GAIN and
GAIN_SCATTERED of `reconstruction/uncertainty.py` by maximum likelihood. `benchmarks.calibration` judges them on other
scans.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.optimize
import torch
from tqdm import tqdm

from benchmarks.calibration import GROUPS, agreement, calibration
from benchmarks.scores import write_record
from configs.ve.cpu_demo import get_config
from models.prior import load_shipped
from mri.draw import Draw
from mri.fourier import fft2c
from mri.masks import make_mask
from mri.metrics import image_error
from mri.phantom.scan import simulate_scan
from mri.scan import Reference, Scan
from mri.scenes import make_scene
from reconstruction.in_turn import cascade_in_turn
from reconstruction.optimization_unit import run_optimization_unit, with_operator
from reconstruction.prepare import prepare
from reconstruction.settings import MODELS
from reconstruction.uncertainty import BRIGHTNESS, CORRECTION, SPREAD, Evidence, evidence, held_out_level, modelled
from report.tables import markdown, write_csv
from run_lib import Job
from utils.errors import InputError, exit_on_input_error
from utils.files import atomic_path, refuse_existing

FIRST_SEED = 50000  # of the scenes; training draws its own from all numbers below 2³¹
FIRST_SETTING = 90000  # first seed of the sampling and noise settings, kept independent of the scene content
PATTERNS = ("uniform", "uniform", "random", "radial")
NOISE = (0.0, 0.0, 0.005, 0.01, 0.02)  # σ over the brightest pixel, known
HEART_EVERY, HEART_COILS, HEART_NOISE = 2, (1, 4, 8), (0.0, 0.01, 0.02)  # every second scan is a heart, σ not known
FEWEST = 10  # scans
PIXELS = 6000  # drawn of each scan, so that all count alike
COLUMNS = ("scene", "pattern", "acceleration", "noise", "coils", "rank_correlation", "rank_correlation_3x3", "auc",
           "within_1_5")  # fmt: skip


def is_heart(number: int) -> bool:
    return number % HEART_EVERY == HEART_EVERY - 1


def simulate(number: int) -> tuple[Scan, Reference, dict]:
    """Scan, reference and description of one scene: moving organs, or a heart of several coils."""
    draw = Draw(FIRST_SETTING + number)
    pattern, acceleration, noise = draw.choice(PATTERNS), draw.integer(3, 10), draw.choice(NOISE)
    size, frames = draw.choice((64, 96)), draw.choice((12, 16))
    mask = make_mask(pattern, (frames, size, size), acceleration, 0 if pattern == "radial" else 8, number)
    coils = 1
    if is_heart(number):
        coils, noise = draw.choice(HEART_COILS), draw.choice(HEART_NOISE)
        heart = simulate_scan("heart", frames, size, FIRST_SEED + number, coils, noise)
        scan, image = Scan.from_arrays(heart.kspace, mask), heart.image
    else:
        image, _ = make_scene(frames, size, size, FIRST_SEED + number)
        white = torch.view_as_complex(draw.normal(*image.shape, 2)) / 2**0.5
        scan = Scan.from_arrays(fft2c(image) + noise * white, mask, noise_std=noise)
    said = {"scene": number, "pattern": pattern, "acceleration": acceleration, "noise": f"{noise:g}", "coils": coils}
    return scan, Reference(image=image), said


class Observed(NamedTuple):
    """What is known of a reconstruction, in units of the scan's scale, and its error."""

    error: np.ndarray
    found: Evidence  # of arrays
    level: float | None  # see `held_out_level`


class Constants(NamedTuple):
    powers: tuple[float, float, float]  # of spread², correction², brightness²
    of_level: float
    gain: float
    gain_scattered: float


def observed(scan: Scan, reference: Reference, job: Job, priors: list) -> Observed | None:
    """Error, and what the likely error is computed from; None without held-out samples, or where low rank along the
    motion is not the result.
    """
    problem = prepare(scan, job.prepare)
    result = run_optimization_unit(problem, with_operator(job.ou, "cascade"), job.seed)
    if result.halfway is None or result.without_held_out is None:
        return None
    followed = cascade_in_turn(problem, priors, result, job.seed)
    assert followed.without is not None and result.held_out is not None and followed.low_rank is not None
    alone = None if followed.image is result.image else result.image
    squares = evidence(followed.image, followed.without, alone, followed.low_rank)
    level = held_out_level(problem, result.held_out, followed.image, followed.without)
    error = image_error(problem.finished(followed.image), problem.reference_image(reference), problem.model.coils)
    maps = (one.numpy().astype(np.float64) / problem.scale for one in (error, *map(problem.finished, squares)))
    return Observed(next(maps), Evidence(*maps), level)


def predicted(scan: Observed, constants: Constants) -> np.ndarray:
    """Squared error by these constants."""
    gains = constants.gain, constants.gain_scattered
    return modelled(scan.found, scan.level, gains, constants.powers, constants.of_level)


def fit(scans: Sequence[Observed], seed: int = 0) -> Constants:
    """The constants of largest likelihood: error² exponentially distributed about its prediction.

    The powers tell where in a scan its errors are: they are fitted to the scans of lines, each with a gain of its own.
    LEVEL and GAIN then describe how errors differ between these scans, and GAIN_SCATTERED is fitted to the others.

    Raises
    ------
    InputError
        if there are no scans of lines or none of single samples, or if the fit does not converge.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for scan in scans:
        chosen = rng.permutation(scan.error.size)[:PIXELS]
        found = Evidence(*(values.ravel()[chosen] for values in scan.found))
        drawn.append(Observed(scan.error.ravel()[chosen], found, scan.level))
    lines, scattered = ([one for one in drawn if (one.level is None) == single] for single in (False, True))
    if not lines or not scattered:
        missing = "single samples" if lines else "lines"
        raise InputError(f"none of the {len(scans)} scans measured {missing}; give more --scenes.")

    def without_gain(group: list[Observed], powers: np.ndarray, of_level: float) -> list[np.ndarray]:
        ones = Constants(tuple(powers), of_level, 1.0, 1.0)
        return [predicted(one, ones) for one in group]

    def gains(group: list[Observed], shapes: list[np.ndarray]) -> np.ndarray:  # of each scan, of largest likelihood
        return np.array([np.mean(one.error**2 / shape) for one, shape in zip(group, shapes, strict=True)])

    def surprise(powers: np.ndarray, of_level: float, gain_each: bool) -> float:
        shapes = without_gain(lines, powers, of_level)
        each = gains(lines, shapes)
        gain = each if gain_each else each.mean()
        return float(np.mean(np.log(gain) + [np.mean(np.log(shape)) for shape in shapes] + each / gain))

    start = np.array([SPREAD, CORRECTION, BRIGHTNESS])
    options = {"initial_simplex": np.vstack([start, start + np.eye(3) / 4]), "maxiter": 1000, "xatol": 1e-3,
               "fatol": 1e-6}  # fmt: skip
    found = scipy.optimize.minimize(surprise, start, (0.0, True), method="Nelder-Mead", options=options)
    level = scipy.optimize.minimize_scalar(
        lambda of_level: surprise(found.x, of_level, False), bounds=(0, 1), method="bounded"
    )
    if not found.success or not level.success:
        raise InputError(f"the fit to {len(scans)} scans does not converge; give more --scenes.")
    own = [gains(group, without_gain(group, found.x, level.x)).mean() for group in (lines, scattered)]
    return Constants(tuple(found.x.tolist()), float(level.x), *map(float, own))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit_likely_error", description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=80, help="simulated scans to fit to (80)")
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in --out")
    flags = parser.parse_args()
    out, config = Path(flags.out), get_config()
    refuse_existing(out, flags.overwrite)
    if flags.scenes < FEWEST:
        raise InputError(f"--scenes: at least {FEWEST}, so that scenes and hearts come with lines and spokes.")
    config.sampling.sampler = "cascade"
    job, priors = Job.from_config(config, 0), [load_shipped(name, "cascade") for name in MODELS]
    scans, said = [], []
    for number in tqdm(range(flags.scenes), unit="scan"):
        scan, reference, description = simulate(number)
        if (found := observed(scan, reference, job, priors)) is not None:
            scans.append(found)
            said.append(description)
    hearts = [is_heart(description["scene"]) for description in said]
    groups = {"all": scans}
    groups |= {name: [scan for scan, one in zip(scans, hearts, strict=True) if one == which]
               for name, which in (("scenes alone", False), ("hearts alone", True))}  # fmt: skip
    constants = {name: fit(group) for name, group in groups.items()}
    rows = []
    for description, scan in zip(said, scans, strict=True):
        std = np.sqrt(predicted(scan, constants["all"]))
        ratios = [group["predicted"] / group["error"] for group in calibration(std, scan.error)]
        within = sum(1 / 1.5 <= ratio <= 1.5 for ratio in ratios)
        rows.append({**description, **agreement(std, scan.error), "within_1_5": f"{within}/{GROUPS}"})
    fitted = "\n".join(
        f"{name}: SPREAD {one.powers[0]:.3f}, CORRECTION {one.powers[1]:.3f}, BRIGHTNESS {one.powers[2]:.3f}, "
        f"LEVEL {one.of_level:.3f}, GAIN {one.gain:.3f}, GAIN_SCATTERED {one.gain_scattered:.3f}"
        for name, one in constants.items()
    )
    write_csv(out / "fit.csv", rows, COLUMNS)
    with atomic_path(out / "fit.md") as temporary:
        temporary.write_text(f"{markdown(rows, COLUMNS)}\n\n{fitted}\n")
    write_record(out / "fit.json", "benchmarks.fit_likely_error", config)
    print((out / "fit.md").read_text())


if __name__ == "__main__":
    exit_on_input_error(main)
