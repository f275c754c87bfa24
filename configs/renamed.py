"""Fields and flags of earlier versions: their new names, or why they went.

A renamed field is accepted with one warning, on the command line and in checkpoints; a removed one is refused with the
sentence here, or, in a checkpoint, dropped.
"""

import sys
from typing import Any

from utils.errors import InputError

RENAMED = {
    "data.scan_frames": "data.frames",
    "data.scan_size": "data.size",
    "data.image_size": "model.image_size",
    "mask.seed": "seed",
}

_COMPLETION = (
    "priors trained on the error after the optimization unit gained less than priors of moving scenes; set "
    "training.objective=scenes (old checkpoints can still be loaded)"
)
_CONTEXT = "GM always sees the temporal mean and neighbours, LM the nearest neighbours"
_NETWORK = "NCSN++ is built as published; other checkpoints are still read"
_CONSTANT = "now fixed at its former default"
_ADAPT = (
    "adapting the priors to one scan never improved the benchmarks; to continue their training on a scan, use "
    "--config=configs/ve/scenes.py and set data.path and training.init (docs/training.md)"
)
_FEW_STEPS = "these priors were always rejected in the few-step cascade; k-space priors need --sampler published"

REMOVED = {
    "data.num_channels": "networks see real and imaginary parts, always",
    "data.centered": "our networks use k-space unchanged; published checkpoints carry their own convention",
    **{f"model.{name}": _NETWORK for name in (
        "num_scales", "fir_kernel", "fourier_scale", "embedding_type", "resblock_type", "progressive",
        "progressive_input", "progressive_combine", "skip_rescale", "scale_by_sigma", "conditional", "nonlinearity",
        "normalization", "init_scale")},
    **{f"context.{model}.{name}": _CONTEXT
       for model in ("global", "local") for name in ("mean", "merge", "own", "near")},
    **{f"training.{name}": _CONSTANT for name in (
        "max_gain", "max_shift", "sigma_jitter", "error_gain", "partial_share", "noisy_share")},
    **{f"training.{name}": _COMPLETION for name in ("ou", "scenes", "steps", "splits", "hidings")},
    "training.image_freq": "images are logged with every snapshot (training.snapshot_freq)",
    **{f"optim.{name}": _CONSTANT for name in ("beta1", "eps", "grad_clip")},
    **{f"sampling.{name}": _ADAPT for name in ("adapt", "adapt_steps", "adapt_margin")},
    **{f"sampling.{name}": _FEW_STEPS for name in ("steps", "trust_levels", "trust_margin")},
    **{f"sampling.{name}": "the published sampler uses the range of noise levels that the networks were trained for"
       for name in ("sigma_max", "sigma_min")},
    "sampling.samples": "the likely error is part of every result of the cascade now, at no cost",
    "sampling.churn": "fresh noise in the cascade never helped",
    "sampling.error_gain": "it is a constant of the calibration now, 1.25",
    "sampling.context_margin": "it is a constant of the code now",
    "sampling.noise_std": "not supported by the shipped priors; give the noise of the scan as --noise_std",
    "ou.sweeps": "one subspace iteration per step, as before",
    "ou.hard": "hard thresholding in llr was worse in every table",
    "ou.motion_patch": "patches of several sizes are used in turn; ou.motion_patches names them",
    "ou.motion_taken": "the last threshold follows from the noise level; ou.motion_steps sets the number of steps",
    "ou.motion_first": "it follows from the sampled fraction",
    "ou.motion_last": "it follows from the noise level of the scan; give --noise_std",
    "ou.noise_floor": "it is a constant of the optimization unit now, 0.0004",
    **{f"ou.{name}": _CONSTANT for name in ("hankel_iterations", "patches")},
    **{f"sampling.{name}": _CONSTANT for name in ("snr", "copies")},
    **{f"training.{name}": _CONSTANT for name in ("log_freq", "keep_snapshots")},
    **{f"weight.{name}": _CONSTANT for name in ("power", "data_std")},
    **{f"context.{name}": _CONSTANT for name in ("global_offsets", "local_offsets", "global.offsets", "local.offsets")},
    "pseudo_reference.local_window": _CONSTANT,
    "ou.anneal": "it is a constant of the optimization unit now, 4",
}  # fmt: skip

REMOVED_VALUES = {
    ("ou.operator", "both"): "hankel after llr undid what llr gained; choose llr, hankel or motion",
    **{("training.objective", name): _COMPLETION for name in ("synthetic", "self_supervised", "measured")},
}

REMOVED_FLAGS = {"adapt": _ADAPT}


def current_arguments(arguments: list[str]) -> list[str]:
    """Command-line arguments with renamed fields under their new names.

    Raises
    ------
    InputError
        for a field, value or flag that was removed, with the reason.
    """
    found, skip = [], False
    for number, argument in enumerate(arguments):
        if skip:
            skip = False
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        plain_name = name.removeprefix("no") if name.startswith("noconfig.") else name
        if argument.startswith("-") and plain_name in REMOVED_FLAGS:
            raise InputError(f"--{plain_name} was removed: {REMOVED_FLAGS[plain_name]}.")
        if not argument.startswith("-") or not plain_name.startswith("config."):
            found.append(argument)
            continue
        field = plain_name.removeprefix("config.")
        if not equals and number + 1 < len(arguments) and not arguments[number + 1].startswith("-"):
            value, skip = arguments[number + 1], True  # --field value
        new = current_field(field, value)
        if new != field:
            print(f"warning: --config.{field} is now --config.{new}", file=sys.stderr)
            prefix = argument[: len(argument) - len(argument.lstrip("-"))]
            no = "no" if plain_name != name else ""
            found.append(f"{prefix}{no}config.{new}" + (f"={value}" if equals or skip else ""))
        else:
            found.append(argument)
            if skip:
                found.append(value)
    return found


def current_field(field: str, value: str = "") -> str:
    """Today's name of a field.

    Raises
    ------
    InputError
        when it, or its value, was removed, with the reason.
    """
    if field in REMOVED:
        raise InputError(f"config.{field} was removed: {REMOVED[field]}.")
    new = RENAMED.get(field, field)
    if (new, value) in REMOVED_VALUES:
        raise InputError(f"config.{field}={value} was removed: {REMOVED_VALUES[new, value]}.")
    return new


def current_record(record: dict[str, Any]) -> dict[str, Any]:
    """The configuration that a checkpoint of an earlier version records, under today's names.

    Raises
    ------
    InputError
        for a run that learned from the embedded phantoms of earlier versions, which are other data than today's.
    """
    if "coils_axis" in record.get("data", {}):
        return record
    if not record.get("data", {}).get("path"):
        raise InputError(
            "this run was trained on the built-in phantoms of an earlier version; today's heart phantom has coils and "
            "noise. Start a new --workdir with --config.training.init=…/model.safetensors."
        )
    found: dict[str, Any] = {"seed": record.get("seed", 0)}
    for part, fields in record.items():
        if not isinstance(fields, dict):
            continue
        for name, value in _leaves(fields):
            field = f"{part}.{name}"
            new = RENAMED.get(field, field)
            if field in REMOVED or new == "seed":
                continue
            new_part, new_name = new.split(".", 1)
            if field == "data.frames" or (field != new and new_name in found.get(new_part, {}) and not value):
                continue  # the twin field of embedded phantoms
            found.setdefault(new_part, {})[new_name] = value
    return found


def _leaves(fields: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in fields.items():
        found += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return found
