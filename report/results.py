"""The files of one reconstruction, and what a command prints at its end."""

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io
import torch

from mri.metrics import COMMON_SCALE_COLUMNS, image_error, moving_row
from report.figures import error_map_picture, film, montage, xt_profile
from report.tables import markdown, write_csv, write_markdown

Tensor = torch.Tensor

SCORES = ("psnr_common", "ssim_common", "nmse", "gain", "edge_time", "psnr", "ssim", "mse_e4")
METRICS = ("method", *SCORES, "snr", "seconds")
MANY = ("scan", *METRICS)  # of a table of many scans


def write_reconstruction(out: Path, image: Tensor) -> None:
    """`reconstruction.npy` (frames, height, width) and `.mat` (variable `image`, same axes), complex64."""
    array = image.to(torch.complex64).numpy()
    np.save(out / "reconstruction.npy", array)
    scipy.io.savemat(out / "reconstruction.mat", {"image": array}, do_compression=True)


def write_pictures(
    out: Path, images: dict[str, Tensor], reference: Tensor | None, error_std: Tensor | None = None, coils: int = 1
) -> None:
    """`montage.png`, `xt_profile.png` and `cine.gif`, the reference first when there is one; `deviation.png`."""
    series = {} if reference is None else {"reference": reference.abs().numpy()}
    series.update({name: image.abs().numpy() for name, image in images.items()})
    name = None if reference is None else "reference"
    frames = len(images["gldm"])
    montage(out / "montage.png", series, name, sorted({0, frames // 3, 2 * frames // 3}))
    xt_profile(out / "xt_profile.png", series, name, moving_row(images["gldm"]))
    film(out / "cine.gif", series, name)
    if error_std is not None:
        error = None if reference is None else image_error(images["gldm"], reference, coils).numpy()
        path = out / "deviation.png"
        error_map_picture(path, images["gldm"].abs().numpy(), error_std.numpy(), error, frames // 3)


def write_scores(out: Path, rows: list[dict]) -> None:
    """`metrics.csv`, and `metrics_common_scale.csv` with all scores on one scale."""
    write_csv(out / "metrics.csv", rows, METRICS)
    write_csv(out / "metrics_common_scale.csv", rows, ("method", *COMMON_SCALE_COLUMNS))


def write_table(out: Path, names: Sequence[str]) -> str:
    """One table of the tables of all scans that have one: `metrics.csv` and `.md`; returns what to print of it."""
    rows: list[dict] = []
    for name in names:
        table = out / name / "metrics.csv"
        if table.is_file():
            rows += [{"scan": name, **row} for row in csv.DictReader(table.read_text().splitlines())]
    if not rows:
        for name in ("metrics.csv", "metrics.md"):
            (out / name).unlink(missing_ok=True)
        return f"no scan has a reference, so nothing is scored; reconstructions are in {out}"
    write_csv(out / "metrics.csv", rows, MANY)
    for row in rows:
        row.update({name: float(row[name]) for name in MANY if name not in ("scan", "method")})
    write_markdown(out / "metrics.md", rows, MANY)
    return markdown(rows, MANY) + f"\n\n{out / 'metrics.csv'}\n{out / 'metrics.md'}"


def summary(out: Path, rows: list[dict], notes: Sequence[str] = ()) -> str:
    """What a command says at its end: the table, where the files and the report are, and the count of warnings."""
    table = ""
    if rows:
        table = markdown(rows, METRICS) + (
            "\npsnr_common, ssim_common and nmse compare the scan on one scale: judge by these. gain above 1: too dark."
            "\nedge_time above 1.05: temporal blur (–: the reference has no clear moving edge)."
            "\npsnr, ssim and mse_e4 (× 10⁴) divide every frame by its own maximum, as the paper does."
            "\nnearest_merge is view sharing with the nearest frames, global_merge with the mean over all frames; "
            "ou_only is the optimization unit without any network.\n\n"
        )
    files = ["reconstruction.npy", "reconstruction.mat", "montage.png", "xt_profile.png", "cine.gif", "config.json"]
    if rows:
        files = ["metrics.csv", "metrics_common_scale.csv", *files]
    files += [name for name in OPTIONAL if (out / name).exists()]
    lines = [*(str(out / name) for name in files), f"report: {out / 'report.html'}"]
    if warnings := sum(note.startswith("warning: ") for note in notes):
        lines.append(f"{warnings} warning{'s' if warnings > 1 else ''}: see above and report.html")
    return table + "\n".join(lines)


OPTIONAL = (
    "coil_maps.npy", "deviation.npy", "deviation.png", "reconstruction.nii.gz", "reconstruction.cfl",
    "reconstruction.hdr", "dicom",
)  # fmt: skip


def remove_left_overs(out: Path, written: set[str]) -> None:
    """Remove what a run that was replaced left in `out` and this one has not: it belongs to another image."""
    for name in {"metrics.csv", "metrics_common_scale.csv", *OPTIONAL} - written:
        if (out / name).is_dir():
            shutil.rmtree(out / name)
        else:
            (out / name).unlink(missing_ok=True)
