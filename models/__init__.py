"""Score networks: NCSN++, its checkpoint files, and the reading of published weights."""

import torch

from models.context import Context
from models.ncsnpp import NCSNpp

FIELDS_OF_DATA = ("image_size", "num_channels", "centered")


def create_model(config, context: Context | None = None) -> NCSNpp:
    """The score network of `config.model` and `config.data`, freshly initialised from `config.seed`.

    With a context its input carries those channels too.
    """
    fields = {name: value for name, value in config.model.items() if name != "ema_rate"}
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        in_channels = config.data.num_channels + (context.channels if context else 0)
        return NCSNpp(in_channels=in_channels, **{name: config.data[name] for name in FIELDS_OF_DATA}, **fields)
