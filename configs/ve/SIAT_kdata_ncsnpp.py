"""The published configuration: NCSN++ of 64.8 M parameters at 192×192×16."""

import ml_collections

from configs.default import get_default_configs


def get_config() -> ml_collections.ConfigDict:
    return get_default_configs()
