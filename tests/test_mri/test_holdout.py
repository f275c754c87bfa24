import pytest
import torch

from mri.holdout import hold_out, missing_error
from mri.masks import acs_rows, make_mask


@pytest.mark.parametrize("pattern", ["uniform", "random", "radial"])
def test_kept_and_held_out_split_the_mask(pattern):
    mask = make_mask(pattern, (8, 96, 64), 4, 8, seed=2)
    kept, held_out = hold_out(mask, seed=1)
    assert not (kept & held_out).any() and torch.equal(kept | held_out, mask)
    assert 0.05 < held_out.sum() / mask.sum() < 0.25 and kept.flatten(1).any(1).all()
    assert all(torch.equal(a, b) for a, b in zip((kept, held_out), hold_out(mask, seed=1), strict=True))
    assert not torch.equal(held_out, hold_out(mask, seed=2)[1])


@pytest.mark.parametrize("acceleration", [4, 8])
def test_a_held_out_line_is_as_far_from_its_row_s_samples_as_a_missing_one(acceleration):
    mask = make_mask("uniform", (16, 96, 4), acceleration, 8)
    kept, held_out = hold_out(mask)
    acs = acs_rows(mask)
    assert torch.equal(held_out, held_out[..., :1].expand_as(held_out)) and not held_out[:, ~acs].any()
    thinned = held_out[:, :, 0].any(dim=0)
    assert thinned.nonzero().flatten().tolist() == [44, 45, 50, 51]
    assert (kept[:, thinned, 0].sum(dim=0) == 16 // acceleration).all()
    assert kept[:, acs & ~thinned].all()


@pytest.mark.parametrize("acceleration,acs", [(32, 0), (4, 1), (1, 8)])
def test_nothing_is_held_out_where_nothing_can_be(acceleration, acs):
    assert not hold_out(make_mask("uniform", (4, 64, 4), acceleration, acs))[1].any()


def test_columns_and_partial_echoes_are_lines_too():
    mask = make_mask("uniform", (16, 96, 64), 4, 8)
    kept, held_out = hold_out(mask)
    assert torch.equal(hold_out(mask.mT)[1], held_out.mT) and torch.equal(hold_out(mask.mT)[0], kept.mT)
    partial = mask & (torch.arange(64) >= 10)
    assert torch.equal(hold_out(partial)[1], held_out & partial)


def test_acs_rows():
    assert acs_rows(make_mask("uniform", (4, 64, 4), 4, 8)).nonzero().flatten().tolist() == list(range(28, 36))
    assert not acs_rows(make_mask("uniform", (4, 64, 4), 4, 0)).any()


def test_missing_error_sums_over_the_coils():
    """One coil, and the same error spread over two coils."""
    mask = make_mask("uniform", (8, 32, 32), 4, 8)
    kept, held_out = hold_out(mask)
    generator = torch.Generator().manual_seed(0)
    error = torch.randn(8, 1, 32, 32, dtype=torch.complex64, generator=generator)
    one = missing_error(error, held_out, mask)
    two = missing_error(torch.cat((0.6 * error, 0.8j * error), dim=1), held_out, mask)
    assert one > 0 and two == pytest.approx(one)
