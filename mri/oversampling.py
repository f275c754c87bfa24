"""Removing the oversampling: of the readout from k-space, also where the echo is partial; of the phase from images."""

import torch

from mri.fourier import fft1c

Tensor = torch.Tensor

DAMPING = 1e-3  # of the least squares of a partial echo; a bias of 0.1 % of the signal


def cropped_matrix(width: int, oversampling: float) -> int:
    """Samples along an axis without its oversampling."""
    return round(width / oversampling)


def crop_rows(images: Tensor, rows: int) -> Tensor:
    """The central rows of images `(..., height, width)`, their centre height//2 at rows//2."""
    first = images.shape[-2] // 2 - rows // 2
    return images[..., first : first + rows, :]


def crop_readout(kspace: Tensor, mask: Tensor, oversampling: float) -> tuple[Tensor, Tensor]:
    """The k-space of the central part of the field of view along the readout.

    A complete readout is transformed, cropped and transformed back. Of a partial echo the zeros are no signal: there
    the k-space k of the cropped field of view solves min ‖A k − y‖² + λ‖k‖², where A maps it to the measured samples
    y. For a complete readout and λ = 0 this is the same.

    Parameters
    ----------
    kspace
        complex `(frames, coils, ky, kx)`, 0 outside `mask`; the readout is kx.
    mask
        boolean `(frames, ky, kx)`.
    oversampling
        factor by which the readout is oversampled.

    Returns
    -------
    k-space `(frames, coils, ky, kx / oversampling)` with the same image intensities, 0 where nothing was measured, and
    its mask.
    """
    width = kspace.shape[-1]
    kept = cropped_matrix(width, oversampling)
    if kept == width:
        return kspace, mask
    index = (torch.arange(kept) - kept // 2) * (width / kept) + width // 2
    nearest = index.round().long().clamp(0, width - 1).to(mask.device)
    model = _readout_model(width, kept)
    cropped = kspace.new_zeros((*kspace.shape[:-1], kept))
    for pattern in mask.flatten(0, 1).unique(dim=0):
        if not pattern.any():
            continue
        lines = (mask == pattern).all(dim=-1)  # (frames, ky)
        inverse = _inverse(model, pattern.cpu()).to(kspace)
        sampled = kspace.movedim(1, 2)[lines]  # (lines, coils, kx)
        values = torch.where(pattern[nearest], sampled[..., pattern] @ inverse.mT, 0)
        cropped.movedim(1, 2)[lines] = values
    return cropped, mask[..., nearest]


def _readout_model(width: int, kept: int) -> Tensor:
    """A, complex128 `(width, kept)`: from k-space of the central field of view to that of the whole one."""
    image = fft1c(torch.eye(kept, dtype=torch.complex128), inverse=True).mT  # columns: image of each sample
    padded = torch.zeros(width, kept, dtype=torch.complex128)
    start = width // 2 - kept // 2
    padded[start : start + kept] = image
    return fft1c(padded.mT).mT


def _inverse(model: Tensor, pattern: Tensor) -> Tensor:
    """From the measured samples of a readout to the k-space of the central field of view."""
    if pattern.all():
        return model.mH
    sampled = model[pattern]
    normal = sampled.mH @ sampled + DAMPING * torch.eye(model.shape[1], dtype=model.dtype)
    return torch.linalg.solve(normal, sampled.mH)
