"""Network passes in every form, side by side: `python -m benchmarks.network [--networks published …] --out DIR`.

A case is a network, an image size, a batch, and a forward pass with or without the backward pass. The forms of a case
take turns in one process, and a ratio is the median over the rounds of ratios of neighbouring times, so that other load
on the machine slows both alike. The achieved rate is given as a share of the machine's rate for matrix products.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks import scans
from benchmarks.network_reference import plain_resampling
from benchmarks.scores import write_record
from benchmarks.speed import peak_mib, seconds_of
from configs.ve import SIAT_kdata_ncsnpp, cpu_demo, scenes
from models.context import Context, neighbours
from models.ncsnpp import NCSNpp
from models.precision import PRECISIONS, Score, compiled, in_precision
from op.dispatch import forced
from report.tables import markdown, write_csv, write_markdown
from training.objectives import CONTEXTS
from training.settings import ModelSettings
from utils.errors import InputError, exit_on_input_error
from utils.files import refuse_existing
from utils.memory import is_out_of_memory

Tensor = torch.Tensor

NETWORKS = {
    "published": SIAT_kdata_ncsnpp.get_config,
    "small": cpu_demo.get_config,
    "scenes": scenes.get_config,
}
MODES = ("forward", "training")  # training: with gradients of all weights, without the optimizer
COLUMNS = ("network", "size", "batch", "mode", "form", "precision", "seconds", "frames_per_s", "ratio",
           "ratio_to_plain", "peak_mib", "tflop_per_s", "share", "note")  # fmt: skip
LEAST_SECONDS = 0.02  # of a timing: shorter passes are repeated


@dataclass(frozen=True)
class Form:
    """One way to run the network."""

    operations: str  # GLDM_OPS
    compile: bool = False
    plain: bool = False  # resampling by reshape and pad, contiguous memory
    gpu_only: bool = False


FORMS = {
    "plain": Form("native", plain=True),
    "native": Form("native"),
    "triton": Form("triton", gpu_only=True),
    "compile": Form("native", compile=True),
    "compile_triton": Form("triton", compile=True, gpu_only=True),
}


@dataclass(frozen=True)
class Case:
    network: str
    size: int
    batch: int
    mode: str

    def __str__(self) -> str:
        return f"{self.network} {self.size}×{self.size} batch {self.batch} {self.mode}"


def build(name: str, size: int) -> NCSNpp:
    """The network of a configuration (GM, where there is context) with random weights."""
    config = NETWORKS[name]()
    config.model.image_size = size
    settings = ModelSettings.from_mapping(config.model)
    return random_network(settings, CONTEXTS["global"] if settings.temporal else None)


def random_network(settings: ModelSettings, context: Context | None) -> NCSNpp:
    """A network whose blocks' last layers are random too; a new network for training has zeros there."""
    fields = {name: value for name, value in asdict(settings).items() if name != "ema_rate"}
    channels = 2 + (context.channels if context else 0)
    return NCSNpp(in_channels=channels, num_channels=2, centered=True, init_scale=1.0, **fields)


def flops(case: Case) -> float:
    """Floating-point operations of convolutions and matrix products in a pass of the batch, counted, not run."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, forced("native"):
        network = build(case.network, case.size)
        x = torch.empty(case.batch, network.in_channels, case.size, case.size)
        run_pass(network, x, torch.empty(case.batch), neighbours(case.batch, True), case.mode)
    return counter.get_total_flops()


def run_pass(score: Score, x: Tensor, sigma: Tensor, near: Tensor, mode: str) -> None:
    if mode == "forward":
        with torch.no_grad():
            score(x, sigma, near)
    else:
        score(x, sigma, near).square().mean().backward()


def matrix_rate(precision: str, device: torch.device, repeats: int = 5) -> float:
    """Operations per second of a large matrix product in the number format of the convolutions."""
    size = 8192 if device.type == "cuda" else 512  # on a CPU without bfloat16 products 2048 takes minutes
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, size, size, device=device, dtype=kind)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        multiply = synchronised(lambda: a @ b, device)
        multiply()
        return 2 * size**3 / min(seconds_of(multiply, 1) for _ in range(repeats))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def synchronised(step: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """`step`, then wait for the device."""

    def run() -> None:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def peak_of(step: Callable[[], None], device: torch.device) -> float | str:
    """Most memory that `step` held beyond what was held before, MiB."""
    if device.type != "cuda":
        return peak_mib(step)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


class Contender:
    """A form in one precision, ready to run a case."""

    def __init__(self, name: str, precision: str, network: NCSNpp, case: Case, device: torch.device) -> None:
        self.name, self.precision, self.form, self.device = name, precision, FORMS[name], device
        self.seconds: list[float] = []
        layout = torch.contiguous_format if self.form.plain else torch.channels_last
        self.network = copy.deepcopy(network).to(device, memory_format=layout)
        self.network.requires_grad_(case.mode == "training").train(case.mode == "training")
        x = torch.randn(case.batch, network.in_channels, case.size, case.size, device=device).to(memory_format=layout)
        sigma, near = torch.ones(case.batch, device=device), neighbours(case.batch, True, device)
        score = self.network
        if self.form.compile:
            # the training step compiles without CUDA graphs, as training/loop.py does
            score = compiled(score, device) if case.mode == "forward" else torch.compile(score, dynamic=False)
        score = in_precision(score, precision, device)
        self.step = synchronised(lambda: run_pass(score, x, sigma, near, case.mode), device)
        self.repeats = 1

    def __call__(self) -> None:
        with self._as_form(), forced(self.form.operations):
            for _ in range(self.repeats):
                self.step()
                self.network.zero_grad(set_to_none=True)

    def prepare(self) -> float | str:
        """Compile and warm up; returns the memory of one pass, MiB."""
        for _ in range(3):  # a CUDA graph is recorded on the second pass and replayed from the third on
            self()
        peak = peak_of(self, self.device)
        self.repeats = max(1, round(LEAST_SECONDS / seconds_of(self, 3)))
        return peak

    def time(self) -> None:
        self.seconds.append(seconds_of(self, 1) / self.repeats)

    def _as_form(self) -> AbstractContextManager:
        return plain_resampling() if self.form.plain else nullcontext()


def measure(case: Case, forms: list[tuple[str, str]], device: torch.device, rounds: int, rates: dict) -> Iterator[dict]:
    """A row for each (form, precision) of `forms` in `case`."""
    network, operations = build(case.network, case.size), flops(case)
    place = {"network": case.network, "size": case.size, "batch": case.batch, "mode": case.mode}
    contenders, peaks, failures = [], {}, []
    for name, precision in forms:
        try:
            contender = Contender(name, precision, network, case, device)
            peaks[contender] = contender.prepare()
            contenders.append(contender)
        except RuntimeError as error:  # without memory, or without a C++ compiler on a CPU
            note = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
            failures.append({**place, "form": name, "precision": precision, "note": " ".join(note.split())[:120]})
    for _ in range(rounds):
        for contender in contenders:
            contender.time()
    for contender in contenders:
        seconds = statistics.median(contender.seconds)
        row = {**place, "form": contender.name, "precision": contender.precision, "seconds": seconds,
               "frames_per_s": case.batch / seconds, "peak_mib": peaks[contender],
               "tflop_per_s": operations / seconds / 1e12,
               "share": operations / seconds / rates[contender.precision]}  # fmt: skip
        for column, base in (("ratio", "native"), ("ratio_to_plain", "plain")):
            others = [other for other in contenders if (other.name, other.precision) == (base, "fp32")]
            if others:
                pairs = zip(others[0].seconds, contender.seconds, strict=True)
                row[column] = statistics.median(base_seconds / own for base_seconds, own in pairs)
        yield row
    yield from failures


# ----------------------------------------------------------------------------------------------- command


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.network", description=__doc__.splitlines()[0])
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--networks", type=scans.words, default=["published" if cuda else "small"],
                        help=f"of {', '.join(NETWORKS)} (64.8, 1.7 and 1.3 million parameters)")  # fmt: skip
    parser.add_argument("--size", type=scans.numbers(int), default=[96, 128, 192], help="pixels")
    parser.add_argument("--batch", type=scans.numbers(int), default=[1, 16], help="frames in a pass (default 1,16)")
    parser.add_argument("--mode", type=scans.words, default=["forward"], help=f"of {', '.join(MODES)}")
    parser.add_argument("--forms", type=scans.words, default=list(FORMS), help=f"of {', '.join(FORMS)}")
    parser.add_argument("--precision", type=scans.words, default=list(PRECISIONS), help=f"of {', '.join(PRECISIONS)}")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of timing, each of every form once (default 7)")
    parser.add_argument("--minutes", type=float, default=0, help="start no case after this time (default: no limit)")
    parser.add_argument("--out", help="folder for network.csv, .md and .json")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in --out")
    flags = parser.parse_args()
    for name, known in (("networks", NETWORKS), ("mode", MODES), ("forms", FORMS), ("precision", PRECISIONS)):
        if unknown := [value for value in getattr(flags, name) if value not in known]:
            raise InputError(f"--{name} {unknown[0]} is unknown; choose from {', '.join(known)}.")
        if not getattr(flags, name):
            raise InputError(f"--{name} is empty; choose from {', '.join(known)}.")
    if not flags.size or not flags.batch or flags.rounds < 1 or min(flags.batch) < 1:
        raise InputError("give at least one size, batches of at least one frame and at least one round.")
    if flags.device == "cuda" and not cuda:
        raise InputError("--device cuda, but PyTorch finds no GPU; give --device cpu.")
    for name, size in product(flags.networks, flags.size):
        model = NETWORKS[name]().model
        divisor = model.patch * 2 ** (len(model.ch_mult) - 1)
        if size < 1 or size % divisor:
            raise InputError(f"--size {size} does not fit the network {name}: give a multiple of {divisor}.")
    return flags


def run(flags: argparse.Namespace) -> tuple[list[dict], dict[str, float]]:
    """The rows of all cases, written after each of them, and the rates of matrix products."""
    device, begun = torch.device(flags.device), time.monotonic()
    rates = {precision: matrix_rate(precision, device) for precision in flags.precision}
    cases = [Case(*parts) for parts in product(flags.networks, flags.size, flags.batch, flags.mode)]
    forms = [pair for pair in product(flags.forms, flags.precision) if pair != ("plain", "bf16")]
    if device.type == "cpu" and (left := {name for name, _ in forms if FORMS[name].gpu_only}):
        print(f"{' and '.join(sorted(left))} left out: Triton kernels need a GPU")
        forms = [pair for pair in forms if pair[0] not in left]
    if not forms:
        raise InputError("no form is left to measure; choose other --forms or another --precision.")
    rows: list[dict] = []
    bar = tqdm(cases, unit="case")
    for case in bar:
        if flags.minutes and time.monotonic() - begun > flags.minutes * 60:
            tqdm.write(f"left out after {flags.minutes:g} minutes: {case} and the cases after it")
            break
        bar.set_description(str(case))
        torch.compiler.reset()  # each case compiles for its own shapes
        rows += measure(case, forms, device, flags.rounds, rates)
        if flags.out:
            write(Path(flags.out), rows)
    return rows, rates


def write(out: Path, rows: list[dict]) -> None:
    table = shown(rows)
    write_csv(out / "network.csv", table, COLUMNS)
    write_markdown(out / "network.md", table, COLUMNS)
    write_record(out / "network.json", "benchmarks.network", SIAT_kdata_ncsnpp.get_config())


def shown(rows: list[dict]) -> list[dict]:
    return [{name: _digits(row.get(name, "")) for name in COLUMNS} for row in rows]


def _digits(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def summary(rows: list[dict], rates: dict[str, float], device: str) -> str:
    """The matrix rates, and for each network and size the fastest form compared with the plain one."""
    place = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    listed = ", ".join(f"{precision} {rate / 1e12:.3g}" for precision, rate in rates.items())
    lines = [f"{place}; matrix products: {listed} TFLOP/s"]
    measured = [row for row in rows if "seconds" in row]
    for key in dict.fromkeys((row["network"], row["size"], row["mode"]) for row in measured):
        own = [row for row in measured if (row["network"], row["size"], row["mode"]) == key]
        best = max(own, key=lambda row: row["frames_per_s"])
        against = f", {best['ratio_to_plain']:.3g} times plain" if "ratio_to_plain" in best else ""
        lines.append(
            f"{key[0]} {key[1]}×{key[1]} {key[2]}: {best['form']} {best['precision']}, batch {best['batch']}: "
            f"{1000 / best['frames_per_s']:.4g} ms a frame{against}, {best['share']:.0%} of the matrix rate"
        )
    return "\n".join(lines)


def main() -> None:
    flags = parse_flags()
    if flags.out:
        refuse_existing(flags.out, flags.overwrite)
    rows, rates = run(flags)
    print(markdown(shown(rows), COLUMNS))
    print(summary(rows, rates, flags.device))


if __name__ == "__main__":
    exit_on_input_error(main)
