"""One picture for a table of quality: a frame, its error and an x–t profile of every method."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from report.figures import ERROR_GAIN
from utils.files import atomic_path


def panel(path: Path, series: dict[str, np.ndarray], reference: str, titles: dict[str, str], row: int) -> None:
    """PNG: a column per series; a frame, its error × `ERROR_GAIN`, and one image row over time.

    Parameters
    ----------
    series
        name → magnitude `(frames, height, width)`, all in the same units; first the reference.
    reference
        the name of the series that errors are taken against.
    titles
        name → what stands above the column.
    row
        of the x–t profile; time runs downwards.
    """
    truth = series[reference]
    frames, height, width = truth.shape
    frame = frames // 3  # near the end of systole, where frames differ most from their neighbours
    top = float(np.percentile(truth, 99.8))
    shape = {"figsize": (1.7 * len(series), 4.8), "layout": "constrained"}
    figure, axes = plt.subplots(3, len(series), height_ratios=(2, 2, 1), squeeze=False, **shape)
    for column, (name, image) in enumerate(series.items()):
        error = np.abs(image[frame] - truth[frame])
        axes[0, column].imshow(image[frame], cmap="gray", vmin=0, vmax=top)
        axes[0, column].set_title(titles[name], fontsize=8)
        axes[1, column].imshow(ERROR_GAIN * error, cmap="inferno", vmin=0, vmax=top)
        profile = {"aspect": width / frames / 2, "interpolation": "nearest"}
        axes[2, column].imshow(image[:, row], cmap="gray", vmin=0, vmax=top, **profile)
    for axis, label in zip(axes[:, 0], (f"frame {frame}", f"error × {ERROR_GAIN}", f"row {row}, t ↓"), strict=True):
        axis.set_ylabel(label, fontsize=8)
    axes[0, 0].axhline(row, color="tab:orange", linewidth=0.8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
