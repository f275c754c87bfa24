"""The shipped priors: those of `scenes`, trained on through the sampler, on scans simulated from moving scenes."""

import ml_collections

from configs.ve.scenes import get_config as get_scenes_config


def get_config() -> ml_collections.ConfigDict:
    config = get_scenes_config()

    training = config.training
    training.objective = "cascade"
    training.batch_size = 32      # two scans, each entered twice: half of a step's time goes into their OU
    training.n_iters = 20000
    training.snapshot_freq = 200
    training.snapshot_freq_for_preemption = 50

    config.model.ema_rate = 0.99
    config.model.sigma_min = 0.0004   # half of the OU's last threshold without noise, and less
    config.optim.lr = 2e-4
    config.optim.warmup = 20

    return config
