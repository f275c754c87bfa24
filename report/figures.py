"""Montage, x–t profile and film of several image series side by side."""

from pathlib import Path
from typing import Any

import numpy as np

from utils.files import atomic_path

ERROR_GAIN = 5


def _pyplot() -> Any:
    """matplotlib.pyplot, which takes long to import, for files alone: no screen is needed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def montage(path: Path, series: dict[str, np.ndarray], reference: str | None, frames: list[int]) -> None:
    """PNG: a column per series, a row per frame; below each row, with a reference, the error, five times brighter.

    Parameters
    ----------
    series
        name → magnitude `(frames, height, width)`, all in the same units.
    reference
        the name of the series that errors are taken against, or None.
    frames
        which frames to show.
    """
    top = _display_maximum(series, reference)
    rows = len(frames) * (2 if reference else 1)
    figure, axes = _pyplot().subplots(
        rows, len(series), figsize=(1.9 * len(series), 1.95 * rows + 0.3), squeeze=False, layout="constrained"
    )
    for column, (name, image) in enumerate(series.items()):
        axes[0, column].set_title(name, fontsize=9)
        for i, frame in enumerate(frames):
            axis = axes[i * (2 if reference else 1), column]
            shown = axis.imshow(image[frame], cmap="gray", vmin=0, vmax=top)
            if column == 0:
                axis.set_ylabel(f"frame {frame}", fontsize=8)
            if column == len(series) - 1:
                _scale(figure, shown, axis, max(other[frame].max() for other in series.values()))
            if not reference:
                continue
            axis = axes[2 * i + 1, column]
            if name == reference:  # it has no error; the place says what the row shows
                axis.axis("off")
                axis.text(0.5, 0.5, "||image| − |reference||\nscale at the right", ha="center", fontsize=7)
                continue
            error = np.abs(image[frame] - series[reference][frame])
            shown = axis.imshow(error, cmap="inferno", vmin=0, vmax=top / ERROR_GAIN)
            if column == len(series) - 1:
                errors = (np.abs(other[frame] - series[reference][frame]) for other in series.values())
                _scale(figure, shown, axis, max(other.max() for other in errors))
    _finish(figure, axes, path)


def _scale(figure: Any, shown, axis: Any, largest: float) -> None:
    """The scale of a row of pictures, pointed where their `largest` value lies above it."""
    above = bool(largest > shown.get_clim()[1])
    figure.colorbar(shown, ax=axis, shrink=0.9, extend="max" if above else "neither").ax.tick_params(labelsize=6)


def xt_profile(path: Path, series: dict[str, np.ndarray], reference: str | None, row: int) -> None:
    """PNG: one image row over time, for every series; time runs downwards, one band per frame."""
    top = _display_maximum(series, reference)
    figure, axes = _pyplot().subplots(
        1, len(series) + 1, figsize=(1.9 * (len(series) + 1), 2.1), squeeze=False, layout="constrained"
    )
    name, image = next(iter(series.items()))
    axes[0, 0].imshow(image[0], cmap="gray", vmin=0, vmax=top)
    axes[0, 0].axhline(row, color="tab:orange", linewidth=0.8)
    axes[0, 0].set_title(f"{name}, row {row}", fontsize=9)
    for axis, (name, image) in zip(axes[0, 1:], series.items(), strict=True):
        axis.imshow(
            image[:, row], cmap="gray", vmin=0, vmax=top, aspect=image.shape[2] / image.shape[0],
            interpolation="nearest",
        )  # fmt: skip
        axis.set_title(name, fontsize=9)
    axes[0, 1].set_ylabel("frame, downwards", fontsize=8)
    _finish(figure, axes, path, keep=axes[0, 1])


def film(path: Path, series: dict[str, np.ndarray], reference: str | None, frames_per_second: float = 12) -> None:
    """GIF: the series side by side, each under its name, looping."""
    top = _display_maximum(series, reference)
    pictures = []
    for frame in range(len(next(iter(series.values())))):
        figure, axes = _pyplot().subplots(
            1, len(series), figsize=(1.9 * len(series), 2.2), dpi=90, squeeze=False, layout="constrained"
        )
        for axis, (name, image) in zip(axes[0], series.items(), strict=True):
            axis.imshow(image[frame], cmap="gray", vmin=0, vmax=top)
            axis.set_title(name, fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
        axes[0, 0].set_ylabel(f"frame {frame:2d}", fontsize=8)
        figure.canvas.draw()
        pictures.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
        _pyplot().close(figure)
    with atomic_path(path) as temporary:
        import imageio.v3 as imageio

        imageio.imwrite(temporary, np.stack(pictures), extension=".gif", duration=1000 / frames_per_second, loop=0)


def error_map_picture(
    path: Path, image: np.ndarray, error_std: np.ndarray, error: np.ndarray | None, frame: int
) -> None:
    """PNG: a frame, its likely error, and where it is known the error itself on the same scale.

    All magnitudes `(frames, height, width)` in the same units.
    """
    maps = {"likely error": error_std[frame]} | ({} if error is None else {"error, complex": error[frame]})
    top = float(np.percentile(error_std[frame], 99.5))
    figure, axes = _pyplot().subplots(1, 1 + len(maps), figsize=(2.4 * (1 + len(maps)), 2.3), layout="constrained")
    axes[0].imshow(image[frame], cmap="gray", vmin=0, vmax=np.percentile(image, 99.5))
    axes[0].set_title(f"gldm, frame {frame}", fontsize=9)
    for axis, (name, values) in zip(axes[1:], maps.items(), strict=True):
        shown = axis.imshow(values, cmap="inferno", vmin=0, vmax=top)
        axis.set_title(name, fontsize=9)
    _scale(figure, shown, axes[-1], max(values[frame].max() for values in (error_std, error) if values is not None))
    _finish(figure, axes, path)


def _display_maximum(series: dict[str, np.ndarray], reference: str | None) -> float:
    """White: the 99.5th percentile of the reference, or of the last series."""
    shown = series[reference] if reference else list(series.values())[-1]
    return float(np.percentile(shown, 99.5))


def _finish(figure: Any, axes: np.ndarray, path: Path, keep: Any = None) -> None:
    """Write the PNG, without the numbers of the axes but those of `keep`'s rows."""
    for axis in axes.flat:
        axis.set_xticks([])
        if axis is keep:
            axis.tick_params(labelsize=6)
        else:
            axis.set_yticks([])
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches="tight")
    _pyplot().close(figure)
