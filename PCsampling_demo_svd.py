"""Reconstruct one scan: `python PCsampling_demo_svd.py [--data scan.mat --mask mask.mat --out folder]`.

Without flags it reconstructs the built-in heart phantom, eight coils with noise, with the shipped checkpoints. A folder
or pattern of scans (`--data "scans/*.mat" --out folder`) is shared by the processes of `torchrun --nproc_per_node=N`.
"""

import utils.interrupt  # isort: skip  # noqa: F401, before what takes seconds to import
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from absl import flags

import run_lib
from configs.flags import define_config, run_command
from mri.formats.export import FORMATS, parse_matrix
from mri.formats.stored import TIMES, SeveralSlices
from mri.intake import acquire, is_several_scans, reference_from_file, scan_files
from mri.masks import PATTERNS
from mri.scan import Reference, Scan
from report.results import summary
from run_lib import Job, Priors
from utils.errors import InputError, exit_on_input_error
from utils.files import numbered_folder, refuse_existing, refuse_unwritable

FLAGS = flags.FLAGS

define_config(Path(__file__).parent / "configs/ve/cpu_demo.py")
flags.DEFINE_string(
    "data", None, "Scan file (images or k-space, docs/formats.md), a DICOM folder, or a folder or pattern of scans; "
    "default: the built-in heart phantom."
)
flags.DEFINE_string("key", None, "Variable in the file (for .npy: image or kspace; for DICOM: series number).")
flags.DEFINE_enum("kind", None, ["image", "kspace"], "What the variable holds; default: detected.")
flags.DEFINE_integer("frames_axis", None, "Axis of time in the file, e.g. -1; default: detected.")
flags.DEFINE_integer("coils_axis", None, "Axis of the coils in the file, e.g. 1; default: detected.")
flags.DEFINE_enum("time", None, TIMES, "Dimension or counter used as time; default: detected.")
flags.DEFINE_integer("slice", None, "Slice to use, counting from 0, of a file with several.", lower_bound=0)
flags.DEFINE_integer("set", None, "Set to use, such as a velocity encoding, of a file with several.", lower_bound=0)
flags.DEFINE_string(
    "maps", None, "Coil maps: walsh, espirit, or a file (coils, height, width); default: chosen by the mask."
)
flags.DEFINE_integer(
    "virtual_coils", None, "Virtual coils; default: the fewest that hold 99 % of the signal energy, at most 16.",
    lower_bound=1, upper_bound=128
)
flags.DEFINE_float(
    "noise_std", None, "Standard deviation of a complex k-space sample of one coil, in the units of the file; default: "
    "from noise samples, else estimated (images: 0).", lower_bound=0
)
flags.DEFINE_enum("dc", None, ["center", "corner"], "Where zero frequency lies in k-space files.")
flags.DEFINE_integer(
    "frames", None, "Frames to use. Image series with fewer frames are repeated cyclically; k-space is not.",
    lower_bound=2, upper_bound=1024
)
flags.DEFINE_integer(
    "size", None, "Matrix size in pixels, even: crops k-space to its centre. Without --data: that of the phantom.",
    lower_bound=2, upper_bound=4096
)
flags.DEFINE_enum("phase", None, ["smooth", "none"], "Phase given to magnitude images (default smooth).")
flags.DEFINE_string("mask", None, "Mask file; default: detected from the zeros of k-space, or generated.")
flags.DEFINE_string("mask_key", None, "Variable in the mask file; default: detected.")
flags.DEFINE_enum("pattern", None, PATTERNS, "Sampling pattern of the generated mask.")
flags.DEFINE_float("acceleration", None, "Nominal acceleration of the generated mask, not counting the ACS lines.")
flags.DEFINE_integer("acs", None, "Fully sampled central (ACS) lines of the generated mask.")
flags.DEFINE_string("reference", None, "Fully sampled images to score against, after the reconstruction.")
flags.DEFINE_string("reference_key", None, "Variable in the file of --reference; default: detected.")
flags.DEFINE_boolean("no_reference", False, "Do not score, even when the data are fully sampled.")
flags.DEFINE_string("checkpoint_global", None, "GM: .safetensors or published .pth; default: shipped.")
flags.DEFINE_string("checkpoint_local", None, "LM: .safetensors or published .pth; default: shipped.")
flags.DEFINE_string("sampler", None, "cascade or published; default: from the configuration (cascade).")
flags.DEFINE_integer(
    "seed", 0, "Random seed of held-out samples, generated masks, simulated phase and sampler noise.",
    lower_bound=0, upper_bound=2**32 - 1
)
flags.DEFINE_string("out", None, "Folder for the results; default: the next numbered one under result/.")
flags.DEFINE_list("write", [], "Additional output formats for viewers, comma-separated: nifti, dicom, cfl.")
flags.DEFINE_string("matrix", "", "Matrix to interpolate the --write files to: 256, or rows x columns as 256x192.")
flags.DEFINE_boolean(
    "keep_patient", False, "Copy patient and study of a DICOM source to --write dicom; default: left empty."
)
flags.DEFINE_boolean("overwrite", False, "Replace the results in --out.")

# flags that are shorthands for a field of the configuration
SHORTHANDS = {
    "key": "data.key",
    "kind": "data.kind",
    "frames_axis": "data.frames_axis",
    "coils_axis": "data.coils_axis",
    "time": "data.time",
    "slice": "data.slice",
    "set": "data.set",
    "maps": "data.maps",
    "virtual_coils": "data.virtual_coils",
    "noise_std": "data.noise_std",
    "frames": "data.frames",
    "size": "data.size",
    "dc": "data.dc",
    "phase": "data.phase",
    "mask": "mask.path",
    "mask_key": "mask.key",
    "pattern": "mask.pattern",
    "acceleration": "mask.acceleration",
    "acs": "mask.acs",
    "sampler": "sampling.sampler",
}


def main(argv: list[str]) -> None:
    exit_on_input_error(run)


def run() -> None:
    job = Job.from_config(configuration(), FLAGS.seed)
    asked = any(FLAGS[name].value is not None for name in ("pattern", "acceleration", "acs"))
    job = replace(
        job, intake=replace(job.intake, own_mask=not asked), write=tuple(FLAGS.write), keep_patient=FLAGS.keep_patient,
        matrix=parse_matrix(FLAGS.matrix),
    )
    if unknown := set(FLAGS.write) - set(FORMATS):
        raise InputError(f"--write {', '.join(sorted(unknown))} is unknown; choose from {', '.join(FORMATS)}.")
    if FLAGS.matrix and not FLAGS.write:
        raise InputError("--matrix needs --write; add a format, e.g. --write nifti.")
    if FLAGS.keep_patient and "dicom" not in FLAGS.write:
        raise InputError("--keep_patient needs --write dicom; add it.")
    several = FLAGS.data is not None and is_several_scans(Path(FLAGS.data))
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not (several and FLAGS.out):
        raise InputError("several processes of torchrun need --data with a folder or pattern of scans, and --out.")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    if FLAGS.out:
        if Path(FLAGS.out).is_file():
            raise InputError(f"--out {FLAGS.out} is a file; name a folder for the results.")
        if not several:
            refuse_existing(FLAGS.out, FLAGS.overwrite)
    refuse_unwritable(FLAGS.out or "result")
    priors = run_lib.load_priors(job.sampling, FLAGS.checkpoint_global, FLAGS.checkpoint_local)
    if several:
        reconstruct_several(job, priors)
    else:
        reconstruct_one(job, priors)


def reconstruct_one(job: Job, priors: Priors) -> None:
    try:
        scan, reference = acquire(job.intake, 0 if FLAGS.data is None else Path(FLAGS.data))
    except SeveralSlices as error:
        reconstruct_slices(job, priors, error)
        return
    refuse_mask_flags(scan, reference)
    reference = choose_reference(job, scan, reference)
    print(scan)
    folder = Path(FLAGS.out) if FLAGS.out else lambda: numbered_folder("result")
    out, rows, notes = run_lib.reconstruct_scan(scan, job, priors, folder, reference)
    print(summary(out, rows, [*str(scan).splitlines(), *notes]))


def reconstruct_slices(job: Job, priors: Priors, several: SeveralSlices) -> None:
    """Every slice of a file into a folder of its own; one that cannot be used is left out."""
    if FLAGS.reference:
        raise InputError(f"--reference needs a single slice; {several}")
    out = Path(FLAGS.out) if FLAGS.out else numbered_folder("result")
    print(f"{FLAGS.data} has {len(several.slices)} slices; each gets its own folder in {out} (--slice selects one)")
    failures = 0
    for index in several.slices:
        one = job.of_slice(index)
        try:
            scan, reference = acquire(one.intake, Path(FLAGS.data))
            refuse_mask_flags(scan, reference)
            print(scan)
            kept = None if FLAGS.no_reference else reference
            folder, rows, notes = run_lib.reconstruct_scan(scan, one, priors, out / f"slice_{index:02d}", kept)
            print(summary(folder, rows, [*str(scan).splitlines(), *notes]))
        except InputError as error:
            failures += 1
            print(f"slice {index} skipped: {error}", file=sys.stderr)
    if failures:
        raise InputError(f"{failures} of {len(several.slices)} slices skipped; see the errors above.")


def reconstruct_several(job: Job, priors: Priors) -> None:
    if FLAGS.reference:
        raise InputError("--reference needs a single scan; scans of a folder are scored against their own references.")
    sources = scan_files(FLAGS.data, (job.intake.mask.path, job.intake.maps))
    out = Path(FLAGS.out) if FLAGS.out else numbered_folder("result")
    print(f"{len(sources)} scans into {out}; if interrupted, continue with the same command and --out {out}")
    run_lib.reconstruct_folder(
        sources, job, priors, out, overwrite=FLAGS.overwrite, score=not FLAGS.no_reference, check=refuse_mask_flags
    )


def configuration():
    """The configuration with the shorthand flags that were given."""
    config = FLAGS.config
    if FLAGS.mask and FLAGS.pattern:
        raise InputError("give --mask (a file) or --pattern (a mask to generate), not both.")
    owners = {
        "data": ("key", "kind", "frames_axis", "coils_axis", "time", "slice", "set", "dc", "phase",
                 "noise_std"),
        "mask": ("mask_key",),
        "reference": ("reference_key",),
    }
    for owner, owned in owners.items():
        useless = [f"--{name}" for name in owned if FLAGS[name].value is not None]
        if FLAGS[owner].value is None and useless:
            raise InputError(f"{', '.join(useless)} cannot be used without --{owner}; add it, or omit them.")
    if FLAGS.mask and (FLAGS.acceleration is not None or FLAGS.acs is not None):
        raise InputError(f"--mask {FLAGS.mask} defines the sampling; omit --acceleration and --acs.")
    for flag, field in SHORTHANDS.items():
        if FLAGS[flag].value is not None:
            config.update_from_flattened_dict({field: FLAGS[flag].value})
    return config


def refuse_mask_flags(scan: Scan, reference: Reference | None) -> None:
    """Flags of a mask to generate mean nothing for k-space that is under-sampled already."""
    given = [f"--{name}" for name in ("pattern", "acceleration", "acs") if FLAGS[name].value is not None]
    if "prospectively under-sampled" in scan.source.found and given:
        raise InputError(
            f"{scan.name} is already under-sampled, so {', '.join(given)} cannot be used; omit them (the mask "
            "is detected from the zeros), or give --mask."
        )


def choose_reference(job: Job, scan: Scan, reference: Reference | None) -> Reference | None:
    """What to score against: --reference, else the fully sampled data, else nothing."""
    if FLAGS.no_reference:
        if FLAGS.reference:
            raise InputError("give --reference or --no_reference, not both.")
        return None
    if not FLAGS.reference:
        return reference
    found = reference_from_file(job.intake, FLAGS.reference, FLAGS.reference_key, scan)
    print(f"reference: {found.found}")
    return found


if __name__ == "__main__":
    run_command(main)
