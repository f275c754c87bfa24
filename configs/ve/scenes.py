"""Priors of moving scenes: 1.3 M parameters, denoising score matching on clean synthetic scenes, for the cascade."""

import ml_collections

from configs.ve.cpu_demo import get_config as get_small_config

LM_SIGMA_MAX = 0.06  # LM follows where the noise level is low: its --config.model.sigma_max


def get_config() -> ml_collections.ConfigDict:
    config = get_small_config()

    model = config.model
    model.nf = 32
    model.ch_mult = (1, 2, 2)
    model.num_res_blocks = 1
    model.patch = 2
    model.temporal = True
    model.ema_rate = 0.995
    model.sigma_min = 0.001       # per real channel, in units of the scan's scale
    model.sigma_max = 0.2

    training = config.training
    training.objective = "scenes"
    training.columns = 64
    training.batch_size = 32
    training.n_iters = 100000
    training.snapshot_freq = 1000

    config.optim.lr = 1.5e-3
    config.optim.schedule = "cosine"

    return config
