"""A smooth image phase that drifts with time, for data of which only the magnitude is known.

A magnitude image has a Hermitian-symmetric k-space: half of it can be copied from the other half, which
no scan allows. Multiplying by `exp(1j * smooth_phase(...))` before under-sampling takes that gift away.
"""

import math

import numpy as np
import torch

from utils.errors import InputError


def smooth_phase(
    frames: int,
    height: int,
    width: int,
    seed: int = 0,
    order: int = 2,
    peak: float = 0.7 * math.pi,
    motion: float = 0.08,
) -> torch.Tensor:
    """A polynomial in space whose coefficients swing once per `frames`.

    phase_t(x, y) = Σ_{i+j ≤ order} (a_ij + b_ij cos(2πt/frames + φ_ij)) x^i y^j, with x and y from -1 to 1
    over the field of view, so that every image size gets the same phase.

    Parameters
    ----------
    frames, height, width
        Size of the result.
    seed
        Chooses the coefficients.
    order
        Degree of the polynomial, at least 0.
    peak
        Largest |phase| of the part that stands still, radians.
    motion
        Size of the moving part as a fraction of the part that stands still.

    Returns
    -------
    float32 `(frames, height, width)`, radians. Frame `frames` would equal frame 0.

    Raises
    ------
    InputError
        When a size is below 1 or the order below 0.
    """
    if min(frames, height, width) < 1 or order < 0:
        raise InputError(
            f"a phase of {frames} frames, {height} x {width} pixels and order {order} cannot be made; "
            "sizes must be at least 1 and the order at least 0."
        )
    rng = np.random.default_rng(seed)
    powers = [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]
    still, swing = rng.normal(size=len(powers)), rng.normal(size=len(powers))
    start = rng.uniform(0, 2 * math.pi, len(powers))

    grid = np.linspace(-1, 1, 65)
    scale = peak / np.abs(np.tensordot(still, _monomials(powers, grid, grid), 1)).max()
    angle = 2 * math.pi * np.arange(frames)[:, None] / frames
    coefficients = scale * (still + motion * swing * np.cos(angle + start))
    rows, columns = (2 * (np.arange(n) - n // 2) / n for n in (height, width))
    phase = np.tensordot(coefficients, _monomials(powers, rows, columns), 1)
    return torch.from_numpy(phase.astype(np.float32))


def _monomials(powers: list[tuple[int, int]], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """x^i y^j for every (i, j), `(powers, rows, columns)`."""
    return np.stack([np.outer(rows**j, columns**i) for i, j in powers])
