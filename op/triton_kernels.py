"""The Triton kernels behind `op.upfirdn2d` and `op.fused`, and their launches. Import through `op.dispatch.kernels`.

The one module that needs Triton: kernels are compiled from decorated functions, so it is imported at the top, and
nothing imports this module but `op.dispatch.kernels`, on a GPU (or in Triton's interpreter).

Tensors are dense, contiguous or channels-last. Kernels that work on images see them as `pixels × channels` with a
stride for each: tiles are long in the direction that is contiguous. Sums are made in float32.
"""

import contextlib

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    raise ImportError(
        "op.triton_kernels needs Triton (pip install triton); op.upfirdn2d and op.fused do without it."
    ) from None

Tensor = torch.Tensor

ELEMENTS = 1024  # per program of the kernels that work element by element
PROGRAMS = 1024  # that a reduction is split into, about
MOST_PARTS = 64  # of the pixels of an image in a reduction
LARGEST_INT32 = 2**31 - 1


@triton.jit
def _upfirdn2d(
    x, taps, out, total, C, H, W, OH, OW, stride_n, stride_c, stride_y, stride_x, pad_y, pad_x,
    UP: tl.constexpr, DOWN: tl.constexpr, TAPS_Y: tl.constexpr, TAPS_X: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[y] = Σ_a taps[a] u[y·DOWN + TAPS−1−a], u the padded x with UP−1 zeros after every sample; both axes."""
    first = tl.program_id(0)
    if WIDE:
        first = first.to(tl.int64)
    i = first * BLOCK + tl.arange(0, BLOCK)
    inside = i < total
    if CHANNELS_LAST:
        c = i % C
        rest = i // C
        ox = rest % OW
        rest = rest // OW
        oy = rest % OH
        n = rest // OH
    else:
        ox = i % OW
        rest = i // OW
        oy = rest % OH
        rest = rest // OH
        c = rest % C
        n = rest // C
    image = x + n * stride_n + c * stride_c
    sums = tl.zeros([BLOCK], dtype=tl.float32)
    for a in tl.static_range(TAPS_Y):
        y = oy * DOWN + (TAPS_Y - 1 - a) - pad_y
        in_y = inside & (y >= 0) & (y % UP == 0) & (y // UP < H)
        for b in tl.static_range(TAPS_X):
            column = ox * DOWN + (TAPS_X - 1 - b) - pad_x
            there = in_y & (column >= 0) & (column % UP == 0) & (column // UP < W)
            sample = tl.load(image + (y // UP) * stride_y + (column // UP) * stride_x, mask=there, other=0.0)
            sums += sample.to(tl.float32) * tl.load(taps + a * TAPS_X + b)
    tl.store(out + i, sums.to(out.dtype.element_ty), mask=inside)


def upfirdn2d(
    x: Tensor, kernel: Tensor, up: int, down: int, pad_y: int, pad_x: int, out_y: int, out_x: int
) -> Tensor:
    """See `op.upfirdn2d`; padding at the first edge of each axis, and the size of the result."""
    n, c, height, width = x.shape
    channels_last = _channels_last(x)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty((n, c, out_y, out_x), dtype=x.dtype, device=x.device, memory_format=layout)
    total = out.numel()
    if total:
        taps = kernel.to(torch.float32).contiguous()
        with _on(x):
            _upfirdn2d[(triton.cdiv(total, ELEMENTS),)](
                x, taps, out, total, c, height, width, out_y, out_x, *x.stride(), pad_y, pad_x,
                UP=up, DOWN=down, TAPS_Y=taps.shape[0], TAPS_X=taps.shape[1], CHANNELS_LAST=channels_last,
                WIDE=max(total, x.numel()) > LARGEST_INT32 - ELEMENTS, BLOCK=ELEMENTS,
            )  # fmt: skip
    return out


@triton.jit
def _channel_statistics(
    x, means, squares, P, C, part, parts, stride_n, stride_c, stride_p,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean, and sum of squared distances from it, of every channel in one part of the pixels of an image."""
    blocks = tl.cdiv(C, BLOCK_C)
    n = tl.program_id(0) // blocks
    c = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    s = tl.program_id(1)
    begin = s * part
    end = tl.minimum(begin + part, P)
    image = x + n.to(tl.int64) * stride_n + c[None, :] * stride_c
    total = tl.zeros([BLOCK_C], dtype=tl.float32)
    for first in range(begin, end, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        there = (p < end)[:, None] & (c < C)[None, :]
        total += tl.sum(tl.load(image + p[:, None] * stride_p, mask=there, other=0.0).to(tl.float32), axis=0)
    mean = total / (end - begin)
    square = tl.zeros([BLOCK_C], dtype=tl.float32)
    for first in range(begin, end, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        there = (p < end)[:, None] & (c < C)[None, :]
        value = tl.load(image + p[:, None] * stride_p, mask=there, other=0.0).to(tl.float32)
        distance = tl.where(there, value - mean[None, :], 0.0)
        square += tl.sum(distance * distance, axis=0)
    place = (n * parts + s) * C + c
    tl.store(means + place, mean, mask=c < C)
    tl.store(squares + place, square, mask=c < C)


@triton.jit
def _group_statistics(
    means, squares, shift, mean, rstd, P, C, G, part, parts, eps,
    HAS_SHIFT: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean and 1/√(variance + eps) of one group from those of its channels and parts (Chan et al. 1979)."""
    n = tl.program_id(0) // G
    g = tl.program_id(0) % G
    channels = C // G
    k = tl.arange(0, BLOCK_C)
    s = tl.arange(0, BLOCK_S)
    there = (s < parts)[:, None] & (k < channels)[None, :]
    place = (n * parts + s[:, None]) * C + g * channels + k[None, :]
    part_mean = tl.load(means + place, mask=there, other=0.0)
    if HAS_SHIFT:
        part_mean += tl.load(shift + n * C + g * channels + k, mask=k < channels, other=0.0).to(tl.float32)[None, :]
    count = tl.where(there, tl.minimum(part, P - s * part)[:, None], 0).to(tl.float32)
    size = channels * P
    whole = tl.sum(tl.sum(part_mean * count, axis=1), axis=0) / size
    distance = part_mean - whole
    spread = tl.sum(tl.sum(count * distance * distance, axis=1), axis=0)
    spread += tl.sum(tl.sum(tl.load(squares + place, mask=there, other=0.0), axis=1), axis=0)
    tl.store(mean + tl.program_id(0), whole)
    tl.store(rstd + tl.program_id(0), 1 / tl.sqrt(spread / size + eps))


@triton.jit
def _normalised(
    x, shift, mean, rstd, weight, bias, image, there, n, c, p, C, G, stride_p, HAS_SHIFT: tl.constexpr
):  # fmt: skip
    """A tile of x̂, and 1/√(variance + eps), weight and bias of its channels."""
    value = tl.load(image + p[:, None] * stride_p, mask=there, other=0.0).to(tl.float32)
    if HAS_SHIFT:
        value += tl.load(shift + n * C + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    group = n * G + c // (C // G)
    r = tl.load(rstd + group, mask=c < C, other=0.0)
    value = (value - tl.load(mean + group, mask=c < C, other=0.0)[None, :]) * r[None, :]
    w = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    return value, r, w, b


@triton.jit
def _normalise(
    x, shift, mean, rstd, weight, bias, out, P, C, G, stride_n, stride_c, stride_p,
    HAS_SHIFT: tl.constexpr, SILU: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(C, BLOCK_C)
    n = tl.program_id(0) // blocks
    c = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    there = (p < P)[:, None] & (c < C)[None, :]
    offset = n.to(tl.int64) * stride_n + c[None, :] * stride_c
    value, r, w, b = _normalised(
        x, shift, mean, rstd, weight, bias, x + offset, there, n, c, p, C, G, stride_p, HAS_SHIFT
    )
    value = value * w[None, :] + b[None, :]
    if SILU:
        value = value * tl.sigmoid(value)
    tl.store(out + offset + p[:, None] * stride_p, value.to(out.dtype.element_ty), mask=there)


@triton.jit
def _before_activation(gradient, value, w, b, SILU: tl.constexpr):
    """Gradient with respect to x̂·w + b."""
    if SILU:
        z = value * w[None, :] + b[None, :]
        s = tl.sigmoid(z)
        gradient = gradient * s * (1 + z * (1 - s))
    return gradient


@triton.jit
def _gradient_sums(
    gradient, x, shift, mean, rstd, weight, bias, sums, products, P, C, G, part, parts, stride_n, stride_c, stride_p,
    HAS_SHIFT: tl.constexpr, SILU: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Σ dz and Σ dz·x̂ of every channel in one part of the pixels, dz the gradient of x̂·w + b."""
    blocks = tl.cdiv(C, BLOCK_C)
    n = tl.program_id(0) // blocks
    c = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    s = tl.program_id(1)
    begin = s * part
    end = tl.minimum(begin + part, P)
    offset = n.to(tl.int64) * stride_n + c[None, :] * stride_c
    total = tl.zeros([BLOCK_C], dtype=tl.float32)
    product = tl.zeros([BLOCK_C], dtype=tl.float32)
    for first in range(begin, end, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        there = (p < end)[:, None] & (c < C)[None, :]
        value, r, w, b = _normalised(
            x, shift, mean, rstd, weight, bias, x + offset, there, n, c, p, C, G, stride_p, HAS_SHIFT
        )
        dz = tl.load(gradient + offset + p[:, None] * stride_p, mask=there, other=0.0).to(tl.float32)
        dz = _before_activation(dz, value, w, b, SILU)
        total += tl.sum(dz, axis=0)
        product += tl.sum(dz * value, axis=0)
    place = (n * parts + s) * C + c
    tl.store(sums + place, total, mask=c < C)
    tl.store(products + place, product, mask=c < C)


@triton.jit
def _gradient(
    gradient, x, shift, mean, rstd, weight, bias, constant, linear, out, P, C, G, stride_n, stride_c, stride_p,
    HAS_SHIFT: tl.constexpr, SILU: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx = (dz·w − constant − linear·x̂) / √(variance + eps), the two of the group."""
    blocks = tl.cdiv(C, BLOCK_C)
    n = tl.program_id(0) // blocks
    c = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    there = (p < P)[:, None] & (c < C)[None, :]
    offset = n.to(tl.int64) * stride_n + c[None, :] * stride_c
    value, r, w, b = _normalised(
        x, shift, mean, rstd, weight, bias, x + offset, there, n, c, p, C, G, stride_p, HAS_SHIFT
    )
    dz = tl.load(gradient + offset + p[:, None] * stride_p, mask=there, other=0.0).to(tl.float32)
    dz = _before_activation(dz, value, w, b, SILU)
    group = n * G + c // (C // G)
    a = tl.load(constant + group, mask=c < C, other=0.0)
    k = tl.load(linear + group, mask=c < C, other=0.0)
    dx = (dz * w[None, :] - a[None, :] - k[None, :] * value) * r[None, :]
    tl.store(out + offset + p[:, None] * stride_p, dx.to(out.dtype.element_ty), mask=there)


def group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised x, and mean and 1/√(variance + eps) of every image and group, float32 `(batch, groups)`."""
    n, c = x.shape[:2]
    pixels, strides, block_p, block_c = _tiles(x)
    part, parts = _parts(pixels, block_p, n * triton.cdiv(c, block_c))
    means, squares = torch.empty((2, n, parts, c), dtype=torch.float32, device=x.device)
    mean, rstd = (torch.empty((n, groups), dtype=torch.float32, device=x.device) for _ in range(2))
    out = torch.empty_like(x)
    blocks = n * triton.cdiv(c, block_c)
    given = x if shift is None else shift  # a pointer that is not read stands for none
    with _on(x):
        _channel_statistics[(blocks, parts)](
            x, means, squares, pixels, c, part, parts, *strides, BLOCK_P=block_p, BLOCK_C=block_c
        )
        _group_statistics[(n * groups,)](
            means, squares, given, mean, rstd, pixels, c, groups, part, parts, eps, HAS_SHIFT=shift is not None,
            BLOCK_S=triton.next_power_of_2(parts), BLOCK_C=triton.next_power_of_2(c // groups),
        )  # fmt: skip
        _normalise[(blocks, triton.cdiv(pixels, block_p))](
            x, given, mean, rstd, weight, bias, out, pixels, c, groups, *strides,
            HAS_SHIFT=shift is not None, SILU=silu, BLOCK_P=block_p, BLOCK_C=block_c,
        )  # fmt: skip
    return out, mean, rstd


def group_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, mean: Tensor, rstd: Tensor,
    groups: int, silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight and bias."""
    n, c = x.shape[:2]
    pixels, strides, block_p, block_c = _tiles(x)
    blocks = n * triton.cdiv(c, block_c)
    part, parts = _parts(pixels, block_p, blocks)
    sums, products = torch.empty((2, n, parts, c), dtype=torch.float32, device=x.device)
    given = x if shift is None else shift
    tiles = {"HAS_SHIFT": shift is not None, "SILU": silu, "BLOCK_P": block_p, "BLOCK_C": block_c}
    out = torch.empty_like(x)
    with _on(x):
        _gradient_sums[(blocks, parts)](
            gradient, x, given, mean, rstd, weight, bias, sums, products, pixels, c, groups, part, parts, *strides,
            **tiles,
        )  # fmt: skip
        sums, products = sums.sum(dim=1), products.sum(dim=1)  # (batch, channels)
        size = pixels * c // groups
        constant, linear = (
            (total * weight.float()).view(n, groups, -1).sum(dim=2).div_(size) for total in (sums, products)
        )
        _gradient[(blocks, triton.cdiv(pixels, block_p))](
            gradient, x, given, mean, rstd, weight, bias, constant, linear, out, pixels, c, groups, *strides, **tiles
        )
    return out, products.sum(dim=0).to(weight.dtype), sums.sum(dim=0).to(bias.dtype)


@triton.jit
def _scaled_sum(
    x, h, scale, out, total, per_image, factor,
    HAS_H: tl.constexpr, HAS_SCALE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0)
    if WIDE:
        first = first.to(tl.int64)
    i = first * BLOCK + tl.arange(0, BLOCK)
    inside = i < total
    value = tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
    if HAS_H:
        value += tl.load(h + i, mask=inside, other=0.0).to(tl.float32)
    if HAS_SCALE:
        value = value / tl.load(scale + i // per_image, mask=inside, other=1.0).to(tl.float32)
    else:
        value = value * factor
    tl.store(out + i, value.to(out.dtype.element_ty), mask=inside)


def scaled_sum(x: Tensor, h: Tensor, factor: float) -> Tensor:
    """factor · (x + h), both dense in the same layout."""
    out = torch.empty_like(x, dtype=torch.result_type(x, h))
    return _launch_scaled_sum(x, h, x, out, factor, has_h=True, has_scale=False)


def divide_by_sigma(x: Tensor, sigma: Tensor) -> Tensor:
    """Every image of x divided by its own number."""
    out = torch.empty_like(x, dtype=torch.result_type(x, sigma))
    return _launch_scaled_sum(x, x, sigma.contiguous(), out, 1.0, has_h=False, has_scale=True)


def _launch_scaled_sum(x: Tensor, h: Tensor, scale: Tensor, out: Tensor, factor: float, has_h: bool, has_scale: bool):
    total = x.numel()
    if total:
        with _on(x):
            _scaled_sum[(triton.cdiv(total, ELEMENTS),)](
                x, h, scale, out, total, total // len(x), factor, HAS_H=has_h, HAS_SCALE=has_scale,
                WIDE=total > LARGEST_INT32 - ELEMENTS, BLOCK=ELEMENTS,
            )  # fmt: skip
    return out


def _channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _tiles(x: Tensor) -> tuple[int, tuple[int, int, int], int, int]:
    """Pixels of an image, strides of (image, channel, pixel), and the pixels and channels of a tile."""
    n, c, height, width = x.shape
    pixels = height * width
    if _channels_last(x):
        block_c = min(triton.next_power_of_2(c), 128)
        return pixels, (pixels * c, 1, c), max(1, ELEMENTS * 4 // block_c), block_c
    return pixels, (pixels * c, pixels, 1), min(ELEMENTS * 2, triton.next_power_of_2(pixels)), 1


def _parts(pixels: int, block: int, programs: int) -> tuple[int, int]:
    """Length and number of the parts that the pixels of an image are reduced in, so that a GPU is filled."""
    wanted = min(MOST_PARTS, triton.cdiv(pixels, block), max(1, PROGRAMS // max(1, programs)))
    part = triton.cdiv(triton.cdiv(pixels, wanted), block) * block
    return part, triton.cdiv(pixels, part)


def _on(x: Tensor):
    """Kernels are launched on the current device, which need not be that of x."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
