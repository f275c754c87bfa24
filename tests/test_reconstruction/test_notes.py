"""What is printed of decisions and scores."""

import pytest
import torch

from reconstruction.notes import _compared, reference_notes


@pytest.mark.parametrize(("axes", "words"), [((1,), "its rows"), ((2,), "its columns"), ((0,), "its frames"), ((), "")])
def test_a_reference_that_fits_otherwise_is_named(axes, words):
    image = torch.randn(5, 16, 12, generator=torch.Generator().manual_seed(0)).abs()
    noisy = image + 0.05 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    found = reference_notes(noisy, image.flip(axes) if axes else image)
    assert bool(found) == bool(axes) and all(f"with {words} reversed" in note for note in found)


def test_an_error_is_never_told_to_vanish():
    assert _compared(0.42) == "42% lower than" and _compared(-0.1) == "10% higher than"
    assert _compared(0.999) == "more than 99% lower than"
