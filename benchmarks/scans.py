"""The scans of a benchmark: the flags that choose them, and their simulated acquisitions."""

import argparse
import ast
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import ml_collections
import torch

from configs.renamed import current_field
from configs.ve.cpu_demo import get_config
from models.prior import Prior, load_prior
from mri.fourier import fft2c
from mri.intake import acquire, scan_files
from mri.masks import PATTERNS, make_mask
from mri.phantom import make_phantom
from mri.scan import Reference, Scan, Source
from reconstruction.prepare import Problem, prepare
from run_lib import Job
from utils.errors import InputError

Tensor = torch.Tensor


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that quality and ablation share; lists are separated by commas."""
    parser.add_argument("--data", action="append", default=[], help="scan files or folders")
    parser.add_argument("--key", help="variable in the files (for .npy: image or kspace)")
    parser.add_argument("--hearts", type=numbers(int), default=[],
                        help="seeds of built-in heart phantoms, coils and noise (0 if no scan is given)")  # fmt: skip
    parser.add_argument("--phantoms", type=numbers(int), default=[],
                        help="seeds of simple phantoms, one coil without noise")  # fmt: skip
    parser.add_argument("--maps", help="coil maps: walsh, espirit or a file (default: chosen by the mask)")
    parser.add_argument("--pattern", type=words, default=["uniform"], help=f"sampling: {', '.join(PATTERNS)}")
    parser.add_argument("--acceleration", type=numbers(float), default=[4.0], help="R, without ACS lines (default 4)")
    parser.add_argument(
        "--noise", type=numbers(float), default=[0.0],
        help="noise to add, known to the methods: σ of a complex sample over the brightest pixel (default 0)",
    )  # fmt: skip
    parser.add_argument("--acs", type=int, help="central lines (default: the configuration's)")
    parser.add_argument("--size", type=int, help="pixels; crops a file's k-space to its centre")
    parser.add_argument("--frames", type=int, help="frames; images with fewer are repeated cyclically")
    parser.add_argument("--seeds", type=numbers(int), default=[0], help="seeds of mask, phase and sampler (default 0)")
    parser.add_argument("--checkpoint_global", help="GM, .safetensors or published .pth (default: shipped)")
    parser.add_argument("--checkpoint_local", help="LM, .safetensors or published .pth (default: shipped)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of everything but BART (default cpu)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE",
        help="any field of the configuration (configs/ve/cpu_demo.py), e.g. sampling.iterations=20; repeatable",
    )  # fmt: skip
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in --out")


def words(text: str) -> list[str]:
    """The items of a comma-separated list."""
    return [item.strip() for item in text.split(",") if item.strip()]


def numbers(kind: type):
    """A parser of comma-separated numbers."""

    def parse(text: str) -> list:
        return [kind(item) for item in words(text)]

    parse.__name__ = f"list of {kind.__name__}s"  # argparse names it when a value does not fit
    return parse


def configuration(flags: argparse.Namespace) -> ml_collections.ConfigDict:
    """The small configuration with the flags that every scan shares."""
    config = get_config()
    config.lock()  # so that --set cannot invent a field
    for assignment in flags.set:
        field, equals, value = assignment.partition("=")
        field = current_field(field, value)
        try:
            config.update_from_flattened_dict({field: _literal(value)})
        except (KeyError, TypeError, ValueError):
            equals = ""
        if not equals:
            raise InputError(f"--set {assignment}: give part.field=value of configs/default.py, of the field's type.")
    if config.mask.path:
        raise InputError("--set mask.path: the tables name their masks by --pattern and --acceleration; give those.")
    if flags.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no GPU here; leave it out.")
    data = config.data
    data.key = flags.key or data.key
    data.size, data.frames = flags.size or data.size, flags.frames or data.frames
    data.maps = flags.maps or data.maps
    if flags.acs is not None:
        config.mask.acs = flags.acs
    return config


def _literal(value: str) -> object:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


@dataclass(frozen=True)
class Measured:
    """A case as one seed measures it: the prepared scan, and the images to score against."""

    name: str
    problem: Problem
    reference: Tensor  # (frames, height, width), in the input's units

    def finished(self, image: Tensor) -> Tensor:
        """An image of the problem in the units of the reference."""
        return self.problem.finished(image)


@dataclass(frozen=True)
class Case:
    """A scan under one kind of mask: a group of rows in a table."""

    source: Path | int | str  # a file, the seed of an built-in heart phantom, or `phantom<seed>`
    pattern: str
    acceleration: float
    noise: float = 0.0  # to add: σ of a complex sample over the brightest pixel

    def columns(self, scan: str) -> dict[str, str]:
        """What identifies the case in a table."""
        return {"scan": scan, "pattern": self.pattern, "acceleration": f"{self.acceleration:g}",
                "noise": f"{self.noise:g}"}  # fmt: skip

    def acquire(self, config: ml_collections.ConfigDict, seed: int) -> tuple[Job, Scan, Reference]:
        """The scan with the mask and phase of `seed`, its reference, and the settings of this case.

        Raises
        ------
        InputError
            when the scan has no reference to score against.
        """
        config = config.copy_and_resolve_references()
        config.mask.pattern, config.mask.acceleration = self.pattern, self.acceleration
        job = Job.from_config(config, seed)
        scan, reference = simple_phantom(job, self.source) if isinstance(self.source, str) else acquire(
            job.intake, self.source)  # fmt: skip
        if reference is None:
            raise InputError(
                f"{self.source} is under-sampled k-space and has no reference to score against; give fully sampled "
                "data, or reconstruct it with PCsampling_demo_svd.py."
            )
        return job, self._with_noise(scan, reference, seed), reference

    def _with_noise(self, scan: Scan, reference: Reference, seed: int) -> Scan:
        if not self.noise:
            return scan
        if reference.image is None or scan.noise_samples is not None:
            raise InputError(f"--noise: {scan.name} has noise of its own; leave it out for this scan.")
        level = self.noise * reference.image.abs().max().item()
        generator = torch.Generator().manual_seed(seed)
        noise = torch.view_as_complex(torch.randn(*scan.kspace.shape, 2, generator=generator)) / 2**0.5
        kspace = torch.where(scan.mask[:, None], scan.kspace + level * noise, 0)
        return replace(scan, kspace=kspace, noise_std=level)

    def measure(self, config: ml_collections.ConfigDict, seed: int, device: str = "cpu") -> Measured:
        """The scan as `acquire` gives it, prepared on `device`; raises as `acquire` does."""
        job, scan, reference = self.acquire(config, seed)
        problem = prepare(scan, job.prepare, device)
        return Measured(scan.name, problem, problem.reference_image(reference))


def simple_phantom(job: Job, name: str) -> tuple[Scan, Reference]:
    """The simple phantom `phantom<seed>`: one coil without noise."""
    data, mask = job.intake.data, job.intake.mask
    image = make_phantom(data.frames or 16, data.size or job.intake.embedded_size, int(name.removeprefix("phantom")))
    sampled = make_mask(mask.pattern, tuple(image.shape), mask.acceleration, mask.acs, job.seed)
    return Scan.from_arrays(fft2c(image), sampled, source=Source(name)), Reference(image=image)


def cases(flags: argparse.Namespace, config: ml_collections.ConfigDict) -> list[Case]:
    """Every combination of scan, pattern and acceleration, each tried once before any work begins.

    Raises
    ------
    InputError
        for the first that cannot be measured.
    """
    paths = [path for text in flags.data for path in words(text)]
    if any(noise < 0 for noise in flags.noise):
        raise InputError("--noise is 0 or above.")
    if any(seed < 0 for seed in (*flags.hearts, *flags.phantoms, *flags.seeds)):
        raise InputError("--hearts, --phantoms and --seeds are whole numbers of 0 or above.")
    sources: list[Path | int | str] = [file for path in paths for file in scan_files(path)]
    sources += [*flags.hearts, *(f"phantom{seed}" for seed in flags.phantoms)]
    sources = sources or [0]
    found = [Case(*choice) for choice in product(sources, flags.pattern, flags.acceleration, flags.noise)]
    if not found or not flags.seeds:
        raise InputError("nothing to measure: give at least one scan, pattern, acceleration and seed.")
    names = {case.measure(config, seed).name for case in found for seed in flags.seeds}
    if len(names) < len(sources):
        raise InputError("two scans have the same name, which the table could not tell apart; rename a file.")
    return found


def priors(flags: argparse.Namespace) -> tuple[Prior | None, Prior | None]:
    """GM and LM of the flags; None stands for the shipped one."""
    paths = (flags.checkpoint_global, flags.checkpoint_local)
    if any(paths) and not all(paths):
        raise InputError("give --checkpoint_global and --checkpoint_local together: GM and LM of one training.")
    first, second = (load_prior(path, flags.device) if path else None for path in paths)
    return first, second
