"""Numba kernels of low rank along the motion for CPUs; `mri.lowrank.along_motion` has the plain form of each.

A group of patches is gathered, its Gram matrix diagonalised, shrunk and put back without leaving the cache. The kernels
release Python's lock, so that threads share the groups. Work is always divided into PARTS, whose sums are added in
order: results do not depend on the number of threads.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numba import njit

Tensor = torch.Tensor

PARTS = 8
QL_ITERATIONS = 50  # per eigenvalue, at most; 2 is usual

kernel = partial(njit, nogil=True, fastmath=True, error_model="numpy")
compiled = kernel(cache=True)
# For kernels called by other kernels. Without forceinline, the caller calls the kernel itself in the process that
# compiles it, but a copy in its own object file when it is loaded from the cache. The copy is optimised differently,
# so fastmath rounds differently, and the first run after an installation would differ in some bits from all later ones.
inlined = kernel(forceinline=True)


def in_threads(job: Callable[[int], None], count: int) -> None:
    """`job(0)` … `job(count - 1)` on as many threads as PyTorch uses."""
    threads = min(torch.get_num_threads(), count)
    if threads == 1:
        for number in range(count):
            job(number)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(job, range(count)))


@inlined
def _tridiagonal(ar, ai, d, e, tau_r, tau_i):  # type: ignore[no-untyped-def]
    """Householder reduction of a Hermitian matrix (lower triangle) to a real tridiagonal one, in place.

    LAPACK's xHETD2: A = Q T Qᴴ, Q the product of 1 − τ v vᴴ; v is left below the subdiagonal, d and e are T.
    """
    n = len(d)
    for i in range(n - 1):
        alpha_r, alpha_i = ar[i + 1, i], ai[i + 1, i]
        norm = np.float32(0)
        for j in range(i + 2, n):
            norm += ar[j, i] * ar[j, i] + ai[j, i] * ai[j, i]
        if norm == 0 and alpha_i == 0:
            tau_r[i], tau_i[i], e[i] = 0, 0, alpha_r
            d[i] = ar[i, i]
            continue
        beta = np.float32(math.sqrt(alpha_r * alpha_r + alpha_i * alpha_i + norm))
        if alpha_r > 0:
            beta = -beta
        tr, ti = (beta - alpha_r) / beta, -alpha_i / beta
        # v = x / (alpha − beta), its first entry 1
        qr, qi = alpha_r - beta, alpha_i
        q = qr * qr + qi * qi
        qr, qi = qr / q, -qi / q
        ar[i + 1, i], ai[i + 1, i] = 1, 0
        for j in range(i + 2, n):
            vr, vi = ar[j, i], ai[j, i]
            ar[j, i], ai[j, i] = vr * qr - vi * qi, vr * qi + vi * qr
        # w = τ A v, kept in row i of the unused upper triangle
        dot_r, dot_i = np.float32(0), np.float32(0)
        for j in range(i + 1, n):
            sr, si = np.float32(0), np.float32(0)
            for k in range(i + 1, j + 1):  # A_jk
                sr += ar[j, k] * ar[k, i] - ai[j, k] * ai[k, i]
                si += ar[j, k] * ai[k, i] + ai[j, k] * ar[k, i]
            for k in range(j + 1, n):  # conj(A_kj)
                sr += ar[k, j] * ar[k, i] + ai[k, j] * ai[k, i]
                si += ar[k, j] * ai[k, i] - ai[k, j] * ar[k, i]
            wr, wi = tr * sr - ti * si, tr * si + ti * sr
            ar[i, j], ai[i, j] = wr, wi
            dot_r += wr * ar[j, i] + wi * ai[j, i]  # wᴴ v
            dot_i += wr * ai[j, i] - wi * ar[j, i]
        # w ← w − ½ τ (wᴴ v) v
        hr, hi = np.float32(-0.5) * (tr * dot_r - ti * dot_i), np.float32(-0.5) * (tr * dot_i + ti * dot_r)
        for j in range(i + 1, n):
            ar[i, j] += hr * ar[j, i] - hi * ai[j, i]
            ai[i, j] += hr * ai[j, i] + hi * ar[j, i]
        # A ← A − v wᴴ − w vᴴ
        for j in range(i + 1, n):
            vr, vi, wr, wi = ar[j, i], ai[j, i], ar[i, j], ai[i, j]
            for k in range(i + 1, j + 1):
                xr, xi, yr, yi = ar[i, k], ai[i, k], ar[k, i], ai[k, i]
                ar[j, k] -= vr * xr + vi * xi + wr * yr + wi * yi
                ai[j, k] -= vi * xr - vr * xi + wi * yr - wr * yi
        tau_r[i], tau_i[i], e[i] = tr, ti, beta
        d[i] = ar[i, i]
    d[n - 1] = ar[n - 1, n - 1]


@inlined
def _ql(d, e, z, least):  # type: ignore[no-untyped-def]
    """Implicit QL (EISPACK's tql2): eigenvalues in d, eigenvectors in the rows of z, which begins as 1.

    The large ones usually come first, as T comes from a Lanczos iteration. As soon as Gershgorin's circles show that
    none of the others is larger than `least`, these are set to 0, and their eigenvectors are not found.
    """
    n = len(d)
    for first in range(n):
        bound, before = np.float32(0), np.float32(0)
        for i in range(first, n):
            after = abs(e[i])
            bound = max(bound, before + d[i] + after)
            before = after
        if bound <= least:
            d[first:] = 0
            return
        for _ in range(QL_ITERATIONS):
            m = first
            while m < n - 1:
                size = abs(d[m]) + abs(d[m + 1])
                if abs(e[m]) <= np.float32(6e-8) * size:
                    break
                m += 1
            if m == first:
                break
            g = (d[first + 1] - d[first]) / (np.float32(2) * e[first])
            r = np.float32(math.sqrt(g * g + np.float32(1)))
            g = d[m] - d[first] + e[first] / (g + (r if g >= 0 else -r))
            s, c, p = np.float32(1), np.float32(1), np.float32(0)
            split = False
            for i in range(m - 1, first - 1, -1):
                f, b = s * e[i], c * e[i]
                r = np.float32(math.sqrt(f * f + g * g))
                e[i + 1] = r
                if r == 0:
                    d[i + 1] -= p
                    e[m] = 0
                    split = True
                    break
                s, c = f / r, g / r
                g = d[i + 1] - p
                r = (d[i] - g) * s + np.float32(2) * c * b
                p = s * r
                d[i + 1] = g + p
                g = c * r - b
                upper, lower = z[i + 1], z[i]
                for k in range(n):
                    f = upper[k]
                    upper[k] = s * lower[k] + c * f
                    lower[k] = c * lower[k] - s * f
            if split:
                continue
            d[first] -= p
            e[first] = g
            e[m] = 0


@compiled
def _shrink(re, im, corners, patch, height, width, threshold, sum_re, sum_im):  # type: ignore[no-untyped-def]
    """Add the shrunk groups `corners` of the padded image to the padded sums."""
    groups, n = corners.shape
    pixels = patch * patch
    gr, gi = np.empty((n, pixels), np.float32), np.empty((n, pixels), np.float32)
    ar, ai = np.empty((n, n), np.float32), np.empty((n, n), np.float32)
    d, e = np.empty(n, np.float32), np.empty(n, np.float32)
    tr, ti = np.empty(n, np.float32), np.empty(n, np.float32)
    z = np.empty((n, n), np.float32)
    ur, ui = np.empty(n, np.float32), np.empty(n, np.float32)
    cr, ci = np.empty(pixels, np.float32), np.empty(pixels, np.float32)
    low_r, low_i = np.empty((n, pixels), np.float32), np.empty((n, pixels), np.float32)
    frame, row, column = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    square = np.float32(threshold * threshold)
    for group in range(groups):
        for i in range(n):
            place = corners[group, i]
            frame[i] = place // (height * width)
            rest = place - frame[i] * height * width
            row[i] = rest // width
            column[i] = rest - row[i] * width
            for a in range(patch):
                line_r, line_i = re[frame[i], row[i] + a, column[i] :], im[frame[i], row[i] + a, column[i] :]
                own_r, own_i = gr[i, a * patch :], gi[i, a * patch :]
                for b in range(patch):
                    own_r[b], own_i[b] = line_r[b], line_i[b]
        for i in range(n):
            for j in range(i + 1):
                sr, si = np.float32(0), np.float32(0)
                for p in range(pixels):
                    sr += gr[i, p] * gr[j, p] + gi[i, p] * gi[j, p]
                    si += gi[i, p] * gr[j, p] - gr[i, p] * gi[j, p]
                ar[i, j], ai[i, j] = sr, si
        _tridiagonal(ar, ai, d, e, tr, ti)
        e[n - 1] = 0
        z[:] = 0
        for i in range(n):
            z[i, i] = 1
        _ql(d, e, z, square)
        low_r[:] = 0
        low_i[:] = 0
        for k in range(n):
            if d[k] <= square:
                continue
            for i in range(n):
                ur[i], ui[i] = z[k, i], 0
            for i in range(n - 2, -1, -1):  # u ← (1 − τ v vᴴ) u
                sr, si = np.float32(0), np.float32(0)
                for j in range(i + 1, n):
                    sr += ar[j, i] * ur[j] + ai[j, i] * ui[j]
                    si += ar[j, i] * ui[j] - ai[j, i] * ur[j]
                sr, si = tr[i] * sr - ti[i] * si, tr[i] * si + ti[i] * sr
                for j in range(i + 1, n):
                    ur[j] -= sr * ar[j, i] - si * ai[j, i]
                    ui[j] -= sr * ai[j, i] + si * ar[j, i]
            cr[:] = 0
            ci[:] = 0
            for i in range(n):
                xr, xi = ur[i], ui[i]
                for p in range(pixels):
                    cr[p] += xr * gr[i, p] + xi * gi[i, p]
                    ci[p] += xr * gi[i, p] - xi * gr[i, p]
            gain = np.float32(1) - square / d[k]
            for i in range(n):
                xr, xi = gain * ur[i], gain * ui[i]
                for p in range(pixels):
                    low_r[i, p] += xr * cr[p] - xi * ci[p]
                    low_i[i, p] += xr * ci[p] + xi * cr[p]
        for i in range(n):
            for a in range(patch):
                line_r, line_i = sum_re[frame[i], row[i] + a, column[i] :], sum_im[frame[i], row[i] + a, column[i] :]
                own_r, own_i = low_r[i, a * patch :], low_i[i, a * patch :]
                for b in range(patch):
                    line_r[b] += own_r[b]
                    line_i[b] += own_i[b]


def shrink_groups(image: Tensor, corners: Tensor, patch: int, threshold: float) -> Tensor:
    """Sums over every pixel of the patches of all groups with shrunk singular values, complex as `image`.

    Parameters
    ----------
    image
        complex64 `(frames, height, width)`; patches wrap around.
    corners
        int64 `(groups, members)`, see `mri.lowrank.along_motion.Tracks`.
    patch
        side, pixels.
    threshold
        of the garrote.
    """
    frames, height, width = image.shape
    margin = patch - 1
    values = np.pad(image.numpy(), ((0, 0), (0, margin), (0, margin)), mode="wrap")
    re, im = np.ascontiguousarray(values.real), np.ascontiguousarray(values.imag)
    sums = np.zeros((PARTS, 2, *re.shape), np.float32)
    parts = np.array_split(corners.numpy(), PARTS)

    def job(number: int) -> None:
        _shrink(re, im, parts[number], patch, height, width, threshold, *sums[number])

    in_threads(job, PARTS)
    total = sums.sum(axis=0)
    folded = total[:, :, :height, :width].copy()
    folded[:, :, :margin] += total[:, :, height:, :width]
    folded[:, :, :, :margin] += total[:, :, :height, width:]
    folded[:, :, :margin, :margin] += total[:, :, height:, width:]
    return torch.from_numpy(folded[0] + 1j * folded[1])


@compiled
def _match(re, im, reference, others, patch, stride, search, moves, nearness, best, places):  # type: ignore[no-untyped-def]
    """Where each patch of the reference frame is found best in each of the other frames.

    `re`, `im` are padded by `search` in front and by search + patch − 1 behind; `places` are rows·width + columns.
    """
    members, rows, columns = best.shape
    height, width = re.shape[1] - 2 * search - patch + 1, re.shape[2] - 2 * search - patch + 1
    difference = np.empty((height + patch - 1, width + patch - 1), np.float32)
    down_sum = np.empty(width + patch - 1, np.float32)  # over the rows of a patch
    for member in range(members):
        frame = others[member]
        for move in range(len(moves)):
            down, right = moves[move, 0], moves[move, 1]
            for y in range(height + patch - 1):
                # views from the first pixel on: with an index that might be negative, the loop would not be vectorised
                other_r = re[frame, y + search + down, search + right :]
                other_i = im[frame, y + search + down, search + right :]
                own_r, own_i = re[reference, y + search, search:], im[reference, y + search, search:]
                for x in range(width + patch - 1):
                    dr, di = other_r[x] - own_r[x], other_i[x] - own_i[x]
                    difference[y, x] = dr * dr + di * di
            weight = np.float32(1 + nearness * (down * down + right * right))
            for i in range(rows):
                down_sum[:] = 0
                for a in range(patch):
                    line = difference[i * stride + a]
                    for x in range(width + patch - 1):
                        down_sum[x] += line[x]
                for j in range(columns):
                    total = np.float32(0)
                    for b in range(patch):
                        total += down_sum[j * stride + b]
                    total *= weight
                    if total < best[member, i, j]:
                        best[member, i, j] = total
                        places[member, i, j] = (i * stride + down) % height * width + (j * stride + right) % width


def match_patches(
    image: Tensor, references: list[int], near: Tensor, patch: int, stride: int, search: int,
    moves: list[tuple[int, int]], nearness: float,
) -> Tensor:  # fmt: skip
    """Places of the best matches, int64 `(references, members, rows, columns)`, see `along_motion.track`."""
    _, height, width = image.shape
    behind = search + patch - 1
    values = np.pad(image.numpy(), ((0, 0), (search, behind), (search, behind)), mode="wrap")
    re, im = np.ascontiguousarray(values.real), np.ascontiguousarray(values.imag)
    shape = (*near.shape, -(-height // stride), -(-width // stride))
    best, places = np.full(shape, np.inf, np.float32), np.zeros(shape, np.int64)
    others, steps = near.numpy(), np.array(moves, np.int64)

    def job(number: int) -> None:
        _match(re, im, references[number], others[number], patch, stride, search, steps, nearness,
               best[number], places[number])  # fmt: skip

    in_threads(job, len(references))
    return torch.from_numpy(places)
