"""FIR resampling of images: upsample, pad, filter, decimate, in one pass.

Semantics of StyleGAN2's upfirdn2d (Karras et al. 2020), with the paddings NCSN++ uses (Song et al. 2021). On a GPU a
Triton kernel, elsewhere a strided or a transposed convolution (see `op.dispatch`).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from op import dispatch
from utils.errors import InputError

Tensor = torch.Tensor
Padding = tuple[int, int]


def upfirdn2d(x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: Padding = (0, 0)) -> Tensor:
    """Insert zeros, pad, convolve with `kernel` and keep every `down`-th sample, along both image axes.

    Parameters
    ----------
    x
        `(batch, channels, height, width)`, any memory format, which the result keeps.
    kernel
        `(taps_y, taps_x)`, real; every channel is filtered by it. It is convolved, not correlated.
    up
        `up - 1` zeros are put after every sample, the last one too.
    down
        Stride of the samples kept, from the first.
    pad
        Zeros put before and after each image axis, counted after upsampling; negative numbers crop.

    Returns
    -------
    `(batch, channels, out_y, out_x)` with `out = (n * up + pad[0] + pad[1] - taps) // down + 1`.

    Raises
    ------
    InputError
        When the tensors have other axes, a factor is below 1, or the kernel is larger than the padded image.
    """
    if x.ndim != 4 or kernel.ndim != 2:
        raise InputError(
            f"upfirdn2d takes (batch, channels, height, width) and a 2-D kernel, "
            f"not {tuple(x.shape)} and {tuple(kernel.shape)}."
        )
    if up < 1 or down < 1:
        raise InputError(f"upfirdn2d takes factors of at least 1, not up={up}, down={down}.")
    if any(n * up + sum(pad) < taps for n, taps in zip(x.shape[2:], kernel.shape, strict=True)):
        raise InputError(f"A {tuple(kernel.shape)} kernel needs a larger image than {tuple(x.shape[2:])}.")
    out_y, out_x = ((n * up + sum(pad) - taps) // down + 1 for n, taps in zip(x.shape[2:], kernel.shape, strict=True))
    if dispatch.use_triton(x):
        return _upfirdn2d(dispatch.dense(x), kernel, up, down, pad[0], pad[0], out_y, out_x)
    return _native(x, kernel, up, down, (pad, pad))


def upsample_2d(x: Tensor, k: Sequence[float], factor: int = 2, gain: float = 1) -> Tensor:
    """Enlarge `(batch, channels, height, width)` by `factor` with the separable filter `k`.

    A constant image comes out multiplied by `gain`, away from its edges, beyond which it counts as zero.
    """
    return upfirdn2d(x, fir_kernel(k, gain * factor**2), up=factor, pad=upsample_padding(len(k), factor))


def downsample_2d(x: Tensor, k: Sequence[float], factor: int = 2, gain: float = 1) -> Tensor:
    """Reduce `(batch, channels, height, width)` by `factor` with the separable filter `k`.

    A constant image comes out multiplied by `gain`, away from its edges, beyond which it counts as zero.
    """
    return upfirdn2d(x, fir_kernel(k, gain), down=factor, pad=downsample_padding(len(k), factor))


def fir_kernel(k: Sequence[float], gain: float = 1) -> Tensor:
    """Outer product of `k` with itself, `(len(k), len(k))`, scaled to sum to `gain`."""
    total = sum(k)
    if total == 0:
        raise InputError(f"A FIR filter is a list of numbers whose sum is not 0, not {list(k)}.")
    line = torch.tensor([tap / total for tap in k])
    return gain * torch.outer(line, line)


def upsample_padding(taps: int, factor: int) -> Padding:
    """Padding that centres a filter of `taps` so that n samples become exactly n·factor."""
    p = taps - factor
    return (p + 1) // 2 + factor - 1, p // 2


def downsample_padding(taps: int, factor: int) -> Padding:
    """Padding that centres a filter of `taps` so that n·factor samples become exactly n."""
    p = taps - factor
    return (p + 1) // 2, p // 2


def _native(x: Tensor, kernel: Tensor, up: int, down: int, pads: tuple[Padding, Padding]) -> Tensor:
    """`upfirdn2d` by convolutions; `pads` of the two axes."""
    kernel = kernel.to(x)
    if up == 1:
        return _filter_down(x, kernel, down, pads)
    return _filter_up(x, kernel, up, pads)[:, :, ::down, ::down]


def _filter_down(x: Tensor, kernel: Tensor, down: int, pads: tuple[Padding, Padding]) -> Tensor:
    """Pad and convolve depthwise, computing only the samples that are kept."""
    channels = x.shape[1]
    # The convolution pads for free where it can: what both sides share. The rest is padded or cropped first.
    shared = [max(min(pad), 0) for pad in pads]
    rest_y, rest_x = [(pad[0] - s, pad[1] - s) for pad, s in zip(pads, shared, strict=True)]
    if rest_y != (0, 0) or rest_x != (0, 0):
        x = F.pad(x, rest_x + rest_y)
    weight = kernel.flip(0, 1).expand(channels, 1, *kernel.shape)
    return F.conv2d(x, weight, stride=down, padding=shared, groups=channels)


def _filter_up(x: Tensor, kernel: Tensor, up: int, pads: tuple[Padding, Padding]) -> Tensor:
    """Upsample, pad and convolve depthwise as one transposed convolution, which never meets the zeros.

    Unpadded, the transposed convolution returns every overlap of kernel and image, `(n - 1) * up + taps`
    samples. Sample m of the wanted result is its sample `m + taps - 1 - pad[0]`.
    """
    short = x.dtype in (torch.float16, torch.bfloat16)
    if x.device.type == "cpu" and (short or torch.is_autocast_enabled("cpu")):
        # PyTorch's transposed convolution by channel is ten times slower in short floats than in float32 there
        with torch.autocast("cpu", enabled=False):
            return _filter_up(x.float(), kernel.float(), up, pads).to(x.dtype)
    channels = x.shape[1]
    crops = [(taps - 1 - pad[0], taps - up - pad[1]) for taps, pad in zip(kernel.shape, pads, strict=True)]
    shared = [max(min(crop), 0) for crop in crops]
    weight = kernel.expand(channels, 1, *kernel.shape)
    y = F.conv_transpose2d(x, weight, stride=up, padding=shared, groups=channels)
    rest_y, rest_x = [(s - crop[0], s - crop[1]) for s, crop in zip(shared, crops, strict=True)]
    return y if rest_y == rest_x == (0, 0) else F.pad(y, rest_x + rest_y)


@torch.library.custom_op("gldm::upfirdn2d", mutates_args=())
def _upfirdn2d(
    x: Tensor, kernel: Tensor, up: int, down: int, pad_y: int, pad_x: int, out_y: int, out_x: int
) -> Tensor:
    """The Triton form. Padding at the first edge of each axis; that at the other follows from the result's size."""

    def native() -> Tensor:
        sizes = zip((out_y, out_x), kernel.shape, x.shape[2:], (pad_y, pad_x), strict=True)
        pads = [(first, (size - 1) * down + taps - n * up - first) for size, taps, n, first in sizes]
        return dispatch.dense(_native(x, kernel, up, down, tuple(pads)))

    return dispatch.run(
        lambda kernels: kernels.upfirdn2d(x, kernel, up, down, pad_y, pad_x, out_y, out_x), native
    )


@_upfirdn2d.register_fake
def _(x, kernel, up, down, pad_y, pad_x, out_y, out_x):
    channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((*x.shape[:2], out_y, out_x), dtype=x.dtype, device=x.device, memory_format=layout)


def _save_upfirdn2d(ctx, inputs, output) -> None:
    x, kernel, ctx.up, ctx.down, ctx.pad_y, ctx.pad_x, _, _ = inputs
    ctx.size = x.shape[2:]
    ctx.save_for_backward(kernel)


def _upfirdn2d_gradient(ctx, gradient):
    """Of y[j] = Σ_i x[i] k[j·down + taps − 1 − pad − up·i] with respect to x: the same, with up and down exchanged."""
    (kernel,) = ctx.saved_tensors
    pad_y, pad_x = kernel.shape[0] - 1 - ctx.pad_y, kernel.shape[1] - 1 - ctx.pad_x
    flipped = kernel.flip(0, 1)
    dx = _upfirdn2d(dispatch.dense(gradient), flipped, ctx.down, ctx.up, pad_y, pad_x, *ctx.size)
    return dx, None, None, None, None, None, None, None


_upfirdn2d.register_autograd(_upfirdn2d_gradient, setup_context=_save_upfirdn2d)
