import pytest
import torch

from mri.interleave import pseudo_reference, temporal_mean
from mri.masks import make_mask
from utils.errors import InputError

WINDOWS = ["global", "local", "nearest"]


def scan(frames=6, height=8, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, height, width, dtype=torch.complex128, generator=generator)


def by_hand(kspace, mask, window, local_window, periodic):
    """The rule of the paper, one location at a time."""
    frames = len(kspace)
    filled = torch.zeros_like(kspace)
    for t in range(frames):
        if window == "global":
            group = range(frames)
        else:
            first = t - t % local_window
            group = range(first, min(first + local_window, frames)) if window == "local" else ()
        for where in torch.cartesian_prod(*(torch.arange(n) for n in kspace.shape[1:])).tolist():
            i = tuple(where)
            seen = [s for s in range(frames) if mask[(s, *i)]]
            inside = [s for s in group if s in seen]
            if t in seen:
                chosen = [t]
            elif inside:
                chosen = inside
            else:
                away = {s: min(abs(s - t), frames - abs(s - t)) if periodic else abs(s - t) for s in seen}
                chosen = [s for s in seen if away[s] == min(away.values())]
            filled[(t, *i)] = sum(kspace[(s, *i)] for s in chosen) / len(chosen)
    return filled


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("acceleration,frames", [(2, 6), (3, 7), (5, 8)])
def test_against_the_rule_applied_by_hand(window, periodic, acceleration, frames):
    kspace = scan(frames, 10)
    mask = make_mask("uniform", (frames, 10, 4), acceleration, acs=2)
    filled, report = pseudo_reference(kspace, mask, window, 3, periodic)
    assert torch.allclose(filled, by_hand(kspace, mask, window, 3, periodic))
    assert report.own + report.window + report.nearest + report.low_rank == pytest.approx(1)
    assert report.own == pytest.approx(mask.double().mean().item())
    assert report.low_rank == 0


@pytest.mark.parametrize("window", WINDOWS)
def test_values_outside_the_mask_do_not_matter(window):
    kspace, mask = scan(), make_mask("uniform", (6, 8, 4), 3, acs=2)
    assert torch.equal(
        pseudo_reference(kspace, mask, window)[0], pseudo_reference(torch.where(mask, kspace, 7), mask, window)[0]
    )


def test_a_still_object_is_recovered_exactly():
    kspace = scan()[:1].expand(6, -1, -1)
    mask = make_mask("uniform", (6, 8, 4), 3, acs=2)
    for window in WINDOWS:
        assert torch.allclose(pseudo_reference(kspace, mask, window)[0], kspace)


def test_locations_that_nobody_measured_are_completed():
    kspace = scan(4, 16, 16)
    mask = make_mask("uniform", (4, 16, 16), 2, acs=4)
    mask[:, 2] = False
    filled, report = pseudo_reference(kspace, mask, "global")
    assert report.low_rank == pytest.approx(1 / 16)
    assert torch.equal(filled[mask], kspace[mask])
    assert filled[:, 2].abs().min() > 0 and torch.isfinite(filled.abs()).all()


def test_temporal_mean_averages_what_was_measured():
    kspace, mask = scan(), make_mask("uniform", (6, 8, 4), 3, acs=2)
    mean = temporal_mean(kspace, mask)
    for ky in range(8):
        seen = mask[:, ky, 0]
        assert torch.allclose(mean[ky], kspace[seen, ky].mean(dim=0))


def test_bad_window():
    with pytest.raises(InputError, match="unknown"):
        pseudo_reference(scan(), torch.ones(6, 8, 4, dtype=torch.bool), "sliding")
    with pytest.raises(InputError, match="at least 1"):
        pseudo_reference(scan(), torch.ones(6, 8, 4, dtype=torch.bool), "local", 0)
