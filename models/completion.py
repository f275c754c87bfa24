"""One step of a prior with context: denoise, then data consistency. Training and reconstruction share it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from models.context import Context, neighbours
from models.precision import Score
from mri.operators import ForwardModel
from mri.weighting import from_channels, to_channels

Tensor = torch.Tensor

STEP_SHARE = 0.9  # of σ that the next step is given, in training and in use


class State(NamedTuple):
    """A scan on its way through the cascade."""

    image: Tensor  # complex (frames, height, width), data consistent, unit scale
    model: ForwardModel  # A
    periodic: bool


def denoise_consistently(
    score: Score, states: Sequence[State], context: Context, sigmas: Sequence[float], lowest: float = 0.0
) -> list[State]:
    """x ← x + (1 − AᴴA) σ² s(x, σ): Tweedie's mean of the clean image, with what was measured left as it is.

    Parameters
    ----------
    score
        s of x with its context channels, σ, and the neighbours of every frame.
    sigmas
        of each scan, per real channel.
    lowest
        the smallest σ that the network was trained for; it is given no smaller one.
    """
    found = list(states)
    shapes = [tuple(state.image.shape[1:]) for state in states]
    for shape in dict.fromkeys(shapes):  # scans of one size share a network pass
        numbers = [i for i, own in enumerate(shapes) if own == shape]
        own = [states[i] for i in numbers]
        changes = tweedie_changes(score, own, context, [sigmas[i] for i in numbers], lowest)
        for i, change in zip(numbers, changes, strict=True):
            found[i] = states[i]._replace(image=states[i].image + states[i].model.unmeasured(change))
    return found


def tweedie_changes(
    score: Score, states: Sequence[State], context: Context, sigmas: Sequence[float], lowest: float = 0.0
) -> Sequence[Tensor]:
    """σ² s(x, σ) of scans of one size, as images: Tweedie's mean of the clean image less the noisy one."""
    channels, indices, levels, first = [], [], [], 0
    for (image, model, periodic), sigma in zip(states, sigmas, strict=True):
        level = max(sigma, lowest)
        channels.append(torch.cat([to_channels(image), context(image, model, level, periodic)], dim=1))
        indices.append(first + neighbours(len(image), periodic, image.device))
        levels.append(channels[-1].new_full((len(image),), level))
        first += len(image)
    x = torch.cat(channels).contiguous(memory_format=torch.channels_last)
    scores = from_channels(score(x, torch.cat(levels), torch.cat(indices, dim=1)).float())
    frames = [len(state.image) for state in states]
    return [sigma**2 * own for sigma, own in zip(sigmas, scores.split(frames), strict=True)]
