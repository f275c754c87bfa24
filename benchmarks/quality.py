"""Quality of every method on every scan: `python -m benchmarks.quality --out DIR [--data FILE --acceleration 4,8 …]`.

λ of each swept baseline is the best of its six values by PSNR against the reference, an advantage that our own rows do
not have: they see the measured samples and the mask alone.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ml_collections
import torch
from tqdm import tqdm

from benchmarks import scans
from benchmarks.baselines import bart, l_plus_s, llr, temporal_tv
from benchmarks.baselines.fillings import nearest_merge, zero_filled
from benchmarks.panel import panel
from benchmarks.scores import SCORES, over_seeds, timed, write_record
from benchmarks.zero_shot import own_priors
from models.prior import Prior, load_prior, shipped
from mri.metrics import evaluate, moving_row
from reconstruction.optimization_unit import CHECK_STEPS, run_optimization_unit, with_operator
from reconstruction.prepare import Problem
from reconstruction.settings import MODELS
from report.figures import film
from report.tables import markdown, write_csv
from run_lib import Job
from sampling import reconstruct_problem
from utils.errors import InputError, exit_on_input_error
from utils.files import atomic_path, refuse_existing

Tensor = torch.Tensor
Priors = tuple[Prior | None, Prior | None]

COLUMNS = ("scan", "pattern", "acceleration", "noise", "method", *SCORES)
SWEEP_COLUMNS = ("scan", "pattern", "acceleration", "noise", "method", "chosen", "PSNR of each λ")


@dataclass(frozen=True)
class Method:
    """What makes a row of the table."""

    run: Callable[[Problem, int, float], tuple[Tensor, int]]  # scan, seed, λ → image in input units, passes
    strengths: tuple[float, ...] = (0.0,)  # λ to choose from; one for a method that has none


def all_methods(config: ml_collections.ConfigDict, models: Priors, own_steps: int) -> dict[str, Method]:
    """Name → method, in the order of the table; `own_steps` of the trainings on the scan alone."""
    return {
        "zero_filled": plain(zero_filled),
        "nearest_merge": plain(nearest_merge),
        "ou_only": optimization_unit(config),
        "l_plus_s": swept(l_plus_s.l_plus_s, l_plus_s.STRENGTHS),
        "llr": swept(llr.llr, llr.STRENGTHS),
        "temporal_tv": swept(temporal_tv.temporal_tv, temporal_tv.STRENGTHS),
        "bart_llr": swept(bart.bart_llr, bart.LLR_STRENGTHS),
        "bart_tv": swept(bart.bart_tv, bart.TV_STRENGTHS),
        # the published sampler starts from zero-filled k-space
        "gldm_published": ours(config, partial(published_kind, models), sampler="published", start="zero_filled"),
        "gldm": ours(config, lambda device: context_kind(models), sampler="cascade"),
        "gldm_own": zero_shot(config, own_steps, continued=False),
        "gldm_continued": zero_shot(config, own_steps, continued=True),
    }


TRAINED = ("gldm_own", "gldm_continued")  # minutes a scan: asked for by name alone
CINE = ("reference", "zero_filled", "nearest_merge", "bart_llr", "gldm")  # side by side in the film

REMOVED = {
    "gldm_synthetic": "it is called gldm now",
    "gldm_cascade": "k-space priors in the few-step cascade were followed in no row, so it equals ou_only",
    "gldm_adapted": "it is called gldm_continued now",
}


def optimization_unit(config: ml_collections.ConfigDict, operator: str | None = None) -> Method:
    """The OU without any network."""
    config = config.copy_and_resolve_references()
    config.ou.operator = operator or config.ou.operator

    def run(problem: Problem, seed: int, strength: float) -> tuple[Tensor, int]:
        job = Job.from_config(config, seed)
        ou = with_operator(job.ou, job.sampling.sampler)
        return problem.finished(run_optimization_unit(problem, ou, seed, CHECK_STEPS).image), 0

    return Method(run)


def published_kind(models: Priors, device: torch.device | str = "cpu") -> Priors:
    """The models that were given if they are of the published kind (k-space, no context), else the shipped ones."""
    if all(model is not None and model.context is None for model in models):
        return models
    return tuple(load_prior(shipped(name, "published"), device) for name in MODELS)


def context_kind(models: Priors) -> Priors:
    """The models that were given if they see context, else None for the shipped ones."""
    return models if all(model is not None and model.context is not None for model in models) else (None, None)


def plain(function: Callable[[Problem], Tensor]) -> Method:
    return Method(lambda problem, seed, strength: (problem.finished(function(problem)), 0))


def swept(function: Callable[[Problem, float], Tensor], strengths: tuple[float, ...]) -> Method:
    return Method(lambda problem, seed, strength: (problem.finished(function(problem, strength)), 0), strengths)


def ours(config: ml_collections.ConfigDict, models: Callable[[torch.device], Priors], **sampling) -> Method:
    """GLDM with the `models` of a device, asked for when they are needed."""
    config = config.copy_and_resolve_references()
    config.sampling.update(sampling)

    def run(problem: Problem, seed: int, strength: float) -> tuple[Tensor, int]:
        job = Job.from_config(config, seed)
        result = reconstruct_problem(problem, models(problem.measured.device), job.ou, job.sampling, seed)
        return result.image, result.settings["passes_per_frame"]

    return Method(run)


def zero_shot(config: ml_collections.ConfigDict, steps: int, continued: bool) -> Method:
    """GLDM whose GM and LM were trained on the scan alone, at random or as shipped before; its seconds count too."""
    config = config.copy_and_resolve_references()
    config.sampling.sampler = "cascade"

    def run(problem: Problem, seed: int, strength: float) -> tuple[Tensor, int]:
        job = Job.from_config(config, seed)
        models = own_priors(problem, seed, steps, continued)
        result = reconstruct_problem(problem, models, job.ou, job.sampling, seed)
        return result.image, result.settings["passes_per_frame"]

    return Method(run)


def choose_methods(methods: dict[str, Method], names: list[str] | None) -> dict[str, Method]:
    """Those of `names` (default: all), without BART, and with the reason printed, where it is missing."""
    unknown = [name for name in names or [] if name not in methods]
    if unknown and unknown[0] in REMOVED:
        raise InputError(f"--methods {unknown[0]} was removed: {REMOVED[unknown[0]]}.")
    if unknown:
        raise InputError(f"--methods {unknown[0]} is unknown; choose from {', '.join(methods)}.")
    chosen = {name: method for name, method in methods.items() if (name in names if names else name not in TRAINED)}
    if (reason := bart.why_not()) and any(name.startswith("bart_") for name in chosen):
        print(f"bart_llr and bart_tv are left out: {reason}")
        chosen = {name: method for name, method in chosen.items() if not name.startswith("bart_")}
    if not chosen:
        raise InputError(f"no method is left to measure; choose from {', '.join(methods)}.")
    return chosen


@dataclass(frozen=True)
class Measurement:
    """One method on one case, at the strength that is best for it."""

    scores: dict[str, float]
    image: Tensor  # of the first seed
    strength: float
    psnr_by_strength: dict[float, float]  # mean over the seeds


def measure(method: Method, runs: list[tuple[int, scans.Measured]], bar: tqdm) -> Measurement:
    """Run `method` with each of its strengths on each (seed, acquisition), keep the strength of the best PSNR."""
    found: list[Measurement] = []
    psnr = {}
    for strength in method.strengths:
        images, scores = [], []
        for seed, scan in runs:
            image, cost = timed(partial(method.run, scan.problem, seed, strength))
            images.append(image)
            scores.append({**evaluate(image, scan.reference), **cost})
            bar.update()
        total = over_seeds(scores)
        psnr[strength] = total["psnr"]
        found.append(Measurement(total, images[0], strength, psnr))
    return max(found, key=lambda measurement: measurement.scores["psnr"])


def sweep_row(measurement: Measurement, group: dict) -> dict:
    """The chosen λ and what it was chosen from; says so where the best is the first or last of the sweep."""
    strengths = list(measurement.psnr_by_strength)
    at_edge = measurement.strength in (strengths[0], strengths[-1])
    psnr = "  ".join(f"{strength:g}: {value:.2f}" for strength, value in measurement.psnr_by_strength.items())
    return {**group, "chosen": f"{measurement.strength:g}{' (edge)' if at_edge else ''}", "PSNR of each λ": psnr}


def write_tables(out: Path, rows: list[dict], sweeps: list[dict]) -> None:
    write_csv(out / "quality.csv", rows, COLUMNS)
    text = markdown(rows, COLUMNS) + "\n"
    if sweeps:
        text += (
            "\nλ of the swept baselines, chosen for each row by its PSNR against the reference; the other rows do not "
            f"use it.\n\n{markdown(sweeps, SWEEP_COLUMNS)}\n"
        )
    with atomic_path(out / "quality.md") as temporary:
        temporary.write_text(text)


def write_panel(path: Path, scan: scans.Measured, measurements: dict[str, Measurement]) -> None:
    """Images and a film of one case, as its first seed gave them."""
    series = {"reference": scan.reference.abs().numpy()}
    titles = {"reference": scan.name}
    for name, measurement in measurements.items():
        series[name] = measurement.image.abs().numpy()
        titles[name] = f"{name}\n{measurement.scores['psnr']:.2f} dB"
    panel(path, series, "reference", titles, moving_row(scan.reference))
    shown = [name for name in CINE if name in series]
    film(path.with_name("cine.gif"), {name: series[name] for name in shown}, "reference")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    scans.add_flags(parser)
    parser.add_argument("--methods", type=scans.words, help=f"rows to measure (default: all but {', '.join(TRAINED)})")
    parser.add_argument("--own_steps", type=int, default=300, help=f"training steps of {', '.join(TRAINED)} (300)")
    flags = parser.parse_args()
    config = scans.configuration(flags)
    methods = choose_methods(all_methods(config, scans.priors(flags), flags.own_steps), flags.methods)
    cases = scans.cases(flags, config)
    out = Path(flags.out)
    refuse_existing(out, flags.overwrite)
    rows, sweeps = [], []
    total = len(cases) * len(flags.seeds) * sum(len(method.strengths) for method in methods.values())
    with tqdm(total=total, unit="run") as bar:
        for case in cases:
            runs = [(seed, case.measure(config, seed, flags.device)) for seed in flags.seeds]
            scan = runs[0][1]
            group = case.columns(scan.name)
            measurements = {}
            for name, method in methods.items():
                bar.set_description(f"{scan.name} {case.pattern} R={case.acceleration:g} {name}")
                measurements[name] = measured = measure(method, runs, bar)
                rows.append({**group, "method": name, **measured.scores})
                if len(method.strengths) > 1:
                    sweeps.append(sweep_row(measured, {**group, "method": name}))
            write_tables(out, rows, sweeps)  # after every case: an interrupted run keeps what it has
            if case is cases[0]:
                write_panel(out / "panel.png", scan, measurements)
    write_record(out / "quality.json", "benchmarks.quality", config)
    print((out / "quality.md").read_text() + "\n" + "\n".join(str(out / f"quality.{end}") for end in ("csv", "md")))
    print(f"{out / 'panel.png'}\n{out / 'cine.gif'}")


if __name__ == "__main__":
    exit_on_input_error(main)
