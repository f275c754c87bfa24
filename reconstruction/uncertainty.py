"""Where a reconstruction is likely to be wrong: a standard deviation per pixel and frame, without a reference.

Two reconstructions of a scan are available at no extra cost, with and without the held-out samples. Where they differ,
the samples do not determine the image (spread). Low rank and denoisers add a bias common to both, largest where the
result is far from view sharing (distance). The squared error is modelled as a product of powers of the two.
"""

import torch
from torch.nn.functional import avg_pool2d

Tensor = torch.Tensor

# Fitted on 40 simulated scans by maximum likelihood (error² exponentially distributed about its prediction) with
# `python -m benchmarks.fit_likely_error`: R = 3 … 10, lines and spokes, noise 0 to 0.02, one to eight coils;
# benchmarks/results/calibration judges them on other scans.
# Either half of these scans gives other constants, but predicts the same to 6 % (spread 0.001 to 0.01).
GAIN, SPREAD, DISTANCE = 0.73, 0.67, 0.22  # error² = GAIN · (spread²)^SPREAD · (distance²)^DISTANCE
FLOOR = 1e-8  # added to both squares: nothing is certain to the last bit
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
    spread, distance = evidence(image, without, start)
    return modelled(spread, distance).sqrt()


def evidence(image: Tensor, without: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Spread² and distance² of every pixel, see `likely_error`: real `(frames, height, width)`."""
    return _local_power(image - without), _local_power(image - start)


def modelled(spread, distance, gain: float = GAIN, of_spread: float = SPREAD, of_distance: float = DISTANCE):
    """Squared error from spread² and distance², tensors or arrays, of unit scale."""
    return gain * (spread + FLOOR) ** of_spread * (distance + FLOOR) ** of_distance


def _local_power(difference: Tensor) -> Tensor:
    """Mean square in the neighbourhood of every pixel."""
    power = difference.abs().square()[:, None]
    return avg_pool2d(power, NEIGHBOURHOOD, 1, NEIGHBOURHOOD // 2, count_include_pad=False)[:, 0]
