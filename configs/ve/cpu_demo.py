"""The small configuration: 1.7 M parameters, 96×96×16, trained and sampled on two CPU cores."""

import ml_collections

from configs.default import get_default_configs


def get_config() -> ml_collections.ConfigDict:
    config = get_default_configs()

    config.data.phantoms = 48

    model = config.model
    model.image_size = 96
    model.nf = 16
    model.ch_mult = (1, 2, 4, 4)
    model.attn_resolutions = ()   # the bottleneck attends, as in the published network

    training = config.training
    training.batch_size = 8
    training.n_iters = 1000
    training.snapshot_freq = 1000
    training.snapshot_freq_for_preemption = 100

    config.optim.lr = 1e-3
    config.optim.warmup = 100

    sampling = config.sampling
    sampling.sampler = "cascade"
    sampling.start = "pseudo_reference"
    sampling.num_scales = 100     # published sampler: the published range of σ in a tenth of the steps
    sampling.iterations = 30

    return config
