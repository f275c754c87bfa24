"""What priors learn from a user's own scans: merged frames in a memory-mapped file (`dsm`), or images (`scenes`)."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mri.fourier import fft2c
from mri.intake import acquire, training_sources
from mri.scan import Scan
from mri.view_sharing import share_views
from reconstruction.prepare import Problem, prepare
from training.settings import RunSettings, plain
from utils.errors import InputError
from utils.files import atomic_path
from utils.frame_file import append_frames

Tensor = torch.Tensor


def pseudo_reference_file(settings: RunSettings, folder: Path, model: str) -> Path:
    """Training frames of the global or the local model, all scans, in one memory-mapped file of `folder`.

    Made once: the file's name holds a checksum of all that it depends on. k-space of combined images, complex64
    `(N, height, width)`; every scan is divided by its own scale. The fill reports go to the progress bar.

    Raises
    ------
    InputError
        when the scans differ in size.
    """
    window = window_of(settings, model)
    sources = training_sources(settings.intake)
    checksum = data_checksum(settings, sources, asdict(settings.pseudo_reference))
    path = folder / f"pseudo_references_{window}_{checksum}.npy"
    if path.exists():
        return path
    size = None
    with atomic_path(path) as temporary:
        bar = tqdm(sources, desc=f"pseudo-references ({window})", unit="scan")
        for source in bar:
            scan, problem = _problem(settings, source)
            size = _same_size(size, scan.name, tuple(scan.kspace.shape[2:]))
            frames, report = pseudo_reference_frames(problem, window)
            bar.set_postfix_str(str(report))
            append_frames(temporary, frames.numpy())
    return path


def window_of(settings: RunSettings, model: str) -> str:
    """Which frames fill the gaps of a pseudo-reference: all for GM, the nearest for LM (paper, section 2.2)."""
    return "global" if model == "global" else settings.pseudo_reference.window


def pseudo_reference_frames(problem: Problem, window: str):
    """k-space of the combined pseudo-references of a scan, complex64 `(frames, height, width)`, and the fill report."""
    filled, report = share_views(problem.measured, problem.model.mask, window, periodic=problem.periodic)
    kspace = fft2c(problem.model.combine(filled)) if problem.model.coils > 1 else filled[:, 0]
    return (kspace.mT.contiguous() if problem.turned else kspace).to(torch.complex64), report


def _problem(settings: RunSettings, source: Path | int) -> tuple[Scan, Problem]:
    """A scan to train on; how it is taken is printed."""
    scan, _ = acquire(settings.intake, source)
    problem = prepare(scan, settings.prepare)
    tqdm.write("\n".join((f"{scan.name}: {scan}", *problem.notes)))
    return scan, problem


def _same_size(size: tuple | None, name: str, own: tuple) -> tuple:
    if size is not None and own != size:
        raise InputError(
            f"{name} is {own} and others are {size}; train on scans of one size (--config.data.size)."
        )
    return own


def data_checksum(settings: RunSettings, sources: Sequence[Path | int], *parts: Any) -> str:
    """Twelve hexadecimal digits of all that data made of `sources` with these settings depend on."""
    intake = settings.intake
    stamps = [(str(s), s.stat().st_size, s.stat().st_mtime_ns) if isinstance(s, Path) else s for s in sources]
    known = [settings.seed, asdict(intake), asdict(settings.prepare), *parts, stamps]
    return hashlib.sha256(json.dumps(plain(known), sort_keys=True).encode()).hexdigest()[:12]


def own_images(settings: RunSettings, model: str) -> list[tuple[Tensor, bool]]:
    """Images of the user's scans to learn from, of unit scale, and whether they are periodic.

    Of a fully sampled scan, its images; of an under-sampled one, its pseudo-references (`window_of` GM or LM), even
    if a reference is stored with it, which is used for scores only.
    """
    found = []
    for source in training_sources(settings.intake):
        scan, reference = acquire(settings.intake, source)
        problem = prepare(scan, settings.prepare)
        if reference is None or reference.apart:
            image, kind = problem.view_sharing(window_of(settings, model)), "pseudo-references"
            image = image.mT if problem.turned else image
        else:
            image, kind = problem.reference_image(reference) / problem.scale, "images"
        tqdm.write(f"{scan.name}: {scan}\ntraining on its {kind}")
        found.append((image.to(torch.complex64), problem.periodic))
    return found
