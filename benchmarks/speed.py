"""Seconds and memory, side by side in one process: `python -m benchmarks.speed [--only ou --size 192 --frames 16]`.

The OU's structured low-rank step and its published form, one network pass, a whole reconstruction by each sampler, the
default OU with one coil and with eight, and beside that of commit 98c97d2; GLDM with its two runs at the same time and
one after the other. `torch.set_num_threads` or OMP_NUM_THREADS applies to all of them. The scans are the simple
phantom, one coil without noise, and for the rows with coils the built-in heart phantom with noise.
"""

import argparse
import contextlib
import ctypes
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from benchmarks import plain_ou, scans
from benchmarks.scores import write_record
from configs.ve.cpu_demo import get_config
from models.prior import load_prior, shipped
from mri.fourier import fft2c, ifft2c
from mri.lowrank.hankel import HankelLowRank, published_rank
from mri.masks import make_mask
from mri.metrics import evaluate
from mri.phantom import simulate_scan
from mri.scan import Scan
from mri.weighting import to_channels
from reconstruction.optimization_unit import CHECK_STEPS, OptimizationUnit, run_optimization_unit
from reconstruction.prepare import Problem, prepare
from reconstruction.settings import MODELS, SAMPLERS, OUSettings
from report.tables import markdown, write_csv, write_markdown
from run_lib import Job
from sampling import reconstruct_problem
from utils.errors import InputError, exit_on_input_error
from utils.files import refuse_existing

Tensor = torch.Tensor

PARTS = ("ou", "network", "reconstruction", "growth", "coils", "motion", "together")
COLUMNS = ("part", "size", "frames", "rank", "seconds", "ratio", "peak_mib", "note")
REPEATS = 7  # of a step that takes less than a few seconds; the median counts
OU = OUSettings(operator="motion")  # of the rows that time a whole one
CONVERGED = 30  # warm steps on one image, after which the subspace of another one has settled
RANKS = (24, 48, 96, 192)  # over which growth with the rank is measured


def published_step(image: Tensor, window: int, rank: int) -> Tensor:
    """The structured low-rank step as published: the explicit window matrix and its full SVD (Shin et al. 2014).

    The w×w windows that lie inside k-space, of all frames at one position, are a row; the matrix is truncated
    to `rank` and the overlapping entries averaged. Complex `(frames, height, width)` in and out.
    """
    kspace = fft2c(image)
    frames, height, width = kspace.shape
    windows = kspace.unfold(1, window, 1).unfold(2, window, 1).permute(1, 2, 0, 3, 4)
    rows, columns = windows.shape[:2]
    u, singular, vh = torch.linalg.svd(windows.reshape(rows * columns, -1), full_matrices=False)
    truncated = ((u[:, :rank] * singular[:rank]) @ vh[:rank]).reshape(rows, columns, frames, window, window)
    total, count = torch.zeros_like(kspace), torch.zeros(height, width)
    for ay, ax in product(range(window), repeat=2):
        place = (slice(ay, ay + rows), slice(ax, ax + columns))
        total[:, *place] += truncated[..., ay, ax].permute(2, 0, 1)
        count[place] += 1
    return ifft2c(total / count)


def published_elements(size: int, frames: int, window: int) -> int:
    """Entries of the published window matrix."""
    return (size - window + 1) ** 2 * frames * window**2


# ------------------------------------------------------------------------------------------- measurement


def seconds_of(step: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median over `repeats`; the caller has warmed up."""
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        durations.append(time.perf_counter() - start)
    return statistics.median(durations)


def peak_mib(step: Callable[[], object]) -> float | str:
    """Most memory that `step` held beyond what was held before, MiB; empty where Linux does not tell it.

    `resource.getrusage` only knows the peak of the whole process, which the largest step would hide.
    """
    peak_reset = Path("/proc/self/clear_refs")
    if not os.access(peak_reset, os.W_OK):
        step()
        return ""
    ctypes.CDLL(None).malloc_trim(0)  # what is freed but kept would otherwise be used again unseen
    before = _status_mib("VmRSS")
    peak_reset.write_text("5")
    step()
    return max(0.0, _status_mib("VmHWM") - before)


def _status_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def simple_problem(size: int, frames: int) -> Problem:
    """The simple phantom, under-sampled uniformly at R = 4 and prepared."""
    config = get_config()
    config.data.size, config.data.frames = size, frames
    return scans.Case("phantom0", "uniform", 4.0).measure(config, 0).problem


# ------------------------------------------------------------------------------------------------- parts


def ou_rows(size: int, frames: int, window: int, rank: int, max_published_elements: int) -> Iterator[dict]:
    """A warm step, an exact one, and the published form on the same image, one after the other."""
    problem = simple_problem(size, frames)
    image = problem.view_sharing()
    place = {"size": size, "frames": frames, "rank": rank}
    warm, exact = HankelLowRank(window, rank, sweeps=1), HankelLowRank(window, rank, sweeps=0)
    warm(problem.model.adjoint(problem.measured))  # begin from the subspace of other images
    for _ in range(CONVERGED):
        result = warm(image)
    expected = exact(image)
    difference = ((result - expected).norm() / expected.norm()).item()
    note = f"differs from ou_exact by {difference:.1e} of its norm, {CONVERGED} steps after a change of image"
    seconds = {"ou_warm": seconds_of(partial(warm, image)), "ou_exact": seconds_of(partial(exact, image), 3)}
    peaks = {"ou_warm": peak_mib(partial(warm, image)), "ou_exact": peak_mib(partial(exact, image))}
    elements = published_elements(size, frames, window)
    if elements <= max_published_elements:
        published = partial(published_step, image, window, rank)
        published_step(image[:2, :64, :64], window, 1)  # warms up the SVD
        seconds["ou_published"], peaks["ou_published"] = seconds_of(published, 1), peak_mib(published)
    else:
        print(
            f"{size}×{size}×{frames}: published form left out, its matrix would have {elements:,} entries "
            f"(--max_published_elements {max_published_elements:,})"
        )
    for part, value in seconds.items():
        ratio = seconds["ou_published"] / value if "ou_published" in seconds else ""
        row = {"part": part, **place, "seconds": value, "ratio": ratio, "peak_mib": peaks[part]}
        yield {**row, "note": note if part == "ou_warm" else ""}


def network_row(size: int, frames: int) -> dict:
    """One pass of the shipped GM over all frames."""
    prior = load_prior(shipped("global", "published"))
    x = to_channels(prior.weight(fft2c(simple_problem(size, frames).view_sharing())))
    one_pass = partial(prior.score, x, prior.weight.data_std)
    peak, seconds = peak_mib(one_pass), seconds_of(one_pass, 3)
    note = f"{seconds / frames:.3f} s per frame"
    return {"part": "network_pass", "size": size, "frames": frames, "seconds": seconds, "peak_mib": peak, "note": note}


def reconstruction_row(part: str, sampler: str, source: int | str, size: int, frames: int, iterations: int) -> dict:
    """A whole `cascade`, or the first `iterations` of `published`; a time that is scaled up says so."""
    config = get_config()
    config.data.size, config.data.frames = size, frames
    config.sampling.sampler, full = sampler, config.sampling.iterations
    config.sampling.iterations = min(iterations, full)
    job, scan, _ = scans.Case(source, "uniform", 4.0).acquire(config, 0)
    ou = OU if sampler == "cascade" else replace(job.ou, operator="hankel")
    results = []

    def run() -> None:
        problem = prepare(scan, job.prepare)
        results.append(reconstruct_problem(problem, (None, None), ou, job.sampling))

    start = time.perf_counter()
    peak = peak_mib(run)
    seconds = time.perf_counter() - start
    note = f"OU {ou.operator}, {results[0].settings['passes_per_frame']} passes per frame"
    if sampler == "published" and iterations < full:
        scaled = seconds / iterations * full
        note += f"; {iterations} of {full} iterations measured, all would take {scaled:.3g} s (scaled up)"
    return {"part": part, "size": size, "frames": frames, "seconds": seconds, "peak_mib": peak, "note": note}


def reconstruction_rows(size: int, frames: int, iterations: int) -> Iterator[dict]:
    """Each sampler with one coil, and the cascade with several."""
    for sampler in SAMPLERS:
        yield reconstruction_row(f"gldm_{sampler}", sampler, "phantom0", size, frames, iterations)
    yield reconstruction_row("gldm_cascade_coils", "cascade", 0, size, frames, iterations)


def coil_rows(size: int, frames: int) -> Iterator[dict]:
    """The whole default OU of the built-in heart phantom, its settings given, with one coil and with eight."""
    mask = make_mask("uniform", (frames, size, size), 4, 8)
    problems = {}
    for part, coils in (("ou_motion_one_coil", 1), ("ou_motion_coils", 8)):
        scan = simulate_scan("heart", frames, size, 0, coils, 0.01)
        problems[part] = prepare(Scan.from_arrays(scan.kspace, mask, noise_samples=scan.noise))
    seconds: dict[str, list[float]] = {part: [] for part in problems}
    for _ in range(3):  # in turn, so that both see the same machine
        for part, problem in problems.items():
            begun = time.perf_counter()
            run_optimization_unit(problem, OU)
            seconds[part].append(time.perf_counter() - begun)
    alone = statistics.median(seconds["ou_motion_one_coil"])
    for part, problem in problems.items():
        own = statistics.median(seconds[part])
        note = f"{problem.model.coils} virtual coil(s); ratio: seconds over those of one coil"
        yield {"part": part, "size": size, "frames": frames, "seconds": own, "ratio": own / alone, "note": note}


def motion_rows(size: int, frames: int) -> Iterator[dict]:
    """The whole OU of today and that of commit 98c97d2, its search included, on one scan; the peak SNR of both."""
    config = get_config()
    config.data.size, config.data.frames = size, frames
    _, scan, reference = scans.Case("phantom0", "uniform", 4.0).acquire(config, 0)
    problem = prepare(scan)
    y, mask = problem.measured[:, 0], problem.model.mask
    # compiles the kernels, and warms both up
    OptimizationUnit(OU).solve(problem, 4)
    plain_ou.start_by_llr(y, mask, problem.periodic, 0)
    forms: dict[str, Callable[[], Tensor]] = {
        "motion": lambda: run_optimization_unit(problem, OU, check_steps=CHECK_STEPS).image,
        "motion_plain": lambda: plain_ou.optimization_unit(y, mask, problem.periodic),
    }
    found = {}
    for part, form in forms.items():
        begun = time.perf_counter()
        image = problem.finished(form())
        seconds = time.perf_counter() - begun
        score = evaluate(image, problem.reference_image(reference))
        found[part] = {"part": part, "size": size, "frames": frames, "seconds": seconds,
                       "note": f"PSNR {score['psnr_common']:.2f} dB"}  # fmt: skip
    found["motion"]["ratio"] = found["motion_plain"]["seconds"] / found["motion"]["seconds"]
    yield from found.values()


def together_rows(size: int, frames: int) -> Iterator[dict]:
    """GLDM at R = 8, with the runs with and without the held-out samples at the same time, and one after the other."""
    config = get_config()
    config.data.size, config.data.frames, config.mask.acs, config.sampling.sampler = size, frames, 8, "cascade"
    case = scans.Case("phantom0", "uniform", 8.0)
    problem, job = case.measure(config, 0).problem, Job.from_config(config, 0)
    priors = tuple(load_prior(shipped(name, "cascade"), "cpu") for name in MODELS)
    seconds: dict[str, list[float]] = {"gldm": [], "gldm_one_by_one": []}
    OptimizationUnit(OU).solve(problem, 4)  # compiles the kernels
    for _ in range(3):  # in turn, so that both see the same machine
        for part, own in seconds.items():
            with contextlib.ExitStack() as stack:
                if part == "gldm_one_by_one":
                    for place in ("optimization_unit", "in_turn"):
                        stack.enter_context(mock.patch(f"reconstruction.{place}.beside", alone))
                begun = time.perf_counter()
                reconstruct_problem(problem, priors, OU, job.sampling, 0)
                own.append(time.perf_counter() - begun)
    median = {part: statistics.median(own) for part, own in seconds.items()}
    for part, own in median.items():
        ratio = own / median["gldm"]
        yield {"part": part, "size": size, "frames": frames, "seconds": own, "ratio": ratio,
               "note": f"R = 8, {torch.get_num_threads()} threads"}  # fmt: skip


def alone(job: Callable[[], object], device: torch.device) -> contextlib.AbstractContextManager:
    """In place of `utils.threads.beside`: the job runs when its result is asked for."""
    return contextlib.nullcontext(job)


def growth_rows(size: int, frames: int, window: int) -> Iterator[dict]:
    """A warm OU step at several ranks."""
    image = simple_problem(size, frames).view_sharing()
    for rank in RANKS:
        if rank <= frames * window**2:
            step = HankelLowRank(window, rank, sweeps=1)
            step(image)
            seconds = seconds_of(partial(step, image))
            yield {"part": "ou_warm_rank", "size": size, "frames": frames, "rank": rank, "seconds": seconds}


def growth(rows: list[dict], part: str, quantities: dict[str, Callable[[dict], int]]) -> str:
    """seconds ∝ product of powers of those `quantities` of a row that vary among the rows of `part`.

    A least-squares fit of logarithms, valid in the measured range. Empty when none varies.
    """
    own = [row for row in rows if row["part"] == part]
    logs = {name: [np.log(value(row)) for row in own] for name, value in quantities.items()}
    logs = {name: values for name, values in logs.items() if len(set(values)) > 1}
    if not logs:
        return ""
    design = np.stack([np.ones(len(own)), *logs.values()], axis=1)
    powers = np.linalg.lstsq(design, np.log([row["seconds"] for row in own]), rcond=None)[0][1:]
    return f"{part}: seconds ∝ " + " · ".join(f"({name})^{p:.2f}" for name, p in zip(logs, powers, strict=True))


# ----------------------------------------------------------------------------------------------- command


def measure(flags: argparse.Namespace) -> list[dict]:
    """The rows of the parts that the flags ask for."""
    rows: list[dict] = []
    window = get_config().ou.window
    middle = flags.frames[len(flags.frames) // 2]
    for size in flags.size:
        if "ou" in flags.only:
            for frames in flags.frames:
                rank = flags.rank or published_rank(frames, window)
                rows += ou_rows(size, frames, window, rank, flags.max_published_elements)
        if "network" in flags.only:
            rows.append(network_row(size, middle))
        if "reconstruction" in flags.only:
            rows += reconstruction_rows(size, middle, flags.iterations)
    if "coils" in flags.only:
        rows += coil_rows(flags.size[len(flags.size) // 2], middle)
    if "motion" in flags.only:
        rows += motion_rows(flags.size[len(flags.size) // 2], middle)
    if "together" in flags.only:
        rows += together_rows(flags.size[len(flags.size) // 2], middle)
    if "growth" in flags.only:
        rows += growth_rows(flags.size[len(flags.size) // 2], middle, window)
    return rows


def summary(rows: list[dict]) -> str:
    """Growth of the times; last line: the OU's warm step and its published form, of the last scan with both."""
    scan_size = {"T": lambda row: row["frames"], "H·W": lambda row: row["size"] ** 2}
    lines = [growth(rows, part, scan_size) for part in ("ou_warm", "ou_published", "network_pass")]
    lines.append(growth(rows, "ou_warm_rank", {"rank": lambda row: row["rank"]}))
    if published := [row for row in rows if row["part"] == "ou_published"]:
        last = published[-1]
        place = (last["size"], last["frames"])
        warm = next(row for row in rows if row["part"] == "ou_warm" and (row["size"], row["frames"]) == place)
        lines.append(f"ou: {warm['seconds']:.4g} s  published: {last['seconds']:.4g} s  ratio: {warm['ratio']:.4g}")
    if motion := {row["part"]: row for row in rows if row["part"].startswith("motion")}:
        now, plain = motion["motion"], motion["motion_plain"]
        lines.append(f"motion: {now['note']}  plain: {plain['note']}")
        lines.append(f"motion: {now['seconds']:.4g} s  plain: {plain['seconds']:.4g} s  ratio: {now['ratio']:.4g}")
    return "\n".join(line for line in lines if line)


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=scans.words, default=list(PARTS), help=f"parts: {', '.join(PARTS)}")
    parser.add_argument("--size", type=scans.numbers(int), default=[64, 96, 128, 192], help="pixels")
    parser.add_argument("--frames", type=scans.numbers(int), default=[8, 16, 32])
    parser.add_argument("--rank", type=int, default=0, help="of the OU (default: the published share, 6 a frame)")
    parser.add_argument("--iterations", type=int, default=2, help="of the published sampler (default 2)")
    parser.add_argument(
        "--max_published_elements", type=int, default=50_000_000,
        help="largest matrix of the published form; 5e7 complex numbers and their SVD take 1.5 GB",
    )  # fmt: skip
    parser.add_argument("--out", help="folder for speed.csv and speed.md")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in --out")
    flags = parser.parse_args()
    if unknown := [part for part in flags.only if part not in PARTS]:
        raise InputError(f"--only {unknown[0]} is unknown; choose from {', '.join(PARTS)}.")
    if not (flags.only and flags.size and flags.frames) or flags.iterations < 1 or flags.rank < 0:
        raise InputError("give at least one part, size and number of frames, at least one iteration and a rank ≥ 0.")
    return flags


def main() -> None:
    flags = parse_flags()
    if flags.out:
        refuse_existing(flags.out, flags.overwrite)
    rows = measure(flags)
    table = [{name: _digits(row.get(name, "")) for name in COLUMNS} for row in rows]
    if flags.out:
        out = Path(flags.out)
        write_csv(out / "speed.csv", table, COLUMNS)
        write_markdown(out / "speed.md", table, COLUMNS)
        write_record(out / "speed.json", "benchmarks.speed", get_config())
    print(f"{markdown(table, COLUMNS)}\n{torch.get_num_threads()} threads")
    print(summary(rows))


def _digits(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


if __name__ == "__main__":
    exit_on_input_error(main)
