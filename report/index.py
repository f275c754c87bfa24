"""`index.html`: the reports of many scans, a row each."""

import csv
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from report.page import render
from report.sprites import thumbnail
from report.tables import cell
from utils.files import atomic_path

SCORES = ("psnr_common", "ssim_common")
UNKNOWN = "not reconstructed; see the output of the process that tried it"


def write_index(out: Path, names: Sequence[str], failures: Mapping[str, str]) -> None:
    """Write `out/index.html`.

    Parameters
    ----------
    names
        of all scans, each with its results in `out/<name>/`.
    failures
        why a scan was left out.
    """
    done = [name for name in names if name not in failures and (out / name / "config.json").is_file()]
    left_out = [{"name": name, "reason": failures.get(name, UNKNOWN)} for name in names if name not in done]
    text = render("index.html", folder=out.resolve().name, scans=[_row(out, name) for name in done], left_out=left_out)
    with atomic_path(out / "index.html") as temporary:
        temporary.write_text(text, encoding="utf-8")


def would_lose(out: Path, failures: Collection[str]) -> bool:
    """Whether a new index would lose the old one's link to the report of a scan in `failures`."""
    page = out / "index.html"
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    return any(f'href="{_link(name)}"' in text for name in failures)


def _link(name: str) -> str:
    return quote(f"{name}/report.html")


def _row(out: Path, name: str) -> dict[str, Any]:
    """What the index says of one scan."""
    record = json.loads((out / name / "config.json").read_text())
    series = np.load(out / name / "reconstruction.npy", mmap_mode="r")
    dy, dx = (record.get("voxel_mm") or (1.0, 1.0))[:2]
    chi = record["chi"]
    scores = {}
    if (out / name / "metrics.csv").is_file():
        rows = csv.DictReader((out / name / "metrics.csv").read_text().splitlines())
        ours = next(row for row in rows if row["method"] == "gldm")
        scores = {column: cell(float(ours[column]), column) for column in SCORES}
    found = record["scan"].splitlines()
    return {
        "name": name,
        "link": _link(name) if (out / name / "report.html").is_file() else None,
        "picture": thumbnail(np.abs(series[len(series) // 3]), dy / dx),
        "shape": "{} frames, {} × {}".format(*series.shape),
        "found": found,
        "warnings": [
            note.removeprefix("warning: ") for note in (*found, *record["notes"]) if note.startswith("warning: ")
        ],
        "chi": "–" if chi is None else f"{chi:.2f}",
        "snr": f"{record['snr']:.0f}" if np.isfinite(record["snr"]) else "no noise",
        **{column: scores.get(column, "–") for column in SCORES},
    }
