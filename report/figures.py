"""Montage, x–t profile and film of several image series side by side.

Drawn pixel by pixel: a plotting library would take longer than the reconstruction of a small scan.
"""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.files import atomic_path

ERROR_GAIN = 5
TILE = 200  # pixels of the longer side of an image in a picture, about
BIG, SMALL = 13, 11  # heights of letters, pixels
GAP = 6
BAR = 10  # width of a colour bar
LINE = (255, 140, 0)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


@cache
def _inferno() -> np.ndarray:
    """The colour table of errors: (256, 3), bytes."""
    from matplotlib import colormaps

    return np.round(255 * colormaps["inferno"](np.arange(256))[:, :3]).astype(np.uint8)


class Sheet:
    """A white picture that grows with what is put on it; coordinates are pixels from the upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.picture = Image.new("RGB", (width, height), "white")
        self.draw = ImageDraw.Draw(self.picture)

    def image(self, at: tuple[int, int], values: np.ndarray, top: float, size: tuple[int, int], colour=False) -> None:
        """Magnitude `(rows, columns)`, 0 to `top` as black to white or through the colours of errors."""
        levels = np.round(255 * np.clip(np.nan_to_num(values) / max(top, np.finfo(np.float32).tiny), 0, 1))
        levels = levels.astype(np.uint8)
        shown = Image.fromarray(_inferno()[levels] if colour else levels)
        smaller = size[0] < shown.width or size[1] < shown.height
        self.picture.paste(shown.resize(size, Image.Resampling.BOX if smaller else Image.Resampling.NEAREST), at)

    def text(self, at: tuple[float, float], words: str, size: int = SMALL, anchor: str = "lm") -> None:
        """Words at a point; `anchor` as Pillow has it (lm: left middle, mm: middle of both)."""
        self.draw.text(at, words, fill="black", font=_font(size), anchor=anchor)

    def upwards(self, at: tuple[int, int], words: str, size: int = SMALL) -> None:
        """Words that run upwards, their middle at a point."""
        left, upper, right, lower = _font(size).getbbox(words)
        written = Image.new("RGB", (int(right), int(lower + 2)), "white")
        ImageDraw.Draw(written).text((0, 0), words, fill="black", font=_font(size))
        written = written.rotate(90, expand=True)
        self.picture.paste(written, (at[0] - written.width // 2, at[1] - written.height // 2))

    def colour_bar(self, at: tuple[int, int], height: int, top: float, largest: float, colour: bool) -> None:
        """The scale 0 to `top`, pointed where the `largest` value of the pictures lies above it."""
        x, y = at
        point = 8 if largest > top else 0
        self.image((x, y + point), np.linspace(top, 0, height - point)[:, None], top, (BAR, height - point), colour)
        if point:
            brightest = tuple(int(value) for value in _inferno()[-1]) if colour else (255, 255, 255)
            corners = [(x, y + point), (x + BAR // 2, y), (x + BAR - 1, y + point)]
            self.draw.polygon(corners, fill=brightest, outline="black")
        self.draw.rectangle((x, y + point, x + BAR - 1, y + height - 1), outline="black")
        for share in (0.0, 0.5, 1.0):
            place = y + point + (1 - share) * (height - point - 1)
            self.draw.line((x + BAR, place, x + BAR + 2, place), fill="black")
            self.text((x + BAR + 5, min(max(place, y + 5), y + height - 6)), f"{share * top:.2g}" if share else "0", 10)

    def save(self, path: Path) -> None:
        with atomic_path(path) as temporary:
            self.picture.save(temporary, "PNG")


def _tile(height: int, width: int) -> tuple[int, int]:
    """Width and height of an image in a picture: whole multiples of its pixels where it is small."""
    zoom = TILE / max(height, width)
    zoom = round(zoom) if zoom >= 1 else zoom if zoom < 0.6 else 1
    return max(1, round(zoom * width)), max(1, round(zoom * height))


def _columns(names: list[str], width: int) -> int:
    """Pixels from one column to the next: as wide as the image, or as its name."""
    return max(width, *(int(_font(BIG).getlength(name)) for name in names)) + GAP


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
    size = _tile(*next(iter(series.values())).shape[1:])
    step, left, upper = _columns(list(series), size[0]), 22, 22
    right = left + step * len(series)
    sheet = Sheet(right + 60, upper + len(frames) * (2 if reference else 1) * (size[1] + GAP))
    for column, name in enumerate(series):
        sheet.text((left + column * step + size[0] / 2, upper / 2), name, BIG, "mm")

    def row(y: int, pictures: dict[str, np.ndarray], top: float, colour: bool) -> None:
        for column, name in enumerate(series):
            if name in pictures:
                sheet.image((left + column * step, y), pictures[name], top, size, colour)
        sheet.colour_bar((right, y), size[1], top, max(one.max() for one in pictures.values()), colour)

    y = upper
    for frame in frames:
        shown = {name: image[frame] for name, image in series.items()}
        sheet.upwards((left // 2, y + size[1] // 2), f"frame {frame}")
        row(y, shown, top, False)
        y += size[1] + GAP
        if reference:  # it has no error; the place says what the row shows
            errors = {name: np.abs(one - shown[reference]) for name, one in shown.items() if name != reference}
            middle = left + list(series).index(reference) * step + size[0] / 2
            sheet.text((middle, y + size[1] / 2 - 8), "||image| − |reference||", 10, "mm")
            sheet.text((middle, y + size[1] / 2 + 8), "scale at the right", 10, "mm")
            row(y, errors, top / ERROR_GAIN, True)
            y += size[1] + GAP
    sheet.save(path)


def xt_profile(path: Path, series: dict[str, np.ndarray], reference: str | None, row: int) -> None:
    """PNG: one image row over time, for every series; time runs downwards, one band per frame."""
    top = _display_maximum(series, reference)
    name, image = next(iter(series.items()))
    count, height, width = image.shape
    size = _tile(height, width)
    band = max(1, round(size[1] / count))
    step, left, upper = _columns([*series, f"{name}, row {row}"], size[0]), 0, 22
    sheet = Sheet(left + step * (len(series) + 1) + 34, upper + max(size[1], band * count) + GAP)
    sheet.image((left, upper), image[0], top, size)
    line = upper + round((row + 0.5) * size[1] / height)
    sheet.draw.line((left, line, left + size[0], line), fill=LINE)
    sheet.text((left + size[0] / 2, upper / 2), f"{name}, row {row}", BIG, "mm")
    left += step + 34
    sheet.upwards((left - 28, upper + band * count // 2), "frame, downwards")
    for frame in sorted({0, count // 2, count - 1}):
        sheet.text((left - 4, upper + (frame + 0.5) * band), str(frame), 10, "rm")
    for name, image in series.items():
        sheet.image((left, upper), image[:, row], top, (size[0], band * count))
        sheet.text((left + size[0] / 2, upper / 2), name, BIG, "mm")
        left += step
    sheet.save(path)


def film(path: Path, series: dict[str, np.ndarray], reference: str | None, frames_per_second: float = 12) -> None:
    """GIF: the series side by side, each under its name, looping."""
    top = _display_maximum(series, reference)
    count, height, width = next(iter(series.values())).shape
    size = _tile(height, width)
    step, left, upper = _columns(list(series), size[0]), 22, 22

    def picture(frame: int) -> Image.Image:
        sheet = Sheet(left + step * len(series), upper + size[1])
        sheet.upwards((left // 2, upper + size[1] // 2), f"frame {frame:2d}")
        for column, (name, image) in enumerate(series.items()):
            sheet.text((left + column * step + size[0] / 2, upper / 2), name, BIG, "mm")
            sheet.image((left + column * step, upper), image[frame], top, size)
        return sheet.picture.convert("L")

    first, *others = (picture(frame) for frame in range(count))
    duration = round(1000 / frames_per_second)
    with atomic_path(path) as temporary:
        first.save(temporary, "GIF", save_all=True, append_images=others, duration=duration, loop=0)


def error_map_picture(
    path: Path, image: np.ndarray, error_std: np.ndarray, error: np.ndarray | None, frame: int
) -> None:
    """PNG: a frame, its likely error, and where it is known the error itself on the same scale.

    All magnitudes `(frames, height, width)` in the same units.
    """
    maps = {"likely error": error_std[frame]} | ({} if error is None else {"error": error[frame]})
    top = float(np.percentile(error_std[frame], 99.5))
    size = _tile(*image.shape[1:])
    step, upper = _columns([f"gldm, frame {frame}", *maps], size[0]), 22
    sheet = Sheet(step * (1 + len(maps)) + 60, upper + size[1] + GAP)
    sheet.image((0, upper), image[frame], float(np.percentile(image, 99.5)), size)
    sheet.text((size[0] / 2, upper / 2), f"gldm, frame {frame}", BIG, "mm")
    for column, (name, values) in enumerate(maps.items(), start=1):
        sheet.image((column * step, upper), values, top, size, colour=True)
        sheet.text((column * step + size[0] / 2, upper / 2), name, BIG, "mm")
    sheet.colour_bar((step * (1 + len(maps)), upper), size[1], top, max(one.max() for one in maps.values()), True)
    sheet.save(path)


def _display_maximum(series: dict[str, np.ndarray], reference: str | None) -> float:
    """White: the 99.5th percentile of the reference, or of the last series."""
    shown = series[reference] if reference else list(series.values())[-1]
    return float(np.percentile(shown, 99.5))
