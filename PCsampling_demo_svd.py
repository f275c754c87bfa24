"""Reconstruct one scan: `python PCsampling_demo_svd.py [--data scan.mat --mask mask.mat --out folder]`.

Without flags it reconstructs the embedded phantom with the shipped checkpoints. A folder or pattern of scans
(`--data "scans/*.mat" --out folder`) is shared by the processes of `torchrun --nproc_per_node=N`.
"""

import os
from pathlib import Path

import torch
from absl import flags
from ml_collections import ConfigDict

import run_lib
from datasets import (
    Acquisition,
    acquisition_from_file,
    embedded_acquisition,
    is_pattern,
    reference_from_file,
    scan_files,
)
from many_scans import reconstruct_many
from mri.masks import PATTERNS
from priors import Prior
from utils.errors import InputError, define_config, exit_on_input_error, run_command
from utils.files import numbered_folder, refuse_existing, refuse_unwritable

FLAGS = flags.FLAGS

define_config(Path(__file__).parent / "configs/ve/cpu_demo.py")
flags.DEFINE_string(
    "data", None, "Scan file (images or k-space), or a folder or pattern of scans; default: the embedded phantom."
)
flags.DEFINE_string("key", None, "Variable in the file (for .npy: image or kspace).")
flags.DEFINE_enum("kind", None, ["image", "kspace"], "What the variable holds; default: found.")
flags.DEFINE_integer("frames_axis", None, "Axis of time in the file, e.g. -1; default: found.")
flags.DEFINE_enum("dc", None, ["center", "corner"], "Where zero frequency lies in k-space files.")
flags.DEFINE_integer(
    "frames", None, "Frames to use; more than an image file holds: its cycle is repeated.",
    lower_bound=2, upper_bound=1024
)
flags.DEFINE_integer(
    "size", None, "Pixels to use: crops k-space to the centre (size of the embedded phantom).",
    lower_bound=2, upper_bound=4096
)
flags.DEFINE_enum("phase", None, ["smooth", "none"], "Phase given to magnitude images (default smooth).")
flags.DEFINE_string("mask", None, "Mask file; default: found from the zeros of k-space, or generated.")
flags.DEFINE_string("mask_key", None, "Variable in the mask file; default: found.")
flags.DEFINE_enum("pattern", None, PATTERNS, "Mask to generate.")
flags.DEFINE_float("acceleration", None, "R of the generated mask, before the ACS.")
flags.DEFINE_integer("acs", None, "Central lines of the generated mask.")
flags.DEFINE_string("reference", None, "Fully sampled images to score against, after the reconstruction.")
flags.DEFINE_string("reference_key", None, "Variable in the file of --reference; default: found.")
flags.DEFINE_boolean("no_reference", False, "Do not score, even when the data are fully sampled.")
flags.DEFINE_string("checkpoint_global", None, "GM: .safetensors or published .pth; default: shipped.")
flags.DEFINE_string("checkpoint_local", None, "LM, likewise.")
flags.DEFINE_string("sampler", None, "Sampler; default: the configuration's.")
flags.DEFINE_float(
    "adapt", None, "Seconds to adapt the priors to the scan by what it measured, and no reference.", lower_bound=0
)
flags.DEFINE_integer(
    "seed", 0, "Of the sampler's noise and of generated masks and phases.", lower_bound=0, upper_bound=2**32 - 1
)
flags.DEFINE_string("out", None, "Folder for the results; default: the next numbered one under result/.")
flags.DEFINE_boolean("overwrite", False, "Replace the results in --out.")

# flags that are shorthands for a field of the configuration
SHORTHANDS = {
    "key": "data.key",
    "kind": "data.kind",
    "frames_axis": "data.frames_axis",
    "dc": "data.dc",
    "phase": "data.phase",
    "mask": "mask.path",
    "mask_key": "mask.key",
    "pattern": "mask.pattern",
    "acceleration": "mask.acceleration",
    "acs": "mask.acs",
    "sampler": "sampling.sampler",
    "adapt": "sampling.adapt",
}


def main(argv: list[str]) -> None:
    exit_on_input_error(run)


def run() -> None:
    config = configuration()
    several = FLAGS.data is not None and (Path(FLAGS.data).is_dir() or is_pattern(Path(FLAGS.data)))
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not (several and FLAGS.out):
        raise InputError("several processes share a folder or a pattern of scans: give --data and --out for them.")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    if FLAGS.out:
        if Path(FLAGS.out).is_file():
            raise InputError(f"--out {FLAGS.out} is a file; name a folder for the results.")
        if not several:
            refuse_existing(FLAGS.out, FLAGS.overwrite)
    refuse_unwritable(FLAGS.out or "result")
    priors = run_lib.load_priors(config, FLAGS.checkpoint_global, FLAGS.checkpoint_local)
    if several:
        reconstruct_several(config, priors)
    else:
        reconstruct_one(config, priors)


def reconstruct_one(config: ConfigDict, priors: tuple[Prior, Prior]) -> None:
    scan = embedded_acquisition(config, 0) if FLAGS.data is None else acquisition_from_file(config, FLAGS.data)
    refuse_mask_flags(scan)
    reference = choose_reference(config, scan)
    print(scan)
    folder = Path(FLAGS.out) if FLAGS.out else lambda: numbered_folder("result")
    out, rows = run_lib.reconstruct_scan(scan, config, priors, folder, FLAGS.seed, reference)
    print(run_lib.report(out, rows))


def reconstruct_several(config: ConfigDict, priors: tuple[Prior, Prior]) -> None:
    if FLAGS.reference:
        raise InputError("--reference belongs to one scan; of a folder only scans that are fully sampled are scored.")
    sources = scan_files(FLAGS.data)
    out = Path(FLAGS.out) if FLAGS.out else numbered_folder("result")
    print(f"{len(sources)} scans into {out}; the same command with --out {out} goes on where it stops")
    reconstruct_many(
        sources, config, priors, out, FLAGS.seed, overwrite=FLAGS.overwrite, score=not FLAGS.no_reference,
        check=refuse_mask_flags,
    )  # fmt: skip


def configuration() -> ConfigDict:
    """The configuration with the shorthand flags that were given."""
    config = FLAGS.config
    if FLAGS.mask and FLAGS.pattern:
        raise InputError("give --mask (a file) or --pattern (a mask to generate), not both.")
    for owner, owned in {"data": ("key", "kind", "frames_axis", "dc", "phase"), "mask": ("mask_key",),
                         "reference": ("reference_key",)}.items():  # fmt: skip
        useless = [f"--{name}" for name in owned if FLAGS[name].value is not None]
        if FLAGS[owner].value is None and useless:
            raise InputError(f"{', '.join(useless)} cannot apply without --{owner}; give it too, or leave them out.")
    if FLAGS.mask and (FLAGS.acceleration is not None or FLAGS.acs is not None):
        raise InputError(f"--mask {FLAGS.mask} says what was sampled; leave out --acceleration and --acs.")
    for flag, field in SHORTHANDS.items():
        if FLAGS[flag].value is not None:
            config.update_from_flattened_dict({field: FLAGS[flag].value})
    config.seed = config.mask.seed = FLAGS.seed
    if FLAGS.data is None:
        config.data.frames = FLAGS.frames or config.data.frames
        config.data.image_size = FLAGS.size or config.data.image_size
    else:
        config.data.scan_frames = FLAGS.frames or config.data.scan_frames
        config.data.scan_size = FLAGS.size or config.data.scan_size
    return config


def refuse_mask_flags(scan: Acquisition) -> None:
    """Flags of a mask to generate mean nothing for k-space that is under-sampled already."""
    given = [f"--{name}" for name in ("pattern", "acceleration", "acs") if FLAGS[name].value is not None]
    if scan.reference is None and given:
        raise InputError(
            f"{scan.name} is under-sampled already, so {', '.join(given)} cannot apply; leave them out (the mask "
            "is found from the zeros), or give --mask."
        )


def choose_reference(config: ConfigDict, scan: Acquisition) -> torch.Tensor | None:
    """The images to score against: --reference, else the fully sampled data, else none."""
    if FLAGS.no_reference:
        if FLAGS.reference:
            raise InputError("give --reference or --no_reference, not both.")
        return None
    if not FLAGS.reference:
        return scan.reference
    return reference_from_file(config, FLAGS.reference, FLAGS.reference_key, scan)


if __name__ == "__main__":
    run_command(main)
