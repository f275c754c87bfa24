"""Locally low rank: singular values of small image patches over time are shrunk (Trzasko & Manduca 2011).

The Casorati matrix of a b×b patch has one column per frame.
"""

import math
from collections.abc import Sequence

import torch
from tqdm import tqdm

from mri.operators import ForwardModel
from utils.errors import InputError

Tensor = torch.Tensor


def check_patch(patch: int, height: int, width: int) -> None:
    """Raise `InputError` when a patch of that side does not fit the image."""
    if not 1 <= patch <= min(height, width):
        raise InputError(f"a patch of {patch} pixels does not fit a {height}×{width} image.")


def shrink_patches(
    image: Tensor, threshold: float, patch: int = 8, shift: tuple[int, int] = (0, 0)
) -> Tensor:
    """Soft-threshold the singular values of every patch: the proximal map of threshold · Σ ‖patch‖_*.

    Parameters
    ----------
    image
        complex `(frames, height, width)`.
    threshold
        in the image's units; singular values below it vanish.
    patch
        b, pixels; patches tile the image, which wraps around where b does not divide it.
    shift
        of the tiling, pixels; drawing it at random removes the seams between patches.

    Raises
    ------
    InputError
        when the patch is larger than the image.
    """
    frames, height, width = image.shape
    check_patch(patch, height, width)
    rolled = torch.roll(image, shift, dims=(-2, -1))
    rows, columns = -(-height // patch), -(-width // patch)
    wrapped_rows = torch.arange(rows * patch, device=image.device) % height
    wrapped_columns = torch.arange(columns * patch, device=image.device) % width
    tiled = rolled[:, wrapped_rows[:, None], wrapped_columns[None, :]]
    casorati = tiled.reshape(frames, rows, patch, columns, patch).permute(1, 3, 2, 4, 0)
    casorati = casorati.reshape(rows * columns, patch * patch, frames)
    # the frames×frames Gram matrix has the right singular vectors and the squared singular values
    squared, vectors = torch.linalg.eigh(casorati.mH @ casorati)
    singular = squared.clamp(min=0).sqrt()
    gain = (1 - threshold / singular.clamp(min=1e-30)).clamp(min=0)
    casorati = casorati @ ((vectors * gain[:, None, :]) @ vectors.mH)
    tiled = casorati.reshape(rows, columns, patch, patch, frames).permute(4, 0, 2, 1, 3)
    shrunk = tiled.reshape(frames, rows * patch, columns * patch)[:, :height, :width]
    return torch.roll(shrunk, (-shift[0], -shift[1]), dims=(-2, -1))


class LocallyLowRank:
    """`shrink_patches` at thresholds that follow from one noise level, patch sizes in turn, seeded shifts.

    Parameters
    ----------
    noise_floor
        ν, standard deviation per pixel, in the image's units, of what counts as noise. The largest singular
        value of a b²×T matrix of such noise is about ν (b + √T), which is the threshold.
    patches
        the sizes b, pixels; a new one each call: small patches follow fast motion, large ones remove more.
    """

    def __init__(self, noise_floor: float, patches: Sequence[int] = (8,), seed: int = 0) -> None:
        self.noise_floor, self.patches = noise_floor, patches
        self.generator = torch.Generator().manual_seed(seed)
        self.calls = 0

    def __call__(self, image: Tensor, gain: float = 1.0) -> Tensor:
        """Low-rank image of a complex image `(frames, height, width)`, the threshold multiplied by `gain`."""
        patch = self.patches[self.calls % len(self.patches)]
        self.calls += 1
        shift = torch.randint(patch, (2,), generator=self.generator).tolist()
        threshold = gain * self.noise_floor * (patch + math.sqrt(len(image)))
        return shrink_patches(image, threshold, patch, (shift[0], shift[1]))


def fista_locally_low_rank(
    start: Tensor,
    model: ForwardModel,
    measured: Tensor,
    noise_floor: float,
    patches: Sequence[int] = (8,),
    iterations: int = 100,
    anneal: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """min over images x of ½‖A x − y‖² + Σ ν (b + √T) ‖b×b patch of x‖_*, by FISTA, then data consistency.

    Parameters
    ----------
    start
        images to begin from, complex `(frames, height, width)` of unit scale.
    model, measured
        A, and y `(frames, coils, ky, kx)` of unit scale, 0 outside the mask.
    noise_floor, patches
        see `LocallyLowRank`.
    anneal
        the threshold begins this many times larger and falls geometrically to its value at the last iteration.

    Returns
    -------
    images of that shape.
    """
    low_rank = LocallyLowRank(noise_floor, patches, seed)
    image = momentum = start
    t = 1.0
    for i in tqdm(range(iterations), desc="OU (locally low rank)", leave=False, disable=None):
        gain = anneal ** (1 - (i + 1) / iterations)
        previous = image
        image = low_rank(model.consistent(momentum, measured), gain)
        t_next = (1 + (1 + 4 * t * t) ** 0.5) / 2
        momentum = image + (t - 1) / t_next * (image - previous)
        t = t_next
    return model.consistent(image, measured)
