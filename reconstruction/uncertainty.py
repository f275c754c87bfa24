"""Where a reconstruction is likely to be wrong: a standard deviation per pixel and frame, without a reference.

Three reconstructions of a scan are available at no extra cost: the final result, the OU alone, and the result without
the held-out samples. Where they differ, the samples do not determine the image (spread). Low rank and denoisers add a
bias common to all, largest where the result is far from view sharing (distance). The squared error is modelled as a
product of powers of the two; for lines, its mean is the geometric mean of the model's own and of the level estimated
from the held-out lines.
"""

import torch
from torch.nn.functional import avg_pool2d

from mri.holdout import HeldOut, missing_power
from reconstruction.optimization_unit import scattered
from reconstruction.prepare import Problem

Tensor = torch.Tensor

# Fitted on 80 simulated scans by maximum likelihood (error² exponentially distributed about its prediction) with
# `python -m benchmarks.fit_likely_error`: R = 3 … 10, lines and spokes, noise 0 to 0.02, one to eight coils;
# benchmarks/results/calibration judges them on other scans.
SPREAD, DISTANCE = 0.57, 0.17  # error² ~ (spread²)^SPREAD · (distance²)^DISTANCE
GAIN, GAIN_SCATTERED = 0.34, 0.18  # times this: of lines, see `modelled`, and of single samples (radial)
FLOOR = 1e-8  # added to both squares: nothing is certain to the last bit
NEIGHBOURHOOD = 3  # pixels; a single difference is a poor estimate of a variance
NOISE_LEFT = 0.75  # share of the noise power taken from distance²: it brings 0.4 to 0.7, and somewhat more fits better
ESTIMATED = 0.75  # share of the noise power that is subtracted from held-out samples where σ is an upper bound
LEAST = 0.25  # smallest share of the squared error that remains once the held-out samples are used


def likely_error(
    image: Tensor, without: Tensor, alone: Tensor, start: Tensor, noise_std: float, level: float | None = None
) -> Tensor:
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
    level
        mean squared error of the missing samples by the held-out ones, see `held_out_level`; None where not known.
    """
    return modelled(*evidence(image, without, alone, start, noise_std), level).sqrt()


def held_out_level(problem: Problem, held_out: HeldOut, image: Tensor, without: Tensor) -> float | None:
    """Mean squared error per pixel of `image` in the samples that are missing, from the error of `without` at all
    held-out samples. Errors in measured samples, which remain where they are not put back, are not in it.

    None for single samples (radial), which are too easily predicted from their neighbours in k-space. `image` also used
    the held-out samples: its squared difference from `without` counts as error removed, up to 1 − LEAST of the total.
    """
    if scattered(problem):
        return None
    held = held_out.settings | held_out.admission | held_out.report
    error = torch.where(held[:, None], problem.measured - problem.model.kspace(without), 0)
    noise = (1.0 if problem.noise_known else ESTIMATED) * problem.noise_std**2 * problem.model.coils
    power = missing_power(error, held, held_out.kept, noise)
    return max(power - (image - without).abs().square().mean().item(), LEAST * power)


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


def modelled(
    spread, distance, level: float | None, gains: tuple[float, float] = (GAIN, GAIN_SCATTERED),
    of_spread: float = SPREAD, of_distance: float = DISTANCE,
):  # fmt: skip
    """Squared error from spread² and distance², tensors or arrays, of unit scale.

    The product of their powers, m, locates the error but predicts its overall size less well; `level` gives only that
    size, from few samples. If `level` is known, the mean error² is proportional to √(mean of m · level).
    """
    shape = (spread + FLOOR) ** of_spread * (distance + FLOOR) ** of_distance
    if level is None:
        return gains[1] * shape
    return gains[0] * shape * (max(level, FLOOR) / shape.mean()) ** 0.5


def _local_power(difference: Tensor) -> Tensor:
    """Mean square in the neighbourhood of every pixel."""
    power = difference.abs().square()[:, None]
    return avg_pool2d(power, NEIGHBOURHOOD, 1, NEIGHBOURHOOD // 2, count_include_pad=False)[:, 0]
