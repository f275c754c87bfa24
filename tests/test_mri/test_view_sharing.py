import pytest
import torch

from mri.masks import make_mask
from mri.view_sharing import looks_periodic, share_views, temporal_mean
from utils.errors import InputError

WINDOWS = ["global", "local", "nearest"]


def scan(frames=6, height=8, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, height, width, dtype=torch.complex128, generator=generator)


def one_coil(kspace, mask, *arguments):
    """`share_views` of one coil, without the coil axis."""
    filled, report = share_views(kspace[:, None], mask, *arguments)
    return filled[:, 0], report


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
    filled, report = one_coil(kspace, mask, window, 3, periodic)
    assert torch.allclose(filled, by_hand(kspace, mask, window, 3, periodic))
    assert report.own + report.window + report.nearest + report.low_rank == pytest.approx(1)
    assert report.own == pytest.approx(mask.double().mean().item())
    assert report.low_rank == 0


@pytest.mark.parametrize("window", WINDOWS)
def test_values_outside_the_mask_do_not_matter(window):
    kspace, mask = scan(), make_mask("uniform", (6, 8, 4), 3, acs=2)
    assert torch.equal(
        one_coil(kspace, mask, window)[0], one_coil(torch.where(mask, kspace, 7), mask, window)[0]
    )


def test_a_still_object_is_recovered_exactly():
    kspace = scan()[:1].expand(6, -1, -1)
    mask = make_mask("uniform", (6, 8, 4), 3, acs=2)
    for window in WINDOWS:
        assert torch.allclose(one_coil(kspace, mask, window)[0], kspace)


def test_locations_that_nobody_measured_are_completed():
    kspace = scan(4, 16, 16)
    mask = make_mask("uniform", (4, 16, 16), 2, acs=4)
    mask[:, 2] = False
    filled, report = one_coil(kspace, mask, "global")
    assert report.low_rank == pytest.approx(1 / 16)
    assert torch.equal(filled[mask], kspace[mask])
    assert filled[:, 2].abs().min() > 0 and torch.isfinite(filled.abs()).all()


def test_temporal_mean_averages_what_was_measured():
    kspace, mask = scan(), make_mask("uniform", (6, 8, 4), 3, acs=2)
    mean = temporal_mean(kspace[:, None], mask)[0]
    for ky in range(8):
        seen = mask[:, ky, 0]
        assert torch.allclose(mean[ky], kspace[seen, ky].mean(dim=0))


def test_bad_window():
    with pytest.raises(InputError, match="unknown"):
        one_coil(scan(), torch.ones(6, 8, 4, dtype=torch.bool), "sliding")
    with pytest.raises(InputError, match="at least 1"):
        one_coil(scan(), torch.ones(6, 8, 4, dtype=torch.bool), "local", 0)


@pytest.mark.parametrize("window", WINDOWS)
def test_every_coil_is_filled_on_its_own(window):
    coils = [scan(6, 16, 16, seed) for seed in range(3)]
    mask = make_mask("uniform", (6, 16, 16), 3, acs=2)
    mask[:, 2] = False  # completed by low rank
    together, report = share_views(torch.stack(coils, dim=1), mask, window)
    for number, coil in enumerate(coils):
        alone, other = one_coil(coil, mask, window)
        assert torch.allclose(together[:, number], alone) and report == other


def test_periodicity_is_found_in_all_coils():
    from mri.fourier import fft2c
    from mri.phantom import make_phantom

    image = make_phantom(8, 64, 0)
    mask = make_mask("uniform", (8, 64, 64), 4, 8)
    coils = torch.stack((fft2c(image), fft2c(0.3j * image)), dim=1)
    assert looks_periodic(coils, mask) and looks_periodic(coils[:, :1], mask)
    assert not looks_periodic(coils[:4], mask[:4])  # too few frames to tell
    half = torch.cat((coils[:5], coils[1:4]))
    assert not looks_periodic(torch.cat((half[:5], half[4:5] * 2)), mask[:6])
