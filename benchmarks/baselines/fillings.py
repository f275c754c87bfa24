"""No optimisation problem at all: the missing samples are zero, or borrowed from the neighbouring frames."""

import torch

from reconstruction.prepare import Problem

Tensor = torch.Tensor


def zero_filled(problem: Problem) -> Tensor:
    """x = Aᴴ y: the images of the measured samples alone, complex `(frames, height, width)`."""
    return problem.model.adjoint(problem.measured)


def nearest_merge(problem: Problem) -> Tensor:
    """View sharing: missing samples come from the nearest frames in time that measured them."""
    return problem.view_sharing()
