"""`report.html`: one file with everything to judge a reconstruction by, that opens in any browser, offline."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mri.metrics import moving_row
from mri.scan import Scan
from report.results import METRICS
from report.sprites import coarsened, coarsening, coil_pictures, sheet, sheet_columns
from report.tables import cell
from utils.files import atomic_path
from utils.settings import flat

Tensor = torch.Tensor

TEMPLATES = Path(__file__).parent / "templates"
# rows of the table as a reader calls them; those in SHOWN are on the page, in this order
LABELS = {
    "zero_filled": "zero-filled",
    "global_merge": "view sharing, all frames",
    "nearest_merge": "view sharing",
    "ou_only": "optimization unit",
    "gldm": "GLDM",
    "reference": "reference",
}
SHOWN = ("zero_filled", "nearest_merge", "ou_only", "gldm", "reference")
HIDDEN_FIRST = ("ou_only",)  # until the reader asks for it
HEADROOM = 1.25  # of the largest value that is stored, over the 99.9th percentile
WHITE = 99.5  # percentile that the window ends at first
ERROR_LEVELS = 64  # of the likely error, which is smooth
FRAMES_PER_SECOND = 12.0  # where the file does not give the frame time
QUALITY = ("quality without a reference", "residual")  # how the notes on the quality begin


def write_report(path: Path, *contents: Any) -> None:
    """Write the report of one reconstruction, see `_write_report`; a page that fails does not cost the images."""
    try:
        _write_report(path, *contents)
    except Exception as error:  # whatever it is: the reconstruction took longer than the page
        path.unlink(missing_ok=True)
        print(f"warning: {path.name} could not be written ({error}); the other results are complete", file=sys.stderr)


def _write_report(
    path: Path,
    scan: Scan,
    images: Mapping[str, Tensor],
    reference: Tensor | None,
    error_std: Tensor | None,
    maps: Tensor,
    rows: Sequence[Mapping[str, Any]],
    record: Mapping[str, Any],
) -> None:
    """The page of one reconstruction.

    Parameters
    ----------
    images
        name of the method → complex `(frames, height, width)`, in the units of the input, `gldm` among them.
    reference
        likewise, complex or real; None where there is none.
    error_std
        likely error of `gldm`, real, same shape and units; None where it was not estimated.
    maps
        complex `(virtual coils, height, width)`.
    rows
        of the table of scores, empty without a reference.
    record
        the contents of `config.json`.
    """
    notes = list(record["notes"])
    found = str(scan).splitlines()
    warnings = [note.removeprefix("warning: ") for note in (*found, *notes) if note.startswith("warning: ")]
    plain = [note.removeprefix("warning: ") for note in notes]
    quality = [note for note in plain if note.startswith(QUALITY)]
    settings = flat(
        {
            name: record[name]
            for name in ("request", "config", "calibration", "seed", "scale", "threads", "versions", "python")
            if name in record
        }
    )
    text = render(
        "report.html",
        name=scan.name,
        facts=_facts(scan, record),
        warnings=warnings,
        found=[
            *(line for line in found if not line.startswith("warning: ")),
            *(["reference: " + record["reference"]] if record["reference"] else []),
        ],
        decided=[note for note in notes if not note.startswith(("warning: ", *QUALITY))],
        quality=quality,
        held_out=any(note.startswith(QUALITY[0]) for note in quality),
        player=player_data(scan, images, reference, error_std),
        coil_maps=coil_pictures(maps.numpy()) if len(maps) > 1 else [],
        coils=scan.coils,
        noise=next((note for note in notes if note.startswith("noise: ")), None),
        columns=METRICS,
        rows=[(LABELS[row["method"]], [cell(row[column], column) for column in METRICS]) for row in rows],
        settings={key: cell(value, key) for key, value in settings.items()},
        command=record["command"],
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render(template: str, **values: Any) -> str:
    """A template of `report/templates` with its style sheet and script; all other values are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    own = {name: Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("page.css", "player.js")}
    return environment.get_template(template).render(style=own["page.css"], script=own["player.js"], **values)


def player_data(
    scan: Scan, images: Mapping[str, Tensor], reference: Tensor | None, error_std: Tensor | None
) -> dict[str, Any]:
    """What the script of the page needs: geometry, scale, and a sheet of frames for every series."""
    together = {**images} if reference is None else {**images, "reference": reference}
    frames, height, width = images["gldm"].shape
    k = coarsening(frames, height, width)
    series = {name: coarsened(together[name].abs().numpy(), k) for name in SHOWN if name in together}
    best = series.get("reference", series["gldm"])
    top = _top(best)
    frames, height, width = best.shape
    edge = height // 4  # the heart moves near the middle, the chest wall at the edge
    voxel = scan.geometry.voxel_mm
    dy, dx = voxel[:2] if voxel is not None else (1.0, 1.0)
    data = {
        "frames": frames,
        "height": height,
        "width": width,
        "columns": sheet_columns(frames, height, width),
        "coarsening": k,
        "spacing": [dy * k, dx * k],
        "unit": "px" if voxel is None else "mm",
        "frameTime": scan.geometry.frame_time_ms,
        "framesPerSecond": _speed(scan.geometry.frame_time_ms),
        "top": top,
        "white": min(top, max(float(np.percentile(best, WHITE)), top / 50)),
        "row": edge + moving_row(torch.from_numpy(series["gldm"][:, edge : height - edge])),
        "series": [
            {"name": name, "label": LABELS[name], "sheet": sheet(values, top), "shown": name not in HIDDEN_FIRST}
            for name, values in series.items()
        ],
        "likely": None,
    }
    if error_std is not None:
        values = coarsened(error_std.numpy(), k)
        data["likely"] = {"sheet": sheet(values, _top(values), ERROR_LEVELS), "top": _top(values)}
    return data


def _top(values: np.ndarray) -> float:
    """The largest value that is stored; 1 for empty images."""
    top = HEADROOM * float(np.percentile(np.nan_to_num(values), 99.9))
    return top if top > 0 else 1.0


def _speed(frame_time_ms: float | None) -> float:
    """Frames per second: real time where it is known."""
    return min(60.0, max(1.0, round(1000 / frame_time_ms, 1))) if frame_time_ms else FRAMES_PER_SECOND


def _facts(scan: Scan, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The numbers of a scan at a glance."""
    height, width = scan.matrix
    facts = [("frames", str(len(scan.mask))), ("matrix", f"{height} × {width}"), ("coils", str(scan.coils))]
    geometry = scan.geometry
    if geometry.voxel_mm is not None:
        facts.append(("voxel", " × ".join(f"{size:.3g}" for size in geometry.voxel_mm) + " mm"))
    if geometry.frame_time_ms:
        facts.append(("frame time", f"{geometry.frame_time_ms:.3g} ms"))
    facts.append(("net acceleration", f"{1 / scan.mask.double().mean().item():.2f}"))
    facts.append(("peak SNR", f"{record['snr']:.0f}" if math.isfinite(record["snr"]) else "no noise"))
    if record["chi"] is not None:
        facts.append(("χ²", f"{record['chi']:.2f}"))
    seconds = record["seconds"]
    facts.append(("run time", f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"))
    return facts
