"""Tables of results as CSV, Markdown and text."""

import csv
import math
from pathlib import Path

from utils.files import atomic_path

DECIMALS = {"psnr": 2, "psnr_common": 2, "psnr_std": 2, "ssim": 4, "mse_e4": 3, "nmse": 5, "seconds": 2, "predicted": 6,
            "error": 6}  # fmt: skip


def write_csv(path: Path, rows: list[dict], columns: tuple[str, ...]) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as handle:
        writer = csv.DictWriter(handle, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_markdown(path: Path, rows: list[dict], columns: tuple[str, ...]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(markdown(rows, columns) + "\n")


def markdown(rows: list[dict], columns: tuple[str, ...]) -> str:
    """A Markdown table, padded so that it also reads as text."""
    cells = [list(columns)] + [[cell(row[name], name) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def cell(value: object, name: str) -> str:
    """A value of the column `name` as text; a dash for one that is infinite or undefined."""
    if isinstance(value, float):
        return f"{value:.{DECIMALS.get(name, 4)}f}" if math.isfinite(value) else "–"
    return str(value)
