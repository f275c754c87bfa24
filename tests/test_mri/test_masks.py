import pytest
import torch

from mri.formats import load_mask
from mri.masks import PATTERNS, acs_rows, fit_mask, make_mask, net_acceleration
from utils.errors import InputError


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", [(16, 96, 96), (5, 64, 80), (2, 30, 66)])
@pytest.mark.parametrize("acceleration", [2, 4, 10])
def test_shape_repeatability_and_rate(pattern, shape, acceleration):
    mask = make_mask(pattern, shape, acceleration, acs=4, seed=3)
    assert mask.shape == shape and mask.dtype == torch.bool
    assert torch.equal(mask, make_mask(pattern, shape, acceleration, acs=4, seed=3))
    assert mask.flatten(1).any(dim=1).all()
    assert 1 < net_acceleration(mask) <= acceleration * 1.2
    if pattern != "radial":
        assert (mask == mask[:, :, :1]).all(), "lines are whole rows"
        assert acs_rows(mask).sum() >= 4


def test_uniform_lattice_and_centre():
    mask = make_mask("uniform", (9, 192, 8), 5, acs=16)[:, :, 0]
    assert mask.all(dim=0).nonzero().flatten().tolist() == list(range(88, 104))
    for t in range(9):
        assert mask[t, t % 5 :: 5].all()
    assert mask.sum() == sum(len(set(range(t % 5, 192, 5)) | set(range(88, 104))) for t in range(9))


@pytest.mark.parametrize("height,acceleration", [(96, 4), (66, 5)])
def test_random_deals_every_line_once_per_group(height, acceleration):
    mask = make_mask("random", (3 * acceleration, height, 4), acceleration, acs=0, seed=1)[:, :, 0]
    for group in mask.split(acceleration):
        assert (group.sum(dim=0) == 1).all()
        assert group.sum(dim=1).max() - group.sum(dim=1).min() <= 1
    assert not torch.equal(mask, make_mask("random", (3 * acceleration, height, 4), acceleration, 0, 2)[:, :, 0])


def test_radial_spokes_pass_through_dc_and_reach_the_asked_rate():
    mask = make_mask("radial", (16, 128, 128), 8)
    assert mask[:, 64, 64].all()
    assert net_acceleration(mask) == pytest.approx(8, rel=0.05)
    assert not torch.equal(mask[0], mask[1])


@pytest.mark.parametrize(
    "arguments,words",
    [
        (("spiral", (4, 64, 64), 4), "unknown"),
        (("uniform", (4, 64, 64), 0.5), "between 1 and"),
        (("uniform", (4, 64, 64), 2.5), "whole acceleration"),
        (("uniform", (4, 64, 64), 4, 65), "ACS"),
        (("uniform", (0, 64, 64), 4), "empty"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(InputError, match=words):
        make_mask(*arguments)


def test_fit_mask():
    lines = make_mask("uniform", (4, 16, 12), 4, acs=2)
    assert torch.equal(fit_mask(lines[:, :, 0], (4, 16, 12)), lines)
    assert torch.equal(fit_mask(lines[0], (4, 16, 12)), lines[:1].expand(4, -1, -1))
    with pytest.raises(InputError, match=r"m.mat: shape \(4, 16, 12\) does not fit"):
        fit_mask(lines, (4, 16, 14), "m.mat")
    lines[2] = False
    with pytest.raises(InputError, match="frame 2 .* has no sample"):
        fit_mask(lines, (4, 16, 12))


def test_published_masks_are_reproduced(shared_file):
    lattice = load_mask(shared_file("data/mask_lattice_r4.mat")) | load_mask(shared_file("data/mask_acs20.mat"))
    assert torch.equal(make_mask("lattice", (16, 192, 192), 4), lattice)
    published = load_mask(shared_file("data/mask_tis_uniform_acs16_r3p56.mat"))
    ours = make_mask("uniform", (16, 192, 192), 5)
    # the published lattice has extra lines beside the ACS and another offset above it
    assert torch.equal(published[:, :80], ours[:, :80])
    assert torch.equal(published[:, 88:104], ours[:, 88:104])
    assert acs_rows(published).sum() == acs_rows(ours).sum() == 16
