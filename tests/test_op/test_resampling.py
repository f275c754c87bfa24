"""FIR resampling: the published numbers, a slow obvious form, gradients, odd shapes and layouts."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from op.upfirdn2d import downsample_2d, fir_kernel, upfirdn2d, upsample_2d
from utils.errors import InputError

SHARED = Path(os.environ.get("GLDM_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def slow_upfirdn2d(x, kernel, up, down, pad):
    """The definition, step by step: zeros inserted, padded or cropped, summed tap by tap, decimated."""
    batch, channels, height, width = x.shape
    spread = x.new_zeros(batch, channels, height * up, width * up)
    spread[:, :, ::up, ::up] = x
    spread = F.pad(spread, pad + pad)
    taps_y, taps_x = kernel.shape
    out_y, out_x = spread.shape[2] - taps_y + 1, spread.shape[3] - taps_x + 1
    out = x.new_zeros(batch, channels, out_y, out_x)
    for i in range(taps_y):
        for j in range(taps_x):
            tap = kernel[taps_y - 1 - i, taps_x - 1 - j]
            out = out + tap * spread[:, :, i : i + out_y, j : j + out_x]
    return out[:, :, ::down, ::down]


def asymmetric_kernel(taps_y, taps_x):
    return torch.randn(taps_y, taps_x, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def random_image(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_matches_published_resampling():
    path = SHARED / "parity" / "fir.npz"
    if not path.exists():
        pytest.skip(f"the published numbers are not there: {path}")
    with np.load(path) as file:
        x, k = torch.from_numpy(file["input"]), file["fir_kernel"].tolist()
        up, down = torch.from_numpy(file["upsample_2d"]), torch.from_numpy(file["downsample_2d"])
    torch.testing.assert_close(upsample_2d(x, k), up)
    torch.testing.assert_close(downsample_2d(x, k), down)


@pytest.mark.parametrize("size", [(7, 5), (6, 9), (3, 4)])
@pytest.mark.parametrize("pad", [(0, 0), (2, 1), (0, 3), (1, 1), (-1, 2), (3, -2), (-1, -1)])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (1, 2), (2, 1), (3, 1), (1, 3), (2, 3), (3, 2)])
def test_equals_slow_form(size, pad, up, down):
    x = random_image(2, 3, *size)
    for taps in [(1, 1), (3, 2), (4, 4), (2, 5)]:
        kernel = asymmetric_kernel(*taps)
        if any(n * up + sum(pad) < t for n, t in zip(size, taps, strict=True)):
            with pytest.raises(InputError, match="larger image"):
                upfirdn2d(x, kernel, up, down, pad)
            continue
        expected = slow_upfirdn2d(x, kernel, up, down, pad)
        torch.testing.assert_close(upfirdn2d(x, kernel, up, down, pad), expected)


@pytest.mark.parametrize("k", [[1, 3, 3, 1], [1, 2, 1], [1, 1], [1], [1, 4, 6, 4, 1], [1, 5, 10, 10, 5, 1]])
@pytest.mark.parametrize("factor", [2, 3])
def test_sizes_and_gain(k, factor):
    x = torch.ones(1, 2, 6 * factor, 8 * factor)
    up, down = upsample_2d(x, k, factor, gain=3), downsample_2d(x, k, factor, gain=3)
    assert up.shape == (1, 2, 6 * factor**2, 8 * factor**2)
    assert down.shape == (1, 2, 6, 8)
    torch.testing.assert_close(down[:, :, 2:-2, 2:-2], torch.full_like(down[:, :, 2:-2, 2:-2], 3))
    if factor == 2 and len(k) > 1:  # otherwise the phases of the filter have different sums
        inner = up[:, :, 6:-6, 6:-6]
        torch.testing.assert_close(inner, torch.full_like(inner, 3))


@pytest.mark.parametrize(("up", "down", "pad"), [(1, 2, (1, 1)), (2, 1, (2, 1)), (2, 3, (-1, 2))])
def test_gradients(up, down, pad):
    x, kernel = random_image(1, 2, 3, 4).requires_grad_(), asymmetric_kernel(3, 2).requires_grad_()

    def resample(x, kernel):
        return upfirdn2d(x, kernel, up, down, pad)

    assert torch.autograd.gradcheck(resample, (x, kernel))
    assert torch.autograd.gradgradcheck(resample, (x, kernel))


@pytest.mark.parametrize("resample", [upsample_2d, downsample_2d])
def test_layouts_give_the_same(resample):
    x, k = random_image(2, 4, 8, 6), [1, 3, 3, 1]
    expected = resample(x, k)
    last = resample(x.contiguous(memory_format=torch.channels_last), k)
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last.contiguous(), expected)
    torch.testing.assert_close(resample(x.mT.contiguous().mT, k), expected)
    torch.testing.assert_close(resample(x[:, ::2], k), expected[:, ::2])


def test_keeps_the_dtype():
    x = torch.ones(1, 1, 4, 4, dtype=torch.bfloat16)
    assert upsample_2d(x, [1, 3, 3, 1]).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("x", "kernel", "options"),
    [
        (torch.ones(4, 4), torch.ones(2, 2), {}),
        (torch.ones(1, 1, 4, 4), torch.ones(2), {}),
        (torch.ones(1, 1, 4, 4), torch.ones(2, 2), {"up": 0}),
        (torch.ones(1, 1, 4, 4), torch.ones(2, 2), {"down": 0}),
    ],
)
def test_refuses(x, kernel, options):
    with pytest.raises(InputError, match="upfirdn2d takes"):
        upfirdn2d(x, kernel, **options)


def test_filter_without_sum_is_refused():
    with pytest.raises(InputError, match="sum is not 0"):
        fir_kernel([1, -1])
