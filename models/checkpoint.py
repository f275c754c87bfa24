"""Our checkpoint files: a network's weights and configuration in one safetensors file."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from models.ncsnpp import NCSNpp
from utils.errors import InputError
from utils.files import atomic_path

Tensor = torch.Tensor


def save_model(model: NCSNpp, path: str | os.PathLike, **extra_metadata: Any) -> None:
    """Write weights, `model.architecture` and `extra_metadata` (JSON types) to `path`, whole or not at all."""
    metadata = {name: json.dumps(value) for name, value in {**extra_metadata, "config": model.architecture}.items()}
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(weights, temporary, metadata=metadata)


def load_model(path: str | os.PathLike) -> tuple[NCSNpp, dict[str, Any]]:
    """The network in `path`, on the CPU and in evaluation mode, and all metadata (`config` included).

    Raises
    ------
    InputError
        When the file is missing, truncated, of another kind, or its weights do not fit its configuration or are not
        finite.
    """
    if not Path(path).is_file():
        raise InputError(f"{path} is not there; check the path, or train it with main.py --mode=train.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            weights = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is truncated or not one of our models ({error}); copy it again.") from None
    if "config" not in metadata:
        raise InputError(f"{path} records no configuration; write it with save_model.")
    return load_weights(build(metadata["config"], path), weights, path), metadata


def build(config: dict[str, Any], path: str | os.PathLike) -> NCSNpp:
    """`NCSNpp(**config)`; raises `InputError` naming `path`, where the configuration was read."""
    try:
        return NCSNpp(**config)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} holds a configuration of another network: {_line(error)}") from None


def load_weights(model: NCSNpp, weights: dict[str, Tensor], path: str | os.PathLike) -> NCSNpp:
    """`model` in evaluation mode with exactly `weights`, read from `path`, which an `InputError` names."""
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise InputError(f"The weights in {path} do not fit its configuration: {_line(error)}") from None
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise InputError(f"{path}: '{name}' holds NaN or infinite weights; give an earlier checkpoint.")
    return model.eval()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
