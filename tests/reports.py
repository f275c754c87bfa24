"""Reports of invented results."""

import json

import numpy as np
import torch

from mri.scan import Geometry, Scan, Source
from report.page import write_report
from report.results import METRICS

EVIL = "<script>alert(1)</script> & \"o'clock\".npz"
NOTES = [
    "coils pre-whitened with 4096 noise samples per coil",
    "noise: σ = 0.01 per complex k-space sample (as given); peak SNR 80",
    "warning: frames 3 and 4 (counting from 0) are identical; one may be a copy",
    "priors: GM accepted (step size 0.62), LM not used; held-out squared error 4% lower than with view sharing alone",
    "quality without a reference: squared error 93% lower than with view sharing at 99 samples held out for this only",
    "residual: χ² = 0.89 (about 1 or less if coil maps and noise level are right)",
    f"warning: {EVIL} is doubtful",
]


def series(frames, height, width, seed=0):
    """Magnitudes that compress as badly as measured ones: a smooth object under noise."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    radius = 0.5 + 0.2 * torch.sin(torch.arange(frames) * 0.6)[:, None, None]
    disc = torch.sigmoid((radius - (x.square() + y.square()).sqrt()) * 20)
    return (disc + 0.5 * torch.rand(frames, height, width, generator=generator)).to(torch.complex64)


def record(notes=tuple(NOTES), **more):
    return {
        "scan": f"{EVIL}: 4 frames\nfully sampled", "reference": "truth.npy: images\nof 4 frames", "voxel_mm": None,
        "request": {"data": {"key": EVIL}, "seed": 3}, "command": f"python PCsampling_demo_svd.py --data '{EVIL}'",
        "versions": {"torch": "2"}, "python": "3", "threads": 1, "seed": 3, "scale": 1.5, "snr": 80.0, "seconds": 12.3,
        "chi": 0.89, "noise_std": 0.01, "notes": [*notes], **more,
    }  # fmt: skip


def write(
    path, frames=4, height=48, width=32, *, coils=3, reference=True, deviation=True, geometry=None, notes=NOTES,
    found="",
):  # fmt: skip
    names = ("zero_filled", "global_merge", "nearest_merge", "ou_only", "gldm")
    images = {name: series(frames, height, width, seed) for seed, name in enumerate(names)}
    mask = torch.zeros(frames, height, width, dtype=torch.bool)
    mask[:, ::4] = True
    scan = Scan(
        torch.zeros(frames, coils, height, width, dtype=torch.complex64), mask, geometry=geometry or Geometry(),
        source=Source(EVIL, found or f"{EVIL}: {frames} frames\nfully sampled"),
    )  # fmt: skip
    maps = torch.ones(coils, height, width, dtype=torch.complex64) / coils**0.5
    rows = []
    if reference:
        rows = [{**dict.fromkeys(METRICS, 1.25), "method": name} for name in names]
    write_report(
        path, scan, images, series(frames, height, width, 9) if reference else None,
        0.1 * series(frames, height, width, 8).real if deviation else None, maps, rows, record(notes),
    )  # fmt: skip
    return path


def finished_scan(folder, name, scored):
    (folder / name).mkdir()
    np.save(folder / name / "reconstruction.npy", series(4, 48, 32).numpy())
    (folder / name / "config.json").write_text(json.dumps(record(voxel_mm=[2.0, 1.0, 8.0])))
    (folder / name / "report.html").write_text("")
    if scored:
        (folder / name / "metrics.csv").write_text("method,psnr_common,ssim_common\ngldm,31.234,0.95\n")
