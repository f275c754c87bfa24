"""The published sampler in full: `python -m benchmarks.published --out DIR [--data FILE --acceleration 8 …]`.

PSNR and NMSE against the reference at every tenth iteration, computed afterwards: the sampler sees the measured
samples alone. The optimization unit and GLDM with default settings are shown for comparison. Defaults of the sampler:
the paper's 300 iterations of 1000 noise levels, from zero-filled images; of its models, which are of
`training.objective=dsm`: the shipped ones.
"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

from benchmarks import scans
from benchmarks.quality import published_kind
from benchmarks.scores import write_record
from mri.metrics import evaluate
from reconstruction.optimization_unit import OptimizationUnit, with_operator
from reconstruction.prepare import Problem
from reconstruction.settings import MODELS
from report.tables import markdown, write_csv, write_markdown
from run_lib import Job
from sampling import SamplerLog, published_cascade, reconstruct_problem
from sde_lib import VESDE
from utils.errors import InputError, exit_on_input_error
from utils.files import atomic_path, refuse_existing

Tensor = torch.Tensor

EVERY = 10  # iterations from one row to the next
COLUMNS = ("scan", "pattern", "acceleration", "noise", "seed", "iteration", "sigma", "psnr_common", "ssim_common",
           "nmse", "seconds")  # fmt: skip


class Recorder(OptimizationUnit):
    """The optimization unit, which keeps what it makes of every iteration, data consistent as the sampler makes it."""

    def __init__(self, unit: OptimizationUnit, problem: Problem, count: int) -> None:
        super().__init__(unit.settings, unit.seed)
        self.problem, self.count, self.images, self.calls = problem, count, [], 0

    def __call__(self, image: Tensor, strength: float = 1.0) -> Tensor:
        found = super().__call__(image, strength)
        self.calls += 1
        if self.calls % (2 * EVERY) == 0 or self.calls == 2 * self.count:  # after LM, the last of two
            self.images.append(self.problem.model.projected(found, self.problem.measured))
        return found


def curve(problem: Problem, job: Job, models) -> tuple[list[tuple[int, float, Tensor]], float]:
    """Iteration, σ and image of every tenth iteration, and the seconds of all."""
    unit = Recorder(OptimizationUnit(with_operator(job.ou, "published"), job.seed), problem, job.sampling.iterations)
    known = models[0].network.architecture
    sde = VESDE(known["sigma_min"], known["sigma_max"], job.sampling.num_scales)
    start = problem.model.adjoint(problem.measured)
    generator = torch.Generator().manual_seed(job.seed)
    begun = time.perf_counter()
    with tqdm(total=job.sampling.iterations, desc="GLDM (published)") as bar:
        log = SamplerLog(bar)
        published_cascade(
            start, problem.model, problem.measured, models, sde, job.sampling, unit, generator, log
        )
    seconds = time.perf_counter() - begun
    iterations = [*range(EVERY, job.sampling.iterations, EVERY), job.sampling.iterations]
    found = zip(iterations, unit.images, strict=True)
    return [(number, log.steps[number - 1]["sigma"], image) for number, image in found], seconds


def _case(row: dict) -> tuple:
    return tuple(row[name] for name in ("scan", "pattern", "acceleration", "noise", "seed"))


def picture(path: Path, rows: list[dict]) -> None:
    """PNG: PSNR over the iterations, of each case; dashed the optimization unit, dotted GLDM."""
    figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    cases = dict.fromkeys(_case(row) for row in rows)
    for number, case in enumerate(cases):
        own = [row for row in rows if _case(row) == case]
        steps = [row for row in own if isinstance(row["iteration"], int)]
        label = f"{case[0]}, {case[1]} R={case[2]}" + (f", noise {case[3]}" if float(case[3]) else "")
        axis.plot([row["iteration"] for row in steps], [row["psnr_common"] for row in steps], f"C{number}", label=label)
        for row, style, place in ((own[0], "--", 0), (own[1], ":", -1)):  # their words at both ends
            axis.axhline(row["psnr_common"], color=f"C{number}", linestyle=style, linewidth=0.9)
            at = (steps[place]["iteration"], row["psnr_common"])
            axis.annotate(row["iteration"], at, fontsize=8, va="bottom", ha="left" if place == 0 else "right")
    axis.set_xlabel("iteration of the published sampler")
    axis.set_ylabel("PSNR, dB")
    axis.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__.splitlines()[0])
    scans.add_flags(parser)
    parser.set_defaults(set=["sampling.num_scales=1000", "sampling.iterations=300"])
    flags = parser.parse_args()
    config = scans.configuration(flags)
    if config.ou.after != "both" or tuple(config.sampling.order) != MODELS:
        raise InputError("the published sampler is GM, LM and the OU after both; leave out ou.after and order.")
    models = published_kind(scans.priors(flags), flags.device)
    cases, out, rows = scans.cases(flags, config), Path(flags.out), []
    refuse_existing(out, flags.overwrite)
    for case in cases:
        for seed in flags.seeds:
            scan = case.measure(config, seed, flags.device)
            job = Job.from_config(config, seed)
            steps, seconds = curve(scan.problem, job, models)
            beside = reconstruct_problem(scan.problem, (None, None), job.ou, job.sampling, seed)
            images = [("OU", "", beside.start), ("GLDM", "", beside.image)]
            images += [(number, sigma, scan.finished(image)) for number, sigma, image in steps]
            for number, sigma, image in images:
                scores = evaluate(image, scan.reference)  # the results are final
                row = {name: scores[name] for name in ("psnr_common", "ssim_common", "nmse")}
                place = {**case.columns(scan.name), "seed": seed, "iteration": number, "sigma": sigma}
                rows.append({**place, **row, "seconds": ""})
            rows[-1]["seconds"] = seconds
    write_csv(out / "published.csv", rows, COLUMNS)
    write_markdown(out / "published.md", rows, COLUMNS)
    picture(out / "published.png", rows)
    write_record(out / "published.json", "benchmarks.published", config)
    print(markdown(rows, COLUMNS) + "\n\n" + "\n".join(str(out / f"published.{end}") for end in ("csv", "md", "png")))


if __name__ == "__main__":
    exit_on_input_error(main)
