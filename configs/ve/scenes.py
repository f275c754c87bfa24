"""Priors of moving scenes: 1.3 M parameters, denoising score matching on clean synthetic scenes, for the cascade."""

import ml_collections

from configs.ve.synthetic import get_config as get_synthetic_config


def get_config() -> ml_collections.ConfigDict:
    config = get_synthetic_config()

    model = config.model
    model.sigma_min = 0.001       # per real channel, in units of the scan's scale
    model.sigma_max = 0.2

    training = config.training
    training.objective = "scenes"
    training.columns = 64
    training.n_iters = 100000
    training.snapshot_freq = 1000

    return config
