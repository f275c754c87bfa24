"""Where a reconstruction is likely to be wrong: a standard deviation per pixel and frame, without a reference.

Three reconstructions of a scan are available at no extra cost: the final result, the OU alone, and the result without
the held-out samples. Where they differ, the samples do not determine the image (spread). Low rank and denoisers add a
bias common to all, largest where the result is far from view sharing (distance). The squared error is modelled as a
product of powers of the two.
"""

import torch
from torch.nn.functional import avg_pool2d

Tensor = torch.Tensor

# Fitted on 40 simulated scans by maximum likelihood (error² exponentially distributed about its prediction) with
# `python -m benchmarks.fit_likely_error`: R = 3 … 10, lines and spokes, noise 0 to 0.02, one to eight coils;
# benchmarks/results/calibration judges them on other scans.
GAIN, SPREAD, DISTANCE = 0.47, 0.67, 0.21  # error² = GAIN · (spread²)^SPREAD · (distance²)^DISTANCE
FLOOR = 1e-8  # added to both squares: nothing is certain to the last bit
NEIGHBOURHOOD = 3  # pixels; a single difference is a poor estimate of a variance
NOISE_LEFT = 0.5  # share of the noise power in the difference from view sharing; measured: 0.4 to 0.7


def likely_error(image: Tensor, without: Tensor, alone: Tensor, start: Tensor, noise_std: float) -> Tensor:
    """Standard deviation of the complex image error: real `(frames, height, width)`, of unit scale.

    Parameters
    ----------
    image
        the result, complex `(frames, height, width)` of unit scale.
    without
        the result without the held-out samples (`mri.holdout.hold_out_sets`).
    alone
        the result of the OU alone; equal to `image` if the priors were rejected.
    start
        view sharing, the starting point of all three.
    noise_std
        noise σ per complex k-space sample, in units of the scan's scale.
    """
    return modelled(*evidence(image, without, alone, start, noise_std)).sqrt()


def evidence(
    image: Tensor, without: Tensor, alone: Tensor, start: Tensor, noise_std: float
) -> tuple[Tensor, Tensor]:
    """Spread² and distance² of every pixel, see `likely_error`: real `(frames, height, width)`.

    Spread² is the geometric mean of its value in the frame and its average over time: a pixel that the samples of one
    frame do not determine is usually undetermined in the others too. The noise of view sharing is subtracted from
    distance², which is never less than spread².
    """
    power = _local_power(image - without) + _local_power(image - alone)
    spread = (power * power.mean(dim=0)).sqrt()
    return spread, (_local_power(image - start) - NOISE_LEFT * noise_std**2).maximum(spread)


def modelled(spread, distance, gain: float = GAIN, of_spread: float = SPREAD, of_distance: float = DISTANCE):
    """Squared error from spread² and distance², tensors or arrays, of unit scale."""
    return gain * (spread + FLOOR) ** of_spread * (distance + FLOOR) ** of_distance


def _local_power(difference: Tensor) -> Tensor:
    """Mean square in the neighbourhood of every pixel."""
    power = difference.abs().square()[:, None]
    return avg_pool2d(power, NEIGHBOURHOOD, 1, NEIGHBOURHOOD // 2, count_include_pad=False)[:, 0]
