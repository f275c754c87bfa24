"""The shipped priors: 1.3 M parameters, trained on synthetic moving scenes, used by the cascade."""

import ml_collections

from configs.ve.cpu_demo import get_config as get_small_config


def get_config() -> ml_collections.ConfigDict:
    config = get_small_config()

    model = config.model
    model.nf = 32
    model.ch_mult = (1, 2, 2)
    model.num_res_blocks = 1
    model.patch = 2
    model.temporal = True
    model.sigma_min = 1e-4        # in units of the scan's scale
    model.sigma_max = 1.0
    model.ema_rate = 0.995

    training = config.training
    training.objective = "synthetic"
    training.batch_size = 32
    training.scenes = 1000
    training.n_iters = 3000
    training.snapshot_freq = 1000

    config.optim.lr = 1.5e-3
    config.optim.schedule = "cosine"

    return config
