"""Image quality against a reference, after the reconstruction is final: one set of scores for every table."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from utils.errors import InputError

COMMON_SCALE_COLUMNS = (
    "psnr_common", "ssim_common", "nmse", "gain", "gain_range", "edge_time", "hfen", "xt_error",
)  # fmt: skip
PAPER_COLUMNS = ("psnr", "psnr_std", "ssim", "mse_e4")


MOVING = 0.01  # share of the pixels that may be moving edges: those with the largest frame-to-frame change
LEAST_STEP = 0.15  # height of a moving edge, relative to the reference's largest magnitude
PLATEAU = 2  # frames before and after a step in which the reference has to stay near its level
STEADY = 0.25  # deviation from that level, relative to the height of the step
CONTINUES = 0.1  # a step goes on while a frame-to-frame change has this share of its largest


def evaluate(image: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    """Score a reconstruction.

    All scores compare magnitudes, |x̂| of the reconstruction with |x| of the reference.

    Parameters
    ----------
    image, reference
        `(frames, height, width)`, complex or magnitude, in the same units; height and width at least 7.

    Returns
    -------
    dict
        In this order, first on one scale for the whole scan (`COMMON_SCALE_COLUMNS`):

        - `psnr_common`: -10 log₁₀(mean over frames and pixels of (|x̂| - |x|)² / max|x|²), dB. The gain is not
          corrected.
        - `ssim_common`: structural similarity with the range max|x| of the scan, mean over frames.
        - `nmse`: Σ(|x̂| - |x|)² / Σ|x|².
        - `gain`: the scalar g that minimises ‖g|x̂| - |x|‖. It is above 1 if the reconstruction is too dark.
        - `gain_range`: largest minus smallest gain of a single frame. It shows frames that are dimmed.
        - `edge_time`: rise time along time at moving edges relative to the reference, see `edge_time`. 1 is as sharp
          as the reference; above 1.05, time is smoothed.
        - `hfen`: normalised error of the Laplacian of Gaussian of width 1.5 pixels (Ravishankar & Bresler 2011).
        - `xt_error`: normalised error of the x–t profile through the row that changes most.

        Then as published (`PAPER_COLUMNS`), each frame of each image divided by its own maximum:

        - `psnr` (dB), its standard deviation `psnr_std`, `ssim`, and `mse_e4` (MSE × 10⁴): means over frames.

    Raises
    ------
    InputError
        If the shapes differ.
    """
    if image.shape != reference.shape:
        raise InputError(
            f"the reference's shape {tuple(reference.shape)} is not the reconstruction's {tuple(image.shape)}; "
            "give the fully sampled scan of the same frames and size."
        )
    rec = image.detach().cpu().abs().double().numpy()
    ref = reference.detach().cpu().abs().double().numpy()
    frames = list(zip(rec, ref, strict=True))
    gains = [_gain(r, f) for r, f in frames]
    row = moving_row(reference)
    own = [(_over_maximum(r), _over_maximum(f)) for r, f in frames]
    psnr = [_psnr(r, f, 1) for r, f in own]
    return {
        "psnr_common": _psnr(rec, ref, ref.max()),
        "ssim_common": float(np.mean([_ssim(r, f, ref.max()) for r, f in frames])),
        "nmse": float(((rec - ref) ** 2).sum() / (ref**2).sum()),
        "gain": _gain(rec, ref),
        "gain_range": max(gains) - min(gains),
        "edge_time": edge_time(rec, ref),
        "hfen": _normalised_error(_edges(rec), _edges(ref)),
        "xt_error": _normalised_error(rec[:, row], ref[:, row]),
        "psnr": float(np.mean(psnr)),
        "psnr_std": float(np.std(psnr)) if np.isfinite(psnr).all() else 0.0,
        "ssim": float(np.mean([_ssim(r, f, 1) for r, f in own])),
        "mse_e4": float(np.mean([np.mean((f - r) ** 2) for r, f in own]) * 1e4),
    }


def image_error(image: torch.Tensor, reference: torch.Tensor, coils: int) -> torch.Tensor:
    """Magnitude of the complex error, real `(frames, height, width)`.

    With several coils the phase of the image depends on the maps, and is constant in time: the reference is given the
    phase of the image, pixel by pixel. A reference without phase (root sum of squares) is compared in magnitude, which
    leaves out the error in phase.
    """
    if not reference.is_complex():
        return (image.abs() - reference).abs()
    if coils > 1:
        angle = (image * reference.conj()).sum(dim=0).angle()
        reference = reference * torch.polar(torch.ones_like(angle), angle)
    return (image - reference).abs()


def moving_row(image: torch.Tensor) -> int:
    """The row that most moves along itself over the frames: an x–t profile through it shows the heart.

    Variance over time counts by how much of the local gradient lies along the row: an edge parallel to the row, such as
    a breathing chest wall, makes the whole row brighter and darker, and its profile shows no motion.
    """
    magnitude = image.detach().cpu().abs()
    down, along = (one.square() for one in torch.gradient(magnitude.mean(dim=0)))
    windows = torch.stack([magnitude.var(dim=0), down, along])[:, None]
    variance, down, along = torch.nn.functional.avg_pool2d(windows, 5, 1, 2, count_include_pad=False)[:, 0]
    share = along / (down + along).clamp_min(torch.finfo(torch.float32).tiny)
    # windows, so that a single noisy line or pixel does not win
    return int((variance * share).sum(dim=-1).argmax())


# ------------------------------------------------------------------------------------------ temporal sharpness


def edge_time(rec: np.ndarray, ref: np.ndarray) -> float:
    """Median 10–90 % rise time at moving edges, reconstruction over reference.

    Where an edge passes over a pixel, the time course of the pixel is a step. Temporal smoothing lengthens it, which
    errors in squared norm hardly show.

    1. Candidates are the 1 % of the pixels with the largest frame-to-frame change of the reference.
    2. The step of a pixel starts from its largest change and includes the neighbouring changes of the same sign, as
       long as they have at least 10 % of its size. A step counts if it is at least 15 % of max|x| high and if the
       reference stays within 25 % of the height for the 2 frames before and the 2 frames after it (1 at the ends of
       the scan).
    3. The rise time is measured in the window that consists of the step and those frames, in both images. The levels
       0 and 100 % of each image are the medians of its own frames before and after the step, which makes the result
       independent of the gain and robust against noise. The crossings of 10 % and 90 % are interpolated linearly. A
       reconstruction that does not rise gets the length of the window.

    Measured on a human cine and on the heart phantom: noise of 0.01 to 0.02 of max|x| in the reconstruction changes the
    score by about 0.02 and does not bias it. A temporal kernel (0.05, 0.9, 0.05) gives 1.03 to 1.24.

    Parameters
    ----------
    rec, ref
        Magnitudes, `(frames, height, width)`.

    Returns
    -------
    The ratio of the medians over all steps; exactly 1 for the reference itself, nan if nothing moves.
    """
    steps = _moving_edges(ref)
    if not steps:
        return math.nan
    times = [[_rise_time(image[:, step.row, step.column], step) for step in steps] for image in (rec, ref)]
    return float(np.median(times[0]) / np.median(times[1]))


@dataclass(frozen=True)
class _Step:
    """A step in the time course of one pixel of the reference."""

    row: int
    column: int
    first: int  # last frame before it
    last: int  # first frame after it
    sign: float  # 1: the pixel becomes brighter, -1: darker

    def window(self, frames: int) -> tuple[int, int]:
        """First frame, and the frame after the last, of the step with its plateaus."""
        return max(0, self.first - PLATEAU), min(frames, self.last + PLATEAU + 1)


def _moving_edges(ref: np.ndarray) -> list[_Step]:
    """The steps that `edge_time` compares."""
    if len(ref) < 2:
        return []
    changes = np.diff(ref, axis=0)
    largest = np.abs(changes).max(axis=0)
    candidates = (largest >= np.quantile(largest, 1 - MOVING)) & (largest > 0)
    found = []
    for row, column in np.argwhere(candidates):
        change, course = changes[:, row, column], ref[:, row, column]
        first = int(np.abs(change).argmax())
        sign, last = float(np.sign(change[first])), first + 1
        least = CONTINUES * largest[row, column]
        while first > 0 and sign * change[first - 1] >= least:
            first -= 1
        while last < len(change) and sign * change[last] >= least:
            last += 1
        step = _Step(int(row), int(column), first, last, sign)
        start, stop = step.window(len(course))
        if start == first or stop == last + 1:
            continue
        height = abs(course[last] - course[first])
        unsteady = max(
            np.abs(course[start : first + 1] - course[first]).max(), np.abs(course[last:stop] - course[last]).max()
        )
        if height >= LEAST_STEP * ref.max() and unsteady <= STEADY * height:
            found.append(step)
    return found


def _rise_time(course: np.ndarray, step: _Step) -> float:
    """Frames from 10 % to 90 % of a step in a time course `(frames,)`."""
    start, stop = step.window(len(course))
    before, after = np.median(course[start : step.first + 1]), np.median(course[step.last : stop])
    whole = float(stop - start - 1)
    if step.sign * (after - before) <= 0:
        return whole
    level = (course[start:stop] - before) / (after - before)
    up = np.flatnonzero((level[:-1] < 0.9) & (level[1:] >= 0.9))
    if not len(up):
        return whole
    end = up[0] + (0.9 - level[up[0]]) / (level[up[0] + 1] - level[up[0]])
    low = np.flatnonzero(level[: up[0] + 1] <= 0.1)
    if not len(low):
        return float(end)
    begin = low[-1] + (0.1 - level[low[-1]]) / (level[low[-1] + 1] - level[low[-1]])
    return float(end - begin)


# ------------------------------------------------------------------------------------------ one number each


def _psnr(image: np.ndarray, reference: np.ndarray, data_range: float) -> float:
    """dB; infinite for equal images."""
    from skimage.metrics import peak_signal_noise_ratio  # half a second to import

    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(reference, image, data_range=data_range))


def _ssim(image: np.ndarray, reference: np.ndarray, data_range: float) -> float:
    from skimage.metrics import structural_similarity

    return float(structural_similarity(reference, image, data_range=data_range))


def _gain(image: np.ndarray, reference: np.ndarray) -> float:
    """The scalar that fits the image to the reference; infinite for an empty image, 1 if both are empty."""
    power = float((image**2).sum())
    if power == 0:
        return math.inf if reference.any() else 1.0
    return float((image * reference).sum()) / power


def _over_maximum(frame: np.ndarray) -> np.ndarray:
    return frame / max(frame.max(), np.finfo(float).tiny)


def _edges(frames: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_laplace

    return np.stack([gaussian_laplace(frame, 1.5) for frame in frames])


def _normalised_error(value: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(value - reference) / max(np.linalg.norm(reference), np.finfo(float).tiny))
