"""Published NCSN++ weights, keyed `all_modules.<i>.…`, to and from ours.

    python -m models.convert FILE --check             # FILE: published .pth, or a parity fixture .npz
    python -m models.convert FILE.pth --out MODEL.safetensors [--config config.json]

Published files (score_sde_pytorch and its descendants) number the parts that have parameters in the order
of construction. `upstream_order` is that order; everything else here follows from it.
"""

import argparse
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models.checkpoint import build, load_weights, save_model
from models.layers import AttentionBlock, FourierFeatures, PyramidInput, ResidualBlock
from models.ncsnpp import NCSNpp
from mri.weighting import KspaceWeight
from utils.errors import InputError, exit_on_input_error
from utils.files import refuse_existing

Tensor = torch.Tensor
Config = dict[str, Any]

TOLERANCE = 1e-4  # of a parity fixture, relative to its largest score

RESIDUAL_NAMES = {
    "GroupNorm_0": "norm_in",
    "Conv_0": "conv_in",
    "Dense_0": "shift",
    "GroupNorm_1": "norm_out",
    "Conv_1": "conv_out",
    "Conv_2": "shortcut",
}
ATTENTION_NAMES = {"NIN_0": "query", "NIN_1": "key", "NIN_2": "value", "NIN_3": "out"}


def upstream_order(model: NCSNpp) -> list[tuple[str, nn.Module]]:
    """Published prefix and our module, `[("all_modules.0", …), …]`, in the published order."""
    modules: list[nn.Module] = []
    if isinstance(model.features, FourierFeatures):
        modules.append(model.features)
    if model.embedding is not None:
        modules += [model.embedding.hidden, model.embedding.out]
    modules.append(model.conv_in)
    for level in model.down:
        for i, block in enumerate(level.blocks):
            modules += [block, level.attention[i]] if level.attention else [block]
        modules += [part for part in (level.down, level.pyramid_input) if part is not None]
    modules += [model.middle.block_in, model.middle.attention, model.middle.block_out]
    for level in model.up:
        modules += level.blocks
        modules += [part for part in (level.attention,) if part is not None]
        modules += [level.head.norm, level.head.conv] if level.head is not None else []
        modules += [part for part in (level.up,) if part is not None]
    modules += [model.head.norm, model.head.conv] if model.head is not None else []
    return [(f"all_modules.{i}", module) for i, module in enumerate(modules)]


def upstream_keys(model: NCSNpp) -> list[tuple[str, str]]:
    """Published key and our key of every tensor, in the order of the published `model.parameters()`."""
    names = {module: name for name, module in model.named_modules()}
    pairs = []
    for prefix, module in upstream_order(model):
        for theirs, ours in _parameter_names(module):
            pairs.append((f"{prefix}.{theirs}", f"{names[module]}.{ours}"))
    return pairs


def _parameter_names(module: nn.Module) -> list[tuple[str, str]]:
    """Published and our name of the tensors of one entry of `upstream_order`."""
    both = ("weight", "bias")
    if isinstance(module, FourierFeatures):
        return [("W", "frequencies")]
    if isinstance(module, ResidualBlock):
        present = {t: o for t, o in RESIDUAL_NAMES.items() if getattr(module, o) is not None}
        return [(f"{theirs}.{p}", f"{ours}.{p}") for theirs, ours in present.items() for p in both]
    if isinstance(module, AttentionBlock):
        norm = [(f"GroupNorm_0.{p}", f"norm.{p}") for p in both]
        return norm + [(f"{theirs}.{q}", f"{ours}.{p}") for theirs, ours in ATTENTION_NAMES.items()
                       for q, p in zip("Wb", both, strict=True)]
    if isinstance(module, PyramidInput):
        return [(f"Conv_0.{p}", f"conv.{p}") for p in both]
    return [(p, p) for p in both]


def _turn(published_key: str, value: Tensor) -> Tensor:
    """Attention matrices are kept (in, out) by the published code and (out, in) by us; the rest is equal."""
    return value.mT if published_key.endswith(".W") and value.ndim == 2 else value


def upstream_to_named(state: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Our state dict of `NCSNpp(**config)` from a published one.

    A leading `module.` of the keys and the published ladder buffer `sigmas` are dropped.

    Raises
    ------
    InputError
        When keys are missing, left over, or of another shape than `config` gives.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    state.pop("sigmas", None)
    model = _skeleton(config)
    pairs, shapes = upstream_keys(model), {k: v.shape for k, v in model.state_dict().items()}
    published = {theirs for theirs, _ in pairs}
    if odd := sorted(published ^ state.keys()):
        what = "lack" if odd[0] in published else "have, beyond the configuration,"
        raise InputError(
            f"The weights {what} {odd[0]} ({len(odd)} keys differ): another configuration made them."
        )
    named = {ours: _turn(theirs, state[theirs]) for theirs, ours in pairs}
    for theirs, ours in pairs:
        if named[ours].shape != shapes[ours]:
            raise InputError(
                f"{theirs} has shape {tuple(state[theirs].shape)}, which does not fit the configuration's "
                f"{ours} {tuple(shapes[ours])}: another configuration made the weights."
            )
    return named


def named_to_upstream(named: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The inverse of `upstream_to_named`, in the published order and without a leading `module.`."""
    pairs = upstream_keys(_skeleton(config))
    return {theirs: _turn(theirs, named[ours]).contiguous() for theirs, ours in pairs}


def _skeleton(config: Config) -> NCSNpp:
    """`NCSNpp(**config)` without memory or random numbers for its weights."""
    with torch.device("meta"):
        return NCSNpp(**config)


def infer_config(state: dict[str, Tensor]) -> Config:
    """The configuration that a published state dict's keys and shapes show, published defaults for the rest.

    Shown are nf, num_channels, ch_mult, num_res_blocks, which levels attend (as resolutions of the published
    image_size), embedding_type, conditional, progressive, progressive_input and progressive_combine.

    Raises
    ------
    InputError
        When the keys are not an NCSN++'s.
    """
    try:
        return _infer_config(_entries(state))
    except (KeyError, IndexError, ZeroDivisionError, StopIteration):
        raise InputError("The keys or shapes are not those of an NCSN++ of BigGAN blocks.") from None


def _entries(state: dict[str, Tensor]) -> list[dict[str, torch.Size]]:
    """Shapes of the tensors of each `all_modules.<i>`, by the rest of their key, in order of i."""
    entries: dict[int, dict[str, torch.Size]] = {}
    for key, value in state.items():
        match key.removeprefix("module.").split(".", 2):
            case ["all_modules", index, rest] if index.isdigit():
                entries.setdefault(int(index), {})[rest] = value.shape
    return [entries[index] for index in sorted(entries)]


def _infer_config(entries: list[dict[str, torch.Size]]) -> Config:
    defaults = NCSNpp.__init__.__kwdefaults__
    first = next(i for i, entry in enumerate(entries) if len(entry.get("weight", ())) == 4)
    nf, num_channels = entries[first]["weight"][:2]
    # A block that resamples has a shortcut without needing one for its channels.
    blocks = [(i, entry) for i, entry in enumerate(entries) if "Dense_0.weight" in entry]
    plain = [(i, e) for i, e in blocks
             if "Conv_2.weight" not in e or e["Conv_2.weight"][0] != e["Conv_2.weight"][1]]
    levels = (len(blocks) - len(plain)) // 2 + 1
    num_res_blocks = (len(plain) - 2 - levels) // (2 * levels)
    starts = [plain[level * num_res_blocks] for level in range(levels)]
    joins = [e for e in entries if "Conv_0.weight" in e and "Dense_0.weight" not in e]
    heads = sum(len(entry.get("weight", ())) == 1 for entry in entries)
    joined_channels = joins[0]["Conv_0.weight"][0] if joins else None
    concatenated = bool(joins) and starts[1][1]["GroupNorm_0.weight"][0] == 2 * joined_channels
    return {
        "image_size": defaults["image_size"],
        "num_channels": num_channels,
        "nf": nf,
        "ch_mult": [entry["Conv_0.weight"][0] // nf for _, entry in starts],
        "num_res_blocks": num_res_blocks,
        "attn_resolutions": [defaults["image_size"] // 2**level for level, (i, _) in enumerate(starts)
                             if "NIN_0.W" in entries[i + 1]],
        "embedding_type": "fourier" if "W" in entries[0] else "positional",
        "conditional": any(len(entry.get("weight", ())) == 2 for entry in entries),
        "progressive": "output_skip" if heads == levels else "none",
        "progressive_input": "input_skip" if joins or levels == 1 else "none",
        "progressive_combine": "cat" if concatenated else "sum",
    }


def load_published(path: str | os.PathLike, config: Config | None = None) -> NCSNpp:
    """The network in a published `.pth`, with its averaged (EMA) weights, in evaluation mode on the CPU.

    Parameters
    ----------
    path
        A dictionary of `model` (state dict), `ema` (`shadow_params`: a list in the order of the parameters
        that are trained), `optimizer` and `step`, saved by `torch.save`.
    config
        Arguments of `NCSNpp`; None infers them, see `infer_config`.

    Raises
    ------
    InputError
        When the file is missing, truncated, not such a dictionary, or does not fit `config`.
    """
    return _build_published(_read_published(path), config, path)


def _build_published(checkpoint: dict[str, Any], config: Config | None, path: str | os.PathLike) -> NCSNpp:
    """The averaged network in a checkpoint that `_read_published` read from `path`."""
    with _naming(path):
        config = infer_config(checkpoint["model"]) if config is None else config
    model = build(config, path)
    with _naming(path):
        named = upstream_to_named(checkpoint["model"], config)
        named |= _averaged_weights(model, checkpoint["ema"]["shadow_params"])
    return load_weights(model, named, path)


@contextmanager
def _naming(path: str | os.PathLike) -> Iterator[None]:
    """Put the file's name before the sentence of an `InputError` that does not know it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _averaged_weights(model: NCSNpp, shadow: list[Tensor]) -> dict[str, Tensor]:
    """The shadow parameters by our keys; the Fourier frequencies, which are not trained, are not in them."""
    trained = dict(model.named_parameters())
    pairs = [(theirs, ours) for theirs, ours in upstream_keys(model) if ours in trained]
    if len(shadow) != len(pairs):
        raise InputError(f"The file averages {len(shadow)} parameters, the network has {len(pairs)}.")
    named = {ours: _turn(theirs, value) for (theirs, ours), value in zip(pairs, shadow, strict=True)}
    if odd := [ours for ours, value in named.items() if value.shape != trained[ours].shape]:
        raise InputError(f"The averaged {odd[0]} has shape {tuple(named[odd[0]].shape)}, not the network's.")
    return named


def _read_published(path: str | os.PathLike) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise InputError(f"{path} is not there; give a published .pth or a parity fixture .npz.") from None
    except Exception:  # the unpickler of bytes that are no pickle raises whatever it trips over
        raise InputError(f"{path} is truncated or not a PyTorch file; copy it again.") from None
    match checkpoint:
        case {"model": dict() as state, "ema": {"shadow_params": list() as shadow}}:
            if all(isinstance(value, Tensor) for value in [*state.values(), *shadow]):
                return checkpoint
    raise InputError(
        f"{path} is not a published checkpoint, which holds model (tensors by name) and ema (shadow_params, "
        f"a list of tensors); give the file that training wrote."
    )


def load_fixture(path: str | os.PathLike) -> tuple[NCSNpp, dict[str, Tensor]]:
    """A parity fixture's network in evaluation mode, and its `input`, `sigma` and `score`.

    Raises
    ------
    InputError
        When the file is missing, truncated, not a fixture, or its weights do not fit its configuration.
    """
    try:
        # Opened here, because NumPy leaves a file open that turns out to be truncated.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        config = json.loads(arrays["config"].tobytes())
        tensors = {name: torch.from_numpy(arrays[name]).float() for name in ("input", "sigma", "score")}
    except FileNotFoundError:
        raise InputError(f"{path} is not there; give a parity fixture .npz or a published .pth.") from None
    except KeyError as error:
        raise InputError(f"{path} is not a parity fixture: it lacks {error}.") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, TypeError, AttributeError):
        raise InputError(f"{path} is truncated or not a parity fixture .npz; copy it again.") from None
    prefix = "weights/"
    state = {n.removeprefix(prefix): torch.from_numpy(a) for n, a in arrays.items() if n.startswith(prefix)}
    model = build(config, path)
    with _naming(path):
        named = upstream_to_named(state, config)
    return load_weights(model, named, path), tensors


@torch.inference_mode()
def fixture_error(model: NCSNpp, tensors: dict[str, Tensor]) -> float:
    """Largest difference from the fixture's score, relative to the largest score."""
    score = model.score(tensors["input"], *_fixture_noise(model, tensors["sigma"]))
    if score.shape != tensors["score"].shape:
        raise InputError(
            f"score has shape {tuple(tensors['score'].shape)}, the network's {tuple(score.shape)}."
        )
    return float((score - tensors["score"]).abs().max() / tensors["score"].abs().max())


def _fixture_noise(model: NCSNpp, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Number to embed and σ, `(batch,)` each, for what a fixture stores as `sigma`.

    Published positional networks are called with places on the ladder. They embed the place as it is, and
    cut off its fraction to look σ up.
    """
    if isinstance(model.features, FourierFeatures):
        return model.noise_value(sigma), sigma
    config = model.architecture
    if sigma.min() < 0 or sigma.max() >= config["num_scales"]:
        raise InputError(f"sigma holds places on a ladder of {config['num_scales']}; some lie outside it.")
    ladder = np.geomspace(config["sigma_max"], config["sigma_min"], config["num_scales"], dtype=np.float32)
    return sigma, torch.from_numpy(ladder)[sigma.long()]


def _check_fixture(path: str) -> NCSNpp:
    model, tensors = load_fixture(path)
    with _naming(path):
        error = fixture_error(model, tensors)
    print(f"max relative error {error:.3g}")
    if not error <= TOLERANCE:
        sys.exit(1)
    return model


@torch.inference_mode()
def _check_published(model: NCSNpp, step: int, path: str) -> None:
    side = model.divisor * max(1, 32 // model.divisor)
    score = model(torch.rand(1, model.in_channels, side, side), torch.ones(1))
    if not score.isfinite().all():
        raise InputError(f"The network in {path} gives undefined scores; copy the file again.")
    print(f"{sum(p.numel() for p in model.parameters())} parameters, step {step}, finite score")


def main() -> None:
    """Check or convert one file; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m models.convert", description=__doc__.splitlines()[0])
    parser.add_argument("file", help="published checkpoint (.pth) or parity fixture (.npz)")
    parser.add_argument("--check", action="store_true", help="compare with the fixture, or run it once")
    parser.add_argument("--config", help="JSON of the network's configuration; without it, it is inferred")
    parser.add_argument("--out", help="write the network in our format (.safetensors)")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it is there")
    arguments = parser.parse_args()
    exit_on_input_error(lambda: _convert(arguments))


def _convert(arguments: argparse.Namespace) -> None:
    if not (arguments.check or arguments.out):
        raise InputError("There is nothing to do: pass --check, --out or both.")
    if arguments.out:
        refuse_existing(arguments.out, arguments.overwrite)
    if Path(arguments.file).suffix == ".npz":
        model, extra = _check_fixture(arguments.file), {}
    else:
        config = _read_config(arguments.config) if arguments.config else None
        checkpoint = _read_published(arguments.file)
        model = _build_published(checkpoint, config, arguments.file)
        extra = {"step": int(checkpoint.get("step", 0)), "weight": KspaceWeight.published().to_dict()}
        if arguments.check:
            _check_published(model, extra["step"], arguments.file)
    if arguments.out:
        try:
            save_model(model, arguments.out, **extra)
        except OSError as error:
            raise InputError(f"{arguments.out} cannot be written: {error}.") from None
        print(f"wrote {arguments.out}")


def _read_config(path: str) -> Config:
    try:
        config = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a JSON configuration: {error}.") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a JSON object of the network's arguments.")
    return config


if __name__ == "__main__":
    main()
