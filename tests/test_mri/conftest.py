"""Images of a small scan, and the same as a file holds them."""

import numpy as np
import pytest
import torch

from mri.phantom import make_phantom


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return make_phantom(6, 64, seed=2)


@pytest.fixture(scope="module")
def stored(image) -> np.ndarray:
    """Axes (row, column, frame), as in a file."""
    return image.permute(1, 2, 0).numpy()
