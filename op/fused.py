"""Chains of element-wise operations of NCSN++ as one: group normalisation with its activation, sums, division by σ.

A convolution adds its own bias, so there is no chain of bias and activation: every activation of the network follows a
normalisation. Each function is one piece of mathematics with two forms (see `op.dispatch`): native PyTorch, and Triton
kernels that read and write every value once or twice where PyTorch's chain does so four to eight times. Under
`torch.autocast` statistics are float32 in both. The Triton forms are operators of `torch.library`, which
`torch.compile` traces.
"""

import math

import torch
import torch.nn.functional as F

from op import dispatch

Tensor = torch.Tensor


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    silu: bool = False,
    shift: Tensor | None = None,
) -> Tensor:
    """Group normalisation of `x + shift`, scaled and moved per channel, then x·sigmoid(x) if `silu`.

    Parameters
    ----------
    x
        `(batch, channels, height, width)`, any memory format.
    groups
        divides `channels`.
    weight, bias
        `(channels,)`.
    shift
        `(batch, channels)`, what a residual block adds for the noise level; None: nothing.

    Returns
    -------
    like x.
    """
    if dispatch.use_triton(x):
        return _group_norm(dispatch.dense(x), weight, bias, shift, groups, eps, silu)[0]
    if shift is not None:
        x = x + shift[:, :, None, None]
    x = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(x) if silu else x


def residual_add(x: Tensor, h: Tensor, rescale: bool) -> Tensor:
    """x + h, divided by √2 if `rescale`, which keeps the variance; both `(batch, channels, height, width)`."""
    if dispatch.use_triton(x) and h.dtype in dispatch.TYPES and x.shape == h.shape:
        x = dispatch.dense(x)
        if h.stride() != x.stride():
            h = torch.empty_like(x, dtype=h.dtype).copy_(h)
        return _scaled_sum(x, h, math.sqrt(0.5) if rescale else 1.0)
    return (x + h) * math.sqrt(0.5) if rescale else x + h


def divide_by_sigma(x: Tensor, sigma: Tensor) -> Tensor:
    """x `(batch, channels, height, width)` divided by σ `(batch,)`, in the wider of their types."""
    if dispatch.use_triton(x) and sigma.dtype in dispatch.TYPES:
        return _divide_by_sigma(dispatch.dense(x), sigma)
    return x / sigma[:, None, None, None]


# ------------------------------------------------------------------------------ operators of the Triton forms


@torch.library.custom_op("gldm::group_norm", mutates_args=())
def _group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    def native() -> tuple[Tensor, Tensor, Tensor]:
        value = x.float() if shift is None else x.float() + shift.float()[:, :, None, None]
        variance, mean = torch.var_mean(value.reshape(len(x), groups, -1), dim=2, correction=0)
        out = F.group_norm(value, groups, weight.float(), bias.float(), eps)
        return torch.empty_like(x).copy_(F.silu(out) if silu else out), mean, (variance + eps).rsqrt()

    return dispatch.run(lambda kernels: kernels.group_norm(x, weight, bias, shift, groups, eps, silu), native)


@_group_norm.register_fake
def _(x, weight, bias, shift, groups, eps, silu):
    statistics = x.new_empty((x.shape[0], groups), dtype=torch.float32)
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


@torch.library.custom_op("gldm::group_norm_backward", mutates_args=())
def _group_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, mean: Tensor, rstd: Tensor,
    groups: int, silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    def native() -> tuple[Tensor, Tensor, Tensor]:
        value = x.float() if shift is None else x.float() + shift.float()[:, :, None, None]
        per_channel = [s.repeat_interleave(x.shape[1] // groups, 1)[:, :, None, None] for s in (mean, rstd)]
        normalised = (value - per_channel[0]) * per_channel[1]
        w, b = weight.float()[:, None, None], bias.float()[:, None, None]
        dz = gradient.float()
        if silu:
            z = normalised * w + b
            s = torch.sigmoid(z)
            dz = dz * s * (1 + z * (1 - s))
        scaled = dz * w
        means = [
            t.reshape(len(x), groups, -1).mean(dim=2).repeat_interleave(x.shape[1] // groups, 1)[:, :, None, None]
            for t in (scaled, scaled * normalised)
        ]
        dx = (scaled - means[0] - normalised * means[1]) * per_channel[1]
        dweight, dbias = ((t.sum(dim=(0, 2, 3))) for t in (dz * normalised, dz))
        return torch.empty_like(x).copy_(dx), dweight.to(weight.dtype), dbias.to(bias.dtype)

    return dispatch.run(
        lambda kernels: kernels.group_norm_backward(gradient, x, weight, bias, shift, mean, rstd, groups, silu), native
    )


@_group_norm_backward.register_fake
def _(gradient, x, weight, bias, shift, mean, rstd, groups, silu):
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)


def _save_group_norm(ctx, inputs, output) -> None:
    x, weight, bias, shift, ctx.groups, _, ctx.silu = inputs
    ctx.save_for_backward(x, weight, bias, shift, *output[1:])


def _group_norm_gradients(ctx, gradient, *_):
    x, weight, bias, shift, mean, rstd = ctx.saved_tensors
    gradient = _like(gradient, x)
    dx, dweight, dbias = _group_norm_backward(gradient, x, weight, bias, shift, mean, rstd, ctx.groups, ctx.silu)
    dshift = None if shift is None else dx.float().sum(dim=(2, 3)).to(shift.dtype)
    return dx, dweight, dbias, dshift, None, None, None


_group_norm.register_autograd(_group_norm_gradients, setup_context=_save_group_norm)


@torch.library.custom_op("gldm::scaled_sum", mutates_args=())
def _scaled_sum(x: Tensor, h: Tensor, factor: float) -> Tensor:
    return dispatch.run(lambda kernels: kernels.scaled_sum(x, h, factor), lambda: (x + h) * factor)


@_scaled_sum.register_fake
def _(x, h, factor):
    return torch.empty_like(x, dtype=torch.result_type(x, h))


def _save_scaled_sum(ctx, inputs, output) -> None:
    x, h, ctx.factor = inputs
    ctx.types = x.dtype, h.dtype


def _scaled_sum_gradients(ctx, gradient):
    scaled = gradient * ctx.factor
    return scaled.to(ctx.types[0]), scaled.to(ctx.types[1]), None


_scaled_sum.register_autograd(_scaled_sum_gradients, setup_context=_save_scaled_sum)


@torch.library.custom_op("gldm::divide_by_sigma", mutates_args=())
def _divide_by_sigma(x: Tensor, sigma: Tensor) -> Tensor:
    return dispatch.run(lambda kernels: kernels.divide_by_sigma(x, sigma), lambda: x / sigma[:, None, None, None])


@_divide_by_sigma.register_fake
def _(x, sigma):
    return torch.empty_like(x, dtype=torch.result_type(x, sigma))


def _save_divide(ctx, inputs, output) -> None:
    x, sigma = inputs
    ctx.kind = x.dtype
    ctx.save_for_backward(sigma, output)


def _divide_gradients(ctx, gradient):
    sigma, output = ctx.saved_tensors
    dx = gradient / sigma[:, None, None, None]
    dsigma = -(dx * output).sum(dim=(1, 2, 3)).to(sigma.dtype) if ctx.needs_input_grad[1] else None
    return dx.to(ctx.kind), dsigma


_divide_by_sigma.register_autograd(_divide_gradients, setup_context=_save_divide)


def _like(gradient: Tensor, x: Tensor) -> Tensor:
    """A gradient in the memory layout of x, which autograd does not promise."""
    return gradient if gradient.stride() == x.stride() else torch.empty_like(x, dtype=gradient.dtype).copy_(gradient)
