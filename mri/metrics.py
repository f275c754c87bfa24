"""Image quality against a reference, after the reconstruction is final."""

import numpy as np
import torch
from scipy.ndimage import gaussian_laplace
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from utils.errors import InputError

COLUMNS = ("psnr", "ssim", "mse_e4", "nmse")
COMMON_SCALE_COLUMNS = ("psnr_common", "ssim_common", "hfen", "xt_error")


def evaluate(image: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    """Score a reconstruction by the published metrics and by those that published scaling hides.

    Parameters
    ----------
    image, reference
        `(frames, height, width)`, complex or magnitude, in the same units.

    Returns
    -------
    dict of
        `psnr` (dB), `ssim`, `mse_e4` (MSE × 10⁴): magnitudes, each frame of each divided by its own maximum,
        mean over frames (as published); `psnr_std`: its standard deviation over frames; `nmse`: squared
        error of the magnitudes over the squared norm of the reference, no rescaling; `psnr_common`,
        `ssim_common`: range the reference's maximum over all frames; `hfen`: normalised error of the
        Laplacian of Gaussian of width 1.5 pixels (Ravishankar & Bresler 2011); `xt_error`: normalised error
        of the x–t profile through the row that changes most.

    Raises
    ------
    InputError
        when the shapes differ.
    """
    if image.shape != reference.shape:
        raise InputError(
            f"the reference's shape {tuple(reference.shape)} is not the reconstruction's {tuple(image.shape)}; "
            "give the fully sampled scan of the same frames and size."
        )
    rec = image.detach().cpu().abs().double().numpy()
    ref = reference.detach().cpu().abs().double().numpy()
    own = [(_over_maximum(r), _over_maximum(f)) for r, f in zip(rec, ref, strict=True)]
    psnr = [_psnr(r, f, 1) for r, f in own]
    top = ref.max()
    row = moving_row(reference)
    return {
        "psnr": float(np.mean(psnr)),
        "psnr_std": float(np.std(psnr)) if np.isfinite(psnr).all() else 0.0,
        "ssim": float(np.mean([structural_similarity(f, r, data_range=1) for r, f in own])),
        "mse_e4": float(np.mean([np.mean((f - r) ** 2) for r, f in own]) * 1e4),
        "nmse": float(((rec - ref) ** 2).sum() / (ref**2).sum()),
        "psnr_common": float(np.mean([_psnr(r, f, top) for r, f in zip(rec, ref, strict=True)])),
        "ssim_common": float(
            np.mean([structural_similarity(f, r, data_range=top) for r, f in zip(rec, ref, strict=True)])
        ),
        "hfen": _normalised_error(_edges(rec), _edges(ref)),
        "xt_error": _normalised_error(rec[:, row], ref[:, row]),
    }


def moving_row(image: torch.Tensor) -> int:
    """The row whose magnitude varies most over the frames: where an x–t profile shows the heart."""
    variance = image.detach().cpu().abs().var(dim=0).sum(dim=-1)
    # a window of rows, so that a single noisy line does not win
    smooth = torch.nn.functional.avg_pool1d(variance[None, None], 5, 1, 2, count_include_pad=False)
    return int(smooth.argmax())


def _psnr(frame: np.ndarray, reference: np.ndarray, data_range: float) -> float:
    """dB; infinite for equal frames."""
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(reference, frame, data_range=data_range))


def _over_maximum(frame: np.ndarray) -> np.ndarray:
    return frame / max(frame.max(), np.finfo(float).tiny)


def _edges(frames: np.ndarray) -> np.ndarray:
    return np.stack([gaussian_laplace(frame, 1.5) for frame in frames])


def _normalised_error(value: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))
