"""The image-domain low-rank step against the explicit circular window matrix and its SVD."""

import pytest
import torch

from mri.fourier import fft2c, ifft2c
from mri.lowrank.hankel import HankelLowRank, complete, published_rank
from utils.errors import InputError


def images(frames, height, width, dtype=torch.complex64, seed=0):
    """Smooth random images that change with time in one way: the spectrum has a knee."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, height, width, dtype=torch.complex128, generator=generator)
    ky = torch.arange(height) - height // 2
    kx = torch.arange(width) - width // 2
    decay = torch.exp(-(ky[:, None] ** 2 + kx[None] ** 2).sqrt() / 3)
    beat = torch.cos(2 * torch.pi * torch.arange(frames) / frames)[:, None, None]
    return ifft2c((noise[0] + 0.5 * beat * noise[1]) * decay).to(dtype)


def explicit_svd(image, window, rank):
    """Windows of circular k-space as rows, truncated SVD, overlaps averaged."""
    frames, height, width = image.shape
    kspace = fft2c(image.to(torch.complex128))
    shifts = [(ay, ax) for ay in range(window) for ax in range(window)]
    a = torch.stack(
        [torch.roll(kspace[t], (-ay, -ax), (0, 1)).flatten() for t in range(frames) for ay, ax in shifts], dim=1
    )
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    a = (u[:, :rank] * s[:rank]) @ vh[:rank]
    averaged = torch.zeros_like(kspace)
    for column in range(a.shape[1]):
        t, (ay, ax) = column // len(shifts), shifts[column % len(shifts)]
        averaged[t] += torch.roll(a[:, column].reshape(height, width), (ay, ax), (0, 1)) / window**2
    return ifft2c(averaged)


@pytest.mark.parametrize("shape,window,rank", [((3, 12, 10), 4, 7), ((2, 16, 16), 5, 20), ((5, 8, 14), 3, 1)])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_exact_form_against_explicit_svd(shape, window, rank, dtype):
    image = images(*shape, dtype=dtype)
    expected = explicit_svd(image, window, rank)
    result = HankelLowRank(window, rank, sweeps=0)(image)
    assert (result - expected).norm() / expected.norm() < (1e-5 if dtype == torch.complex64 else 1e-10)


def test_full_rank_changes_nothing():
    image = images(2, 10, 12, torch.complex128)
    assert torch.allclose(HankelLowRank(3, 18, sweeps=0)(image), image)


def test_warm_started_iteration_follows_the_exact_form():
    image = images(4, 24, 20)
    warm = HankelLowRank(4, 12, sweeps=1)
    for step in range(12):  # the image moves little between the steps of a reconstruction
        moved = image + 0.001 * images(4, 24, 20, seed=step + 1)
        result = warm(moved)
    exact = explicit_svd(moved, 4, 12)
    assert (result - exact).norm() / exact.norm() < 1e-3


def test_cold_start_without_eigh_converges(monkeypatch):
    monkeypatch.setattr("mri.lowrank.hankel.EXACT_UP_TO", 0)
    image = images(4, 24, 20)
    project = HankelLowRank(4, 12, sweeps=2)
    for _ in range(20):
        result = project(image)
    exact = explicit_svd(image, 4, 12)
    assert (result - exact).norm() / exact.norm() < 1e-3


def test_rows_in_chunks_give_the_same(monkeypatch):
    image = images(4, 24, 20)
    whole = HankelLowRank(4, 12, 0)(image)
    monkeypatch.setattr("mri.lowrank.hankel._rows_per_chunk", lambda *sizes: 5)
    assert torch.allclose(HankelLowRank(4, 12, 0)(image), whole, atol=1e-6)


@pytest.mark.parametrize(
    "window,rank,words",
    [(4, 65, "exceeds"), (20, 4, "larger than"), (0, 4, "at least 1"), (4, -1, "at least 0")],
)
def test_bad_settings(window, rank, words):
    with pytest.raises(InputError, match=words):
        HankelLowRank(window, rank)(images(4, 16, 16))


def test_default_rank_is_the_published_share():
    assert [published_rank(*sizes) for sizes in ((16, 8), (8, 8), (64, 8), (2, 2))] == [96, 48, 384, 1]
    image = images(4, 24, 20)
    assert torch.allclose(HankelLowRank(4, 0, 0)(image), HankelLowRank(4, 6, 0)(image))


def test_complete_fills_a_gap_of_low_rank_kspace():
    outside = torch.linspace(-3, 3, 32).abs() > 0.6  # an object of limited extent has k-space of low rank
    kspace = fft2c(images(4, 32, 32) * ~outside[:, None] * ~outside)
    known = torch.ones(4, 32, 32, dtype=torch.bool)
    known[:, 14] = False
    filled = complete(kspace, known, window=6, iterations=100)
    assert torch.equal(filled[known], kspace[known])
    assert (filled - kspace).norm() < 0.5 * torch.where(known, 0, kspace).norm()
