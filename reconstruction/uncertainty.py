"""Where a reconstruction is likely to be wrong: a standard deviation per pixel and frame, without a reference.

Three reconstructions of a scan and the last low-rank images are available at no extra cost: the final result, the OU
alone, and the result without the held-out samples. Where they differ, the samples do not determine the image (spread).
Low rank leaves a bias common to all, largest where the result is far from the last low-rank images (correction); and
errors are larger where there is more signal (brightness). The squared error is modelled as a product of powers of the
three; for lines, its mean also follows the level estimated from the held-out lines.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import avg_pool2d

from mri.holdout import HeldOut, missing_power
from reconstruction.optimization_unit import scattered
from reconstruction.prepare import Problem

Tensor = torch.Tensor

# Fitted with `python -m benchmarks.fit_likely_error` to 80 simulated scans, half of them hearts: R = 3 … 10, lines and
# spokes, noise 0 to 0.02, one to eight coils; benchmarks/results/calibration judges them on other scans. error² ~
# (spread²)^SPREAD · (correction²)^CORRECTION · (brightness²)^BRIGHTNESS
SPREAD, CORRECTION, BRIGHTNESS = 0.694, 0.224, 0.042
LEVEL = 0.022  # power of the level of the held-out lines, relative to the mean of the product
GAIN, GAIN_SCATTERED = 4.21, 6.35  # times this: of lines, and of single samples (radial)
FLOOR = 1e-8  # added to all squares: nothing is certain to the last bit
# correction², as a share of spread². Without it the likely error was half of the true one if the priors are rejected
# and noise dominates: hardly any of the samples is put back then, and the result is the low-rank image itself
LEAST_CORRECTION = 0.01
NEIGHBOURHOOD = 3  # pixels; a single difference is a poor estimate of a variance
ESTIMATED = 0.75  # share of the noise power that is subtracted from held-out samples where σ is an upper bound
LEAST = 0.25  # smallest share of the squared error that remains once the held-out samples are used


class Evidence(NamedTuple):
    """What the likely error is computed from: squares of unit scale, real `(frames, height, width)`."""

    spread: Tensor
    correction: Tensor
    brightness: Tensor


def likely_error(
    image: Tensor, without: Tensor, alone: Tensor | None, low_rank: Tensor, level: float | None = None
) -> Tensor:
    """Standard deviation of the complex image error: real `(frames, height, width)`, of unit scale.

    Parameters
    ----------
    image
        the result, complex `(frames, height, width)` of unit scale.
    without
        the result without the held-out samples (`mri.holdout.hold_out_sets`).
    alone
        the result of the OU alone; None if the priors were rejected.
    low_rank
        the last low-rank images, before samples were put back (`reconstruction.in_turn.Followed`).
    level
        mean squared error of the missing samples by the held-out ones, see `held_out_level`; None where not known.
    """
    return modelled(evidence(image, without, alone, low_rank), level).sqrt()


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


def evidence(image: Tensor, without: Tensor, alone: Tensor | None, low_rank: Tensor) -> Evidence:
    """Spread², correction² and brightness² of every pixel, see `likely_error`.

    Spread² is the geometric mean of three squared differences: from `without`, in the frame and averaged over time (a
    pixel that the samples of one frame do not determine is usually undetermined in the others too), and from `alone`.
    Correction² is at least LEAST_CORRECTION of it.
    """
    apart = _local_power(image - without) + FLOOR
    priors = apart if alone is None else _local_power(image - alone) + FLOOR
    spread = (apart * apart.mean(dim=0) * priors) ** (1 / 3)
    correction = (_local_power(image - low_rank) + FLOOR).maximum(LEAST_CORRECTION * spread)
    return Evidence(spread, correction, _local_power(image) + FLOOR)


def modelled(
    found: Evidence, level: float | None, gains: tuple[float, float] = (GAIN, GAIN_SCATTERED),
    powers: tuple[float, float, float] = (SPREAD, CORRECTION, BRIGHTNESS), of_level: float = LEVEL,
):  # fmt: skip
    """Squared error of unit scale, from squares that are tensors or arrays.

    The product of their powers, m, locates the error and also predicts its size; `level` adds what the few held-out
    samples tell about it. If `level` is known, the mean error² is proportional to
    (mean of m)^(1 − LEVEL) · level^LEVEL.
    """
    shape = found.spread ** powers[0] * found.correction ** powers[1] * found.brightness ** powers[2]
    if level is None:
        return gains[1] * shape
    return gains[0] * shape * (max(level, FLOOR) / shape.mean()) ** of_level


def _local_power(difference: Tensor) -> Tensor:
    """Mean square in the neighbourhood of every pixel."""
    power = difference.abs().square()[:, None]
    return avg_pool2d(power, NEIGHBOURHOOD, 1, NEIGHBOURHOOD // 2, count_include_pad=False)[:, 0]
