import pytest
import torch

from mri.holdout import hide
from mri.masks import acs_rows, make_mask


@pytest.mark.parametrize("pattern", ["uniform", "random", "radial"])
def test_kept_and_hidden_split_the_mask(pattern):
    mask = make_mask(pattern, (8, 96, 64), 4, 8, seed=2)
    kept, hidden = hide(mask, seed=1)
    assert not (kept & hidden).any() and torch.equal(kept | hidden, mask)
    assert 0.05 < hidden.sum() / mask.sum() < 0.25 and kept.flatten(1).any(1).all()
    assert all(torch.equal(a, b) for a, b in zip((kept, hidden), hide(mask, seed=1), strict=True))
    assert not torch.equal(hidden, hide(mask, seed=2)[1])


@pytest.mark.parametrize("acceleration", [4, 8])
def test_a_hidden_line_is_as_far_from_its_row_s_samples_as_a_missing_one(acceleration):
    mask = make_mask("uniform", (16, 96, 4), acceleration, 8)
    kept, hidden = hide(mask)
    acs = acs_rows(mask)
    assert torch.equal(hidden, hidden[..., :1].expand_as(hidden)) and not hidden[:, ~acs].any()
    thinned = hidden[:, :, 0].any(dim=0)
    assert thinned.nonzero().flatten().tolist() == [44, 45, 50, 51]
    assert (kept[:, thinned, 0].sum(dim=0) == 16 // acceleration).all()
    assert kept[:, acs & ~thinned].all()


@pytest.mark.parametrize("acceleration,acs", [(32, 0), (4, 1), (1, 8)])
def test_nothing_is_hidden_where_nothing_can_be(acceleration, acs):
    assert not hide(make_mask("uniform", (4, 64, 4), acceleration, acs))[1].any()


def test_columns_and_partial_echoes_are_lines_too():
    mask = make_mask("uniform", (16, 96, 64), 4, 8)
    kept, hidden = hide(mask)
    assert torch.equal(hide(mask.mT)[1], hidden.mT) and torch.equal(hide(mask.mT)[0], kept.mT)
    partial = mask & (torch.arange(64) >= 10)
    assert torch.equal(hide(partial)[1], hidden & partial)


def test_acs_rows():
    assert acs_rows(make_mask("uniform", (4, 64, 4), 4, 8)).nonzero().flatten().tolist() == list(range(28, 36))
    assert not acs_rows(make_mask("uniform", (4, 64, 4), 4, 0)).any()
