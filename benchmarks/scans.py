"""The scans of a benchmark: the flags that choose them, and their simulated acquisitions."""

import argparse
import ast
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import ml_collections
import torch

from configs.ve.cpu_demo import get_config
from datasets import Acquisition, acquisition_from_file, embedded_acquisition, scan_files
from mri.masks import PATTERNS
from priors import Prior, load_prior
from utils.errors import InputError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that quality and ablation share; lists are separated by commas."""
    parser.add_argument("--data", action="append", default=[], help="scan files or folders; default: --phantoms")
    parser.add_argument("--key", help="variable in the files (for .npy: image or kspace)")
    parser.add_argument("--phantoms", type=numbers(int), default=[0], help="seeds of embedded phantoms (default 0)")
    parser.add_argument("--pattern", type=words, default=["uniform"], help=f"of {', '.join(PATTERNS)}")
    parser.add_argument("--acceleration", type=numbers(float), default=[4.0], help="R before the ACS (default 4)")
    parser.add_argument("--acs", type=int, help="central lines (default: the configuration's)")
    parser.add_argument("--size", type=int, help="pixels; crops a file's k-space to its centre")
    parser.add_argument("--frames", type=int, help="frames; an image file with fewer repeats its cycle")
    parser.add_argument("--seeds", type=numbers(int), default=[0], help="of mask, phase and sampler (default 0)")
    parser.add_argument("--checkpoint_global", help="GM, .safetensors or published .pth (default: shipped)")
    parser.add_argument("--checkpoint_local", help="LM, likewise")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where all but BART runs (cpu)")
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
    data.image_size, data.scan_size = flags.size or data.image_size, flags.size or data.scan_size
    data.frames, data.scan_frames = flags.frames or data.frames, flags.frames or data.scan_frames
    if flags.acs is not None:
        config.mask.acs = flags.acs
    return config


def _literal(value: str) -> object:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


@dataclass(frozen=True)
class Case:
    """A scan under one kind of mask: a group of rows in a table."""

    source: Path | int  # a file, or the seed of an embedded phantom
    pattern: str
    acceleration: float

    def columns(self, scan: str) -> dict[str, str]:
        """What identifies the case in a table."""
        return {"scan": scan, "pattern": self.pattern, "acceleration": f"{self.acceleration:g}"}

    def acquire(self, config: ml_collections.ConfigDict, seed: int, device: str = "cpu") -> Acquisition:
        """The acquisition with the mask and phase of `seed`; measured samples and mask on `device`.

        Raises
        ------
        InputError
            when the scan has no reference to score against.
        """
        config = config.copy_and_resolve_references()
        config.seed = config.mask.seed = seed
        config.mask.pattern, config.mask.acceleration = self.pattern, self.acceleration
        if isinstance(self.source, int):
            scan = embedded_acquisition(config, self.source)
        else:
            scan = acquisition_from_file(config, self.source)
        if scan.reference is None:
            raise InputError(
                f"{self.source} is under-sampled k-space and has no reference to score against; give fully sampled "
                "data, or reconstruct it with PCsampling_demo_svd.py."
            )
        return replace(scan, kspace=scan.kspace.to(device), mask=scan.mask.to(device))


def cases(flags: argparse.Namespace, config: ml_collections.ConfigDict) -> list[Case]:
    """Every combination of scan, pattern and acceleration, each tried once before any work begins.

    Raises
    ------
    InputError
        for the first that cannot be acquired.
    """
    paths = [path for text in flags.data for path in words(text)]
    sources: list[Path | int] = [file for path in paths for file in scan_files(path)] or flags.phantoms
    found = [Case(*choice) for choice in product(sources, flags.pattern, flags.acceleration)]
    if any(seed < 0 for seed in (*flags.phantoms, *flags.seeds)):
        raise InputError("--phantoms and --seeds are whole numbers of 0 or above.")
    if not found or not flags.seeds:
        raise InputError("nothing to measure: give at least one scan, pattern, acceleration and seed.")
    names = {case.acquire(config, seed).name for case in found for seed in flags.seeds}
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
