"""Reconstruct one scan: `python PCsampling_demo_svd.py [--data scan.mat --mask mask.mat --out folder]`.

Without flags it reconstructs the embedded phantom with the shipped checkpoints.
"""

from pathlib import Path

import torch
from absl import app, flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

import run_lib
from datasets import Acquisition, acquisition_from_file, embedded_acquisition
from mri.io import load_scan
from sampling import SHIPPED
from utils.errors import InputError, exit_on_input_error
from utils.files import numbered_folder, refuse_existing

FLAGS = flags.FLAGS

HERE = Path(__file__).parent

config_flags.DEFINE_config_file(
    "config", str(HERE / "configs/ve/cpu_demo.py"), "Configuration; any field: --config.<part>.<field>=value."
)
flags.DEFINE_string("data", None, "Scan file: images or k-space; default: the embedded phantom.")
flags.DEFINE_string("key", None, "Variable in the file (for .npy: image or kspace).")
flags.DEFINE_enum("kind", None, ["image", "kspace"], "What the variable holds; default: found.")
flags.DEFINE_integer("frames_axis", None, "Axis of time in the file, e.g. -1; default: found.")
flags.DEFINE_enum("dc", None, ["center", "corner"], "Where zero frequency lies in k-space files.")
flags.DEFINE_integer(
    "frames", None, "Frames to use; more than an image file holds: its cycle is repeated.", lower_bound=2
)
flags.DEFINE_integer(
    "size", None, "Pixels to use: crops k-space to the centre (size of the embedded phantom).", lower_bound=2
)
flags.DEFINE_enum("phase", None, ["smooth", "none"], "Phase given to magnitude images (default smooth).")
flags.DEFINE_string("mask", None, "Mask file; default: found from the zeros of k-space, or generated.")
flags.DEFINE_enum("pattern", None, ["uniform", "random", "lattice", "radial"], "Mask to generate.")
flags.DEFINE_float("acceleration", None, "R of the generated mask, before the ACS.")
flags.DEFINE_integer("acs", None, "Central lines of the generated mask.")
flags.DEFINE_string("reference", None, "Fully sampled images to score against, after the reconstruction.")
flags.DEFINE_boolean("no_reference", False, "Do not score, even when the data are fully sampled.")
flags.DEFINE_string("checkpoint_global", None, "GM: .safetensors or published .pth; default: shipped.")
flags.DEFINE_string("checkpoint_local", None, "LM, likewise.")
flags.DEFINE_string("sampler", None, "Sampler; default: the configuration's.")
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
    "pattern": "mask.pattern",
    "acceleration": "mask.acceleration",
    "acs": "mask.acs",
    "sampler": "sampling.sampler",
}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]}")
    exit_on_input_error(run)


def run() -> None:
    config = configuration()
    scan = embedded_acquisition(config, 0) if FLAGS.data is None else acquisition_from_file(config, FLAGS.data)
    reference = choose_reference(config, scan)
    print(scan)
    priors = run_lib.load_priors(
        config,
        FLAGS.checkpoint_global or SHIPPED["global"],
        FLAGS.checkpoint_local or SHIPPED["local"],
    )
    if FLAGS.out:
        refuse_existing(FLAGS.out, FLAGS.overwrite)
    folder = Path(FLAGS.out) if FLAGS.out else lambda: numbered_folder("result")
    out, rows = run_lib.reconstruct_scan(scan, config, priors, folder, FLAGS.seed, reference)
    print(run_lib.report(out, rows))


def configuration() -> ConfigDict:
    """The configuration with the shorthand flags that were given."""
    config = FLAGS.config
    if FLAGS.mask and FLAGS.pattern:
        raise InputError("give --mask (a file) or --pattern (a mask to generate), not both.")
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


def choose_reference(config: ConfigDict, scan: Acquisition) -> torch.Tensor | None:
    """The images to score against: --reference, else the fully sampled data, else none."""
    if FLAGS.no_reference:
        if FLAGS.reference:
            raise InputError("give --reference or --no_reference, not both.")
        return None
    if not FLAGS.reference:
        return scan.reference
    reference = load_scan(FLAGS.reference, kind="image", frames_axis=config.data.frames_axis).data
    if reference.shape != scan.kspace.shape:
        raise InputError(
            f"{FLAGS.reference}: shape {tuple(reference.shape)} is not the scan's {tuple(scan.kspace.shape)}; "
            "give fully sampled images of the same frames and size."
        )
    return reference


if __name__ == "__main__":
    app.run(main)
