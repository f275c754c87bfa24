"""Image series as PNG sheets that a web page can hold: all frames of a series, side by side, in 8 bits."""

import base64
import io
import math

import numpy as np

MOST_PIXELS = 2**22  # of a sheet: 64 frames of 256 x 256; keeps a page below 30 MB
COIL_SIDE = 96  # pixels of the longer side of a coil map
COIL_PIXELS = 2**16  # of all coil maps together


def coarsening(frames: int, height: int, width: int, most: int = MOST_PIXELS) -> int:
    """The smallest k so that blocks of k × k pixels, taken as one, leave at most `most` pixels in all frames."""
    k = 1
    while frames * math.ceil(height / k) * math.ceil(width / k) > most:
        k += 1
    return k


def coarsened(series: np.ndarray, k: int) -> np.ndarray:
    """Mean over blocks of k × k pixels of `(frames, height, width)`; the edge is repeated where a block is cut."""
    if k == 1:
        return series
    frames, height, width = series.shape
    padded = np.pad(series, ((0, 0), (0, -height % k), (0, -width % k)), mode="edge")
    return padded.reshape(frames, padded.shape[1] // k, k, padded.shape[2] // k, k).mean(axis=(2, 4))


def sheet_columns(frames: int, height: int, width: int) -> int:
    """Frames in a row of a sheet, for a sheet that is about square."""
    return min(frames, max(1, round(math.sqrt(frames * height / width))))


def sheet(series: np.ndarray, top: float, levels: int = 256) -> str:
    """The frames as one grey PNG, without gamma, as a data URI.

    Parameters
    ----------
    series
        magnitude `(frames, height, width)`; frame i is at row i // columns and column i % columns of the sheet, see
        `sheet_columns`.
    top
        value of byte 255, above which values are clipped; byte 0 is 0.
    levels
        different bytes; fewer make a smaller file.
    """
    frames, height, width = series.shape
    columns = sheet_columns(frames, height, width)
    rows = math.ceil(frames / columns)
    share = np.clip(np.nan_to_num(series) / top, 0, 1)
    tiles = np.zeros((rows * columns, height, width), np.uint8)
    tiles[:frames] = np.round(np.round(share * (levels - 1)) * (255 / (levels - 1)))
    return png(tiles.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width))


def coil_pictures(maps: np.ndarray) -> list[str]:
    """Coil maps `(coils, height, width)` as small PNGs: brightness is the magnitude, 0 to 1, hue the phase."""
    from matplotlib.colors import hsv_to_rgb

    coils, height, width = maps.shape
    k = max(math.ceil(max(height, width) / COIL_SIDE), coarsening(coils, height, width, COIL_PIXELS))
    small = coarsened(maps, k)
    hue = np.angle(small) / (2 * np.pi) % 1
    colours = hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.55), np.clip(np.abs(small), 0, 1)], axis=-1))
    return [png(np.round(255 * one).astype(np.uint8)) for one in colours]


def thumbnail(image: np.ndarray, aspect: float, height: int = 112) -> str:
    """One magnitude image `(height, width)` as a small PNG; white is its 99.5th percentile.

    `aspect` is the height of a pixel over its width.
    """
    from PIL import Image

    top = max(float(np.percentile(image, 99.5)), np.finfo(np.float32).tiny)
    grey = Image.fromarray(np.round(255 * np.clip(image / top, 0, 1)).astype(np.uint8))
    width = max(1, round(height * image.shape[1] / (image.shape[0] * aspect)))
    return _uri(grey.resize((width, height), Image.Resampling.LANCZOS))


def png(array: np.ndarray) -> str:
    """uint8 `(height, width)` or `(height, width, 3)` as the data URI of a PNG."""
    from PIL import Image

    return _uri(Image.fromarray(array))


def _uri(picture) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
