"""Ablation: `python -m benchmarks.ablation --out DIR [--data FILE --acceleration 4,8 …]`.

Every stage of the reconstruction is left out or replaced in turn: the models and their order, the OU, the start and the
sampler. Each sampler uses priors of its own kind, by default the shipped ones. The start varies for the published
sampler only: the cascade always starts from view sharing, with an OU from the OU's result.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import ml_collections
import numpy as np
import torch
from tqdm import tqdm

from benchmarks import scans
from benchmarks.baselines.fillings import nearest_merge, zero_filled
from benchmarks.quality import Method, Priors, context_kind, measure, optimization_unit, ours, plain, published_kind
from benchmarks.scores import SCORES, write_record
from models.prior import load_shipped
from reconstruction.settings import MODELS, SAMPLERS
from report.tables import markdown, write_csv
from utils.errors import InputError, exit_on_input_error
from utils.files import atomic_path, refuse_existing

FACTORS = ("sampler", "start", "stages", "ou")
COLUMNS = ("scan", "pattern", "acceleration", "noise", *FACTORS, *SCORES)
ORDERS = {
    "GM": ("global",),
    "LM": ("local",),
    "LM→GM": ("local", "global"),
    "GM→LM": ("global", "local"),
}
STARTS = {"published": ("zero_filled", "pseudo_reference"), "cascade": ("pseudo_reference",)}  # of each sampler
OPERATORS = ("hankel", "llr", "motion")  # of the OU alone
# with models, what the OU does of each sampler: nothing, follow each model, take turns with them, come before them
WITH_MODELS = {"published": ("no", "yes"), "cascade": ("no", "in turn", "before")}


@dataclass(frozen=True)
class Row:
    """One arrangement of the stages, and how to run it."""

    sampler: str  # none: no model
    start: str
    stages: str  # the models in their order
    ou: str  # of `WITH_MODELS`; without models its operator
    method: Method

    def columns(self) -> dict[str, str]:
        return {factor: getattr(self, factor) for factor in FACTORS}


def arrangements(config: ml_collections.ConfigDict, models: Priors, samplers: list[str]) -> Iterator[Row]:
    """The rows of the table, first those without a model."""
    yield Row("none", "zero_filled", "none", "no", plain(zero_filled))
    yield Row("none", "pseudo_reference", "none", "no", plain(nearest_merge))
    for operator in OPERATORS:
        yield Row("none", "pseudo_reference", "none", operator, optimization_unit(config, operator))
    for sampler in samplers:
        for (stages, order), ou, start in product(ORDERS.items(), WITH_MODELS[sampler], STARTS[sampler]):
            changed = config.copy_and_resolve_references()
            changed.ou.after = "never" if ou == "no" else "both"
            kind = partial(published_kind, models) if sampler == "published" else partial(of_the_cascade, models, ou)
            method = ours(changed, kind, sampler=sampler, start=start, order=order)
            yield Row(sampler, start, stages, ou, method)


def of_the_cascade(models: Priors, ou: str, device: torch.device | str) -> Priors:
    """Priors with context; not interleaved: followed once each from the start, as priors of what it leaves are."""
    first, second = context_kind(models)
    if ou != "in turn":
        loaded = (load_shipped(name, "cascade", device) if one is None else one
                  for name, one in zip(MODELS, (first, second), strict=True))  # fmt: skip
        first, second = (replace(one, of_scenes=False) for one in loaded)
    return first, second


def gains(rows: list[dict], factor: str, better: str, worse: str) -> list[float]:
    """PSNR of `better` minus that of `worse`, dB, for every pair of rows that differ in nothing else."""
    others = [column for column in COLUMNS if column not in (factor, *SCORES)]
    with_models = [row for row in rows if row["sampler"] != "none"]
    psnr = {(row[factor], *(row[column] for column in others)): row["psnr"] for row in with_models}
    pairs = [((better, *key[1:]), (worse, *key[1:])) for key in psnr if key[0] == better]
    return [psnr[first] - psnr[second] for first, second in pairs if second in psnr]


def findings(rows: list[dict]) -> str:
    """What the table says, whatever it is: the mean gain of each stage over its pairs of rows."""
    questions = (
        ("OU after every model rather than never, published sampler", "ou", "yes", "no"),
        ("models in turn with the OU rather than without it, cascade", "ou", "in turn", "no"),
        ("models in turn with the OU rather than after it, cascade", "ou", "in turn", "before"),
        ("start from view sharing rather than zero-filled", "start", "pseudo_reference", "zero_filled"),
        ("cascade rather than published sampler, each with its own priors, no OU", "sampler", "cascade", "published"),
        ("GM→LM rather than LM→GM", "stages", "GM→LM", "LM→GM"),
        ("GM→LM rather than GM alone", "stages", "GM→LM", "GM"),
        ("GM→LM rather than LM alone", "stages", "GM→LM", "LM"),
    )
    lines = []
    for question, *pair in questions:
        if gain := gains(rows, *pair):
            spread = f"{min(gain):+.2f} to {max(gain):+.2f} in {len(gain)} pairs of rows"
            lines.append(f"- {question}: {np.mean(gain):+.2f} dB ({spread}).")
    for case in dict.fromkeys((row["scan"], row["pattern"], row["acceleration"], row["noise"]) for row in rows):
        own = [row for row in rows if (row["scan"], row["pattern"], row["acceleration"], row["noise"]) == case]
        unit = max((row for row in own if row["ou"] in OPERATORS), key=lambda row: row["psnr"])
        best = max((row for row in own if row["stages"] != "none"), key=lambda row: row["psnr"])
        lines.append(
            f"- {case[0]}, {case[1]} R={case[2]}: the best arrangement with models ({best['sampler']}, "
            f"{best['start']}, {best['stages']}, OU {best['ou']}) gains {best['psnr'] - unit['psnr']:+.2f} dB over the "
            f"best OU alone ({unit['ou']})."
        )
    return "\n".join(lines)


def write_tables(out: Path, rows: list[dict], text: str) -> None:
    write_csv(out / "ablation.csv", rows, COLUMNS)
    with atomic_path(out / "ablation.md") as temporary:
        temporary.write_text(f"{markdown(rows, COLUMNS)}\n{text}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__.splitlines()[0])
    scans.add_flags(parser)
    parser.add_argument("--samplers", type=scans.words, default=list(SAMPLERS), help="default: both")
    flags = parser.parse_args()
    config = scans.configuration(flags)
    if not flags.samplers or not set(flags.samplers) <= set(SAMPLERS):
        raise InputError(f"--samplers {','.join(flags.samplers)}: choose from {', '.join(SAMPLERS)}.")
    table = list(arrangements(config, scans.priors(flags), flags.samplers))
    cases = scans.cases(flags, config)
    out = Path(flags.out)
    refuse_existing(out, flags.overwrite)
    rows: list[dict] = []
    with tqdm(total=len(cases) * len(flags.seeds) * len(table), unit="run") as bar:
        for case in cases:
            runs = [(seed, case.measure(config, seed, flags.device)) for seed in flags.seeds]
            for row in table:
                bar.set_description(f"{runs[0][1].name} R={case.acceleration:g} {' '.join(row.columns().values())}")
                scores = measure(row.method, runs, bar).scores
                rows.append({**case.columns(runs[0][1].name), **row.columns(), **scores})
                write_tables(out, rows, "\nUnfinished.\n")
    auto = ""
    if config.ou.operator == "auto":
        auto = (
            " (hankel with the published sampler, motion with the cascade)"
        )
    text = (
        f"ou `yes`: OU after each model; `in turn`: models interleaved with the OU; `before`: the whole OU first, then "
        f"each model once, each followed by an llr step. Operator: {config.ou.operator}{auto}. Differences in PSNR:"
    )
    write_tables(out, rows, f"\n{text}\n\n{findings(rows)}\n")
    write_record(out / "ablation.json", "benchmarks.ablation", config)
    print((out / "ablation.md").read_text() + f"\n{out / 'ablation.csv'}\n{out / 'ablation.md'}")


if __name__ == "__main__":
    exit_on_input_error(main)
