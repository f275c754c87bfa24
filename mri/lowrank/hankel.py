"""The optimization unit's structured low-rank projection, in the image domain.

Shin et al. 2014 (SAKE): the w×w windows of the k-space of every frame, at every position, are the rows of a
matrix A (positions × frames·w²) of low rank. Project A on its leading right singular vectors and average the
overlapping entries back. With windows that wrap around, A is block-circulant and never needs to be formed:

- (AᴴA)[(t,a),(t',b)] = C_tt'(b−a), the correlation of the k-spaces of frames t and t' at lag b−a, which is a
  Fourier coefficient of conj(x_t) x_t';
- with V the leading eigenvectors of that Hermitian matrix and P = VVᴴ, the average over the entries of A P is
  x_t(u) ← Σ_t' Q_tt'(u) x_t'(u), one frames×frames filter per pixel u, Q the Fourier transform of the sums
  of P over equal lags, divided by w².

Lags reach only w−1, so every Fourier transform here is a product with a (2w−1)×n matrix.
"""

import math

import torch

from mri.fourier import fft2c, ifft2c
from utils.errors import InputError

Tensor = torch.Tensor

EXACT_UP_TO = 2048  # order of the Gram matrix up to which a cold start uses `eigh`
OVERSAMPLING = 16  # columns that subspace iteration carries beyond the rank
COLD_SWEEPS = 12  # subspace iterations of a cold start beyond that order


class HankelLowRank:
    """Projection on rank-`rank` windowed k-space; keeps its subspace from call to call.

    Parameters
    ----------
    window
        w, samples (published: 8).
    rank
        number of singular vectors kept, at most frames·w²; 0: the published share of the matrix's order, 96 of
        16·8², for any number of frames and window.
    sweeps
        subspace iterations per call from the last call's subspace; 0: an exact `eigh` every time.
    """

    def __init__(self, window: int = 8, rank: int = 0, sweeps: int = 1) -> None:
        if window < 1 or rank < 0 or sweeps < 0:
            raise InputError(f"window {window} must be at least 1, rank {rank} and sweeps {sweeps} at least 0.")
        self.window, self.rank, self.sweeps = window, rank, sweeps
        self._carried: Tensor | None = None  # subspace of the last call

    def __call__(self, image: Tensor) -> Tensor:
        """Low-rank image `(frames, height, width)` of a complex image of that shape.

        Raises
        ------
        InputError
            see `check`.
        """
        self.check(*image.shape)
        rank = self.rank or published_rank(len(image), self.window)
        correlation = lag_correlation(image, self.window)
        basis = self._leading_subspace(correlation, len(image), rank)
        return apply_filter(lag_sums(basis, len(image), self.window), image, self.window)

    def check(self, frames: int, height: int, width: int) -> None:
        """Raise `InputError` when the window is larger than k-space or the rank than frames·w²."""
        order = frames * self.window**2
        if self.window > min(height, width):
            raise InputError(f"the window of {self.window} is larger than the {height}×{width} k-space.")
        if self.rank > order:
            raise InputError(f"rank {self.rank} exceeds frames·window² = {order}; choose a smaller rank.")

    def _leading_subspace(self, correlation: Tensor, frames: int, rank: int) -> Tensor:
        """Orthonormal `(frames·w², rank)` basis of the leading eigenvectors of the Gram matrix.

        Subspace iteration carries a few columns more than the rank, which makes it converge at the rate of
        the eigenvalues beyond them, and picks the leading ones by Rayleigh–Ritz.
        """
        order = frames * self.window**2
        carried = min(rank + OVERSAMPLING, order)
        basis, sweeps = self._carried, self.sweeps
        if basis is not None and basis.shape != (order, carried):
            basis = None
        if self.sweeps == 0 or (basis is None and order <= EXACT_UP_TO):
            vectors = torch.linalg.eigh(gram_matrix(correlation, self.window)).eigenvectors
            self._carried = vectors[:, -carried:]
            return vectors[:, -rank:]
        if basis is None:
            generator = torch.Generator().manual_seed(0)
            basis = torch.randn(order, carried, generator=generator, dtype=correlation.dtype)
            basis, sweeps = basis.to(correlation.device), COLD_SWEEPS
        for _ in range(sweeps):
            basis = torch.linalg.qr(_gram_product(correlation, basis, self.window)).Q
        small = basis.mH @ _gram_product(correlation, basis, self.window)
        self._carried = basis @ torch.linalg.eigh(small).eigenvectors
        return self._carried[:, -rank:]


def published_rank(frames: int, window: int) -> int:
    """The published rank ⌊1.5·64⌋ = 96 at 16 frames and window 8, as a share of the matrix's order."""
    return max(1, 96 * frames * window**2 // (16 * 8**2))


def lag_correlation(image: Tensor, window: int) -> Tensor:
    """C_tt'(d) = Σ_u conj(x_t(u)) x_t'(u) exp(−2πi d·u/n) for lags |d| < w: `(2w−1, 2w−1, frames, frames)`.

    A positive factor common to all entries is left out: it changes no eigenvector. Only dx ≥ 0 is computed;
    the rest follows from C_tt'(−d) = conj C_t't(d).
    """
    frames, height, width = image.shape
    dy_phase = _lag_phases(window, height, image)  # (2w−1, height)
    dx_phase = _lag_phases(window, width, image)[window - 1 :]  # (w, width), dx ≥ 0
    rows = []
    for x in image.split(_rows_per_chunk(frames, width, window), dim=1):
        x = x.transpose(0, 1)  # (rows, frames, width)
        modulated = (x.conj()[:, None] * dx_phase[None, :, None]).flatten(1, 2)  # (rows, w·frames, width)
        rows.append(modulated @ x.transpose(1, 2))  # (rows, w·frames, frames)
    half = dy_phase @ torch.cat(rows).flatten(1)
    half = half.reshape(2 * window - 1, window, frames, frames)
    negative = half[:, 1:].flip(0, 1).conj().transpose(-1, -2)
    return torch.cat((negative, half), dim=1)


def gram_matrix(correlation: Tensor, window: int) -> Tensor:
    """AᴴA, `(frames·w², frames·w²)`, columns in the order (frame, ay, ax)."""
    frames = correlation.shape[-1]
    offset = torch.arange(window, device=correlation.device)
    lag = offset[None, :] - offset[:, None] + window - 1  # b − a
    gram = correlation[lag[:, None, :, None], lag[None, :, None, :]]  # (ay, ax, by, bx, t, t')
    return gram.permute(4, 0, 1, 5, 2, 3).reshape(frames * window**2, frames * window**2)


def lag_sums(basis: Tensor, frames: int, window: int) -> Tensor:
    """M_tt'(d) = Σ_{b−a=d} P[(t',b),(t,a)] of P = V Vᴴ: `(2w−1, 2w−1, frames, frames)`.

    The sums are correlations of the basis vectors, done as products of their zero-padded transforms.
    """
    spectrum = _window_spectrum(basis, frames, window)  # (2w·2w, frames, rank)
    product = spectrum.conj() @ spectrum.transpose(1, 2)  # [f, t, t'] = Σ_r conj V_r(f,t) V_r(f,t')
    sums = torch.fft.ifft2(product.reshape(2 * window, 2 * window, frames, frames), dim=(0, 1))
    return _lags_of(sums, window)


def apply_filter(sums: Tensor, image: Tensor, window: int) -> Tensor:
    """x_t(u) ← Σ_t' Q_tt'(u) x_t'(u), Q_tt'(u) = Σ_d M_tt'(d) exp(−2πi d·u/n) / w².

    P is Hermitian, so Q(u) is too, and only its upper triangle is computed.
    """
    frames, height, width = image.shape
    dy_phase = _lag_phases(window, height, image)  # (2w−1, height)
    dx_phase = _lag_phases(window, width, image)  # (2w−1, width)
    first, second = torch.triu_indices(frames, frames, device=image.device)
    pairs = sums[:, :, first, second].flatten(1)  # (2w−1, (2w−1)·pairs)
    by_row = (dy_phase.transpose(0, 1) @ pairs).reshape(height, 2 * window - 1, len(first))
    result = torch.zeros_like(image).transpose(0, 1).contiguous()  # (height, frames, width)
    for start in range(0, height, step := _rows_per_chunk(frames, width, frames)):
        rows = slice(start, start + step)
        q = by_row[rows].transpose(1, 2) @ dx_phase  # (rows, pairs, width)
        x = image[:, rows].transpose(0, 1)
        result[rows].index_add_(1, first, q * x[:, second])
        upper = first != second
        result[rows].index_add_(1, second[upper], q[:, upper].conj() * x[:, first[upper]])
    return result.transpose(0, 1) / window**2


def complete(kspace: Tensor, known: Tensor, window: int = 8, iterations: int = 20) -> Tensor:
    """Fill the k-space locations outside `known` by alternating low-rank projection and data consistency.

    The starting value of an unknown location is 0. Shapes `(frames, height, width)`; samples inside `known` are
    returned untouched.
    """
    window = min(window, *kspace.shape[1:])
    project = HankelLowRank(window)
    scale = kspace.abs().max()
    filled = torch.where(known, kspace, 0) / scale
    for _ in range(iterations):
        filled = torch.where(known, filled, fft2c(project(ifft2c(filled))))
    return torch.where(known, kspace, filled * scale)


def _gram_product(correlation: Tensor, basis: Tensor, window: int) -> Tensor:
    """AᴴA V without the matrix: a correlation over the window offsets, done in Fourier space."""
    frames = correlation.shape[-1]
    kernel = correlation.new_zeros(2 * window, 2 * window, frames, frames)
    index = torch.arange(-(window - 1), window, device=correlation.device)
    kernel[index[:, None], index[None, :]] = correlation
    # (AᴴA V)[t,a] = Σ_t' Σ_b C_tt'(b−a) V[t',b]: a correlation in b, so the kernel's transform is inverse
    spectrum = torch.fft.ifft2(kernel, dim=(0, 1), norm="forward").flatten(0, 1)
    product = spectrum @ _window_spectrum(basis, frames, window)
    product = product.reshape(2 * window, 2 * window, frames, -1)
    product = torch.fft.ifft2(product, dim=(0, 1))[:window, :window]
    return product.permute(2, 0, 1, 3).reshape(basis.shape)


def _window_spectrum(basis: Tensor, frames: int, window: int) -> Tensor:
    """2-D transform over the window of every basis vector, zero-padded to 2w: `(4w², frames, rank)`."""
    vectors = basis.reshape(frames, window, window, -1).permute(1, 2, 0, 3)
    return torch.fft.fft2(vectors, s=(2 * window, 2 * window), dim=(0, 1)).flatten(0, 1)


def _lags_of(circular: Tensor, window: int) -> Tensor:
    """Reorder the first two axes from 0, 1, …, −1 of a length-2w transform to the lags −(w−1) … w−1."""
    index = torch.arange(-(window - 1), window, device=circular.device)
    return circular[index[:, None], index[None, :]]


def _lag_phases(window: int, size: int, like: Tensor) -> Tensor:
    """exp(−2πi d·u/n), lags d = −(w−1) … w−1 by positions u: `(2w−1, size)`."""
    lag = torch.arange(-(window - 1), window, dtype=torch.float64)
    angle = -2 * math.pi / size * lag[:, None] * torch.arange(size, dtype=torch.float64)
    return torch.polar(torch.ones_like(angle), angle).to(like)


def _rows_per_chunk(frames: int, width: int, factor: int) -> int:
    """Image rows per pass, so that `factor` copies of them stay near 32 MiB."""
    return max(1, 2**22 // (frames * width * factor))
