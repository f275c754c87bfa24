import pytest
import torch

from mri.holdout import hide
from mri.masks import acs_rows, make_mask


@pytest.mark.parametrize("pattern", ["uniform", "random", "radial"])
def test_kept_and_hidden_split_the_mask(pattern):
    mask = make_mask(pattern, (8, 96, 64), 4, 8, seed=2)
    kept, hidden = hide(mask, 0.2, seed=1)
    assert not (kept & hidden).any() and torch.equal(kept | hidden, mask)
    assert 0.1 < hidden.sum() / mask.sum() < 0.25
    assert all(torch.equal(a, b) for a, b in zip((kept, hidden), hide(mask, 0.2, seed=1), strict=True))
    assert not torch.equal(hidden, hide(mask, 0.2, seed=2)[1])


def test_half_of_the_hidden_lines_come_from_the_acs():
    mask = make_mask("uniform", (8, 96, 4), 4, 8)
    _, hidden = hide(mask, 0.2)
    lines = hidden[:, :, 0]
    assert torch.equal(hidden, lines[:, :, None].expand_as(hidden))
    inside = lines[:, acs_rows(mask)].sum(dim=1)
    outside = lines[:, ~acs_rows(mask)].sum(dim=1)
    assert (inside >= 2).all() and ((outside - inside).abs() <= 1).all()


def test_frames_with_few_lines_lose_none():
    mask = make_mask("uniform", (4, 64, 4), 32, 0)
    assert not hide(mask)[1].any()


def test_acs_rows():
    assert acs_rows(make_mask("uniform", (4, 64, 4), 4, 8)).nonzero().flatten().tolist() == list(range(28, 36))
    assert not acs_rows(make_mask("uniform", (4, 64, 4), 4, 0)).any()
