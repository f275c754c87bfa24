"""Where a reconstruction is likely to be wrong: a standard deviation per pixel and frame, without a reference.

Two reconstructions of a scan are there anyway, from all samples and without those held out. Where they differ, the
samples do not decide (spread). Low rank and denoisers also leave a bias that both share; it is largest where the result
had to go far from view sharing (way). The squared error goes about with a power of each.
"""

import torch
from torch.nn.functional import avg_pool2d

Tensor = torch.Tensor

# Fitted on 30 synthetic scenes by maximum likelihood (error² exponentially distributed about its prediction):
# R = 3 … 10, lines and spokes, noise 0 to 0.02; benchmarks/results/calibration judges them on other scans.
GAIN, SPREAD, WAY = 0.32, 0.44, 0.41  # error² = gain · spread² ^ SPREAD · way² ^ WAY
NEIGHBOURHOOD = 5  # pixels; two images do not give a variance per pixel


def likely_error(image: Tensor, without: Tensor, start: Tensor) -> Tensor:
    """Standard deviation of the complex image error: real `(frames, height, width)`, of unit scale.

    Parameters
    ----------
    image
        the result, complex `(frames, height, width)` of unit scale.
    without
        the result without the held-out samples (`mri.holdout.hold_out_sets`).
    start
        view sharing, from which both began.
    """
    spread, way = _local_power(image - without), _local_power(image - start)
    return (GAIN * spread**SPREAD * way**WAY).sqrt()


def _local_power(difference: Tensor) -> Tensor:
    """Mean square in the neighbourhood of every pixel."""
    power = difference.abs().square()[:, None]
    return avg_pool2d(power, NEIGHBOURHOOD, 1, NEIGHBOURHOOD // 2, count_include_pad=False)[:, 0]
