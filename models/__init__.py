"""Score networks: NCSN++, its checkpoint files, and the reading of published weights."""

import torch

from models.ncsnpp import NCSNpp

FIELDS_OF_DATA = ("image_size", "num_channels", "centered")


def create_model(config) -> NCSNpp:
    """The score network of `config.model` and `config.data`, freshly initialised from `config.seed`."""
    fields = {name: value for name, value in config.model.items() if name != "ema_rate"}
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return NCSNpp(**{name: config.data[name] for name in FIELDS_OF_DATA}, **fields)
