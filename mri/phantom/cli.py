"""The command `python -m mri.phantom`: write a phantom, or a multi-coil scan of one, to a file."""

import argparse
import math
from pathlib import Path

import numpy as np

from mri.formats.write import save_array
from mri.phantom.scan import SCENES, PhantomScan, simulate_scan
from utils.arguments import LARGEST_SEED, integer_between
from utils.errors import InputError
from utils.files import atomic_path, refuse_existing

OBJECT = 0.05  # of the largest magnitude; brighter pixels belong to the object


def main() -> None:
    """Write one phantom to a file."""
    flags = _parse()
    if flags.coils is None and flags.noise is None:
        image = SCENES[flags.scene](flags.frames, flags.size, flags.seed).permute(1, 2, 0).numpy()
        save_array(flags.out, image, key="image", overwrite=flags.overwrite)
        print(f"wrote {flags.out}: image {image.shape} (row, column, frame) {image.dtype}")
        return
    if Path(flags.out).suffix.lower() != ".npz":
        raise InputError(f"{flags.out} cannot hold a scan with coils or noise; name a file that ends in .npz.")
    refuse_existing(flags.out, flags.overwrite)
    scan = simulate_scan(
        flags.scene, flags.frames, flags.size, flags.seed, flags.coils or 1, 0.0 if flags.noise is None else flags.noise
    )
    arrays = {name: getattr(scan, name).numpy() for name in ("kspace", "noise", "maps", "image")}
    with atomic_path(flags.out) as temporary:
        np.savez(temporary, **arrays)
    print(f"wrote {flags.out}:")
    axes = ("frame, coil, ky, kx", "coil, sample", "coil, row, column", "frame, row, column")
    for (name, array), axis in zip(arrays.items(), axes, strict=True):
        print(f"  {name} {array.shape} ({axis}) {array.dtype}")
    print(_signal_to_noise(scan, flags.noise or 0.0))


def _signal_to_noise(scan: PhantomScan, noise: float) -> str:
    """SNR of a fully sampled pixel, as one line of text."""
    if noise == 0:
        return "no noise"
    magnitude = scan.image.abs()
    mean = float(magnitude[magnitude > OBJECT * magnitude.max()].mean())
    return f"SNR {float(magnitude.max()) / noise:.4g} (brightest pixel), {mean / noise:.4g} (mean over the object)"


def _level(text: str) -> float:
    """An argparse type: a noise level from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text}")
    return value


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mri.phantom", description="Draw a beating-heart phantom and write it to a file."
    )
    frames, size, seed = integer_between(2, 1024), integer_between(64, 4096), integer_between(0, LARGEST_SEED)
    parser.add_argument("--scene", choices=tuple(SCENES), default="simple", help="simple (default) or heart (harder)")
    parser.add_argument("--frames", type=frames, default=16, help="frames of one heartbeat, at least 2")
    parser.add_argument("--size", type=size, default=192, help="matrix size, at least 64; even for --scene simple")
    parser.add_argument("--seed", type=seed, default=0, help="random seed: another anatomy for each")
    parser.add_argument("--coils", type=integer_between(1, 64), help="number of receive coils; writes k-space")
    parser.add_argument("--noise", type=_level, help="noise σ over the brightest pixel; writes k-space")
    parser.add_argument("--out", required=True, help="file to write: .mat, .npy, .npz or .h5; .npz for k-space")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser.parse_args()
