"""From single readouts with their counters, as scanners store them, to k-space of one slice."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mri.formats.limits import check_size
from mri.formats.stored import ReadOptions, SeveralSlices
from utils.errors import InputError

COUNTERS = ("phase", "repetition", "contrast", "set", "slice")
OFF_CENTRE = 2  # samples by which the peak of the signal may miss the k-space centre of the header


@dataclass(frozen=True)
class Readouts:
    """Imaging readouts.

    Attributes
    ----------
    samples
        for each readout complex `(coils, samples)`.
    start
        `(n,)`: where its first sample lies in the readout of `width`.
    lines
        `(n,)`: its row in k-space of `height`.
    counters
        `(n,)` by name in `COUNTERS`.
    """

    samples: Sequence[np.ndarray]
    start: np.ndarray
    lines: np.ndarray
    counters: dict[str, np.ndarray]
    height: int
    width: int

    def kept(self, keep: np.ndarray) -> "Readouts":
        """The readouts where `keep` is true."""
        counters = {name: values[keep] for name, values in self.counters.items()}
        samples = [samples for samples, use in zip(self.samples, keep, strict=True) if use]
        return Readouts(samples, self.start[keep], self.lines[keep], counters, self.height, self.width)


@dataclass(frozen=True)
class Assembled:
    """K-space of one slice.

    Attributes
    ----------
    kspace
        complex64 `(frames, coils, ky, kx)`.
    mask
        boolean `(frames, ky, kx)`.
    averages
        `(frames, ky, kx)`; None where every sample was measured at most once.
    used
        `(n,)`: which of the readouts these are.
    frame
        `(used,)`: the frame of each.
    time
        the counter taken as time.
    said
        sentences for a person.
    """

    kspace: np.ndarray
    mask: torch.Tensor
    averages: torch.Tensor | None
    used: np.ndarray
    frame: np.ndarray
    time: str
    said: tuple[str, ...]


def assemble(path: Path, readouts: Readouts, options: ReadOptions) -> Assembled:
    """Choose slice, set and time, average what was measured repeatedly, and put each readout in its place.

    Raises
    ------
    InputError
        where several slices, sets, echoes or two kinds of time are there and the options do not choose.
    """
    used, said = _chosen(path, readouts, options)
    chosen = readouts.kept(used)
    time, frame, more = _frames(path, chosen, options)
    count = int(frame.max()) + 1
    coils = len(chosen.samples[0])
    check_size(path, count * coils * chosen.height * chosen.width, "save fewer frames or coils in a file of their own")
    chosen, moved = _centred(chosen)
    kspace = np.zeros((count, coils, chosen.height, chosen.width), np.complex64)
    averages = np.zeros((count, chosen.height, chosen.width), np.float32)
    for samples, start, line, f in zip(chosen.samples, chosen.start, chosen.lines, frame, strict=True):
        place = slice(start, start + samples.shape[1])
        kspace[f, :, line, place] += samples
        averages[f, line, place] += 1
    kspace /= np.maximum(averages, 1)[:, None]
    most = int(averages.max())
    if most > 1:
        more.append(f"up to {most} measurements of a sample averaged")
    shortest = min(samples.shape[1] for samples in chosen.samples)
    if shortest < chosen.width:
        more.append(f"partial echo: {shortest} of {chosen.width} readout samples are measured")
    counts = torch.from_numpy(averages)
    return Assembled(
        kspace, counts > 0, counts if most > 1 else None, used, frame, time, (*said, *moved, *more)
    )  # fmt: skip


def _chosen(path: Path, readouts: Readouts, options: ReadOptions) -> tuple[np.ndarray, list[str]]:
    """Which readouts are of the slice and set that are asked for."""
    used = np.ones(len(readouts.samples), bool)
    said = []
    for name, wanted in (("slice", options.slice), ("set", options.set)):
        if options.time == name:
            continue
        values = np.unique(readouts.counters[name])
        listed = ", ".join(map(str, values))
        if wanted is None and len(values) > 1 and name == "slice":
            raise SeveralSlices(str(path), values.tolist())
        if wanted is None and len(values) > 1:
            raise InputError(f"{path} holds {len(values)} {name}s ({listed}); choose one with --{name}.")
        if wanted is not None and wanted not in values:
            raise InputError(f"{path} has no {name} {wanted}; --{name} is one of {listed}.")
        if len(values) > 1:
            used &= readouts.counters[name] == wanted
            said.append(f"{name} {wanted} of {len(values)}")
    return used, said


def _frames(path: Path, readouts: Readouts, options: ReadOptions) -> tuple[str, np.ndarray, list[str]]:
    """The counter taken as time, the frame of each readout, and what is said of it."""
    lengths = {name: len(np.unique(readouts.counters[name])) for name in COUNTERS}
    listed = ", ".join(f"{n} {name}{'s' if n > 1 else ''}" for name, n in lengths.items())
    usual = [name for name in ("phase", "repetition") if lengths[name] > 1]
    others = [name for name in ("contrast", "set") if lengths[name] > 1 and name != options.time]
    if options.time is None and len(usual) > 1:
        raise InputError(
            f"{path} has {listed}; add --time phase (repetitions are averaged) or --time repetition (every phase of "
            "every repetition is a frame)."
        )
    time = options.time or (usual[0] if usual else "")
    if not time or lengths[time] < 2:
        mend = f"; add --time {(usual + others)[0]} if that is time" if usual + others else "; give a dynamic scan"
        raise InputError(f"{path} has {listed}, which is 1 frame{mend}.")
    if others and others[0] == "contrast":
        raise InputError(f"{path} has {listed}; add --time contrast, or save one echo in a file of its own.")
    values = readouts.counters[time].astype(np.int64)
    said = [f"time: {time} ({'as requested' if options.time else 'detected; override with --time'})"]
    if time == "repetition" and lengths["phase"] > 1:
        values = values * (int(readouts.counters["phase"].max()) + 1) + readouts.counters["phase"]
        said.append("every phase of every repetition is a frame")
    if time == "phase" and lengths["repetition"] > 1:
        said.append(f"{lengths['repetition']} repetitions averaged")
    present, frame = np.unique(values, return_inverse=True)
    gaps = sorted(set(range(int(present[0]), int(present[-1]) + 1)) - set(present.tolist()))
    if gaps and not (time == "repetition" and lengths["phase"] > 1):
        said.append(f"warning: no readouts for {time} {', '.join(map(str, gaps[:8]))}; skipped")
    return time, frame, said


def _centred(readouts: Readouts) -> tuple[Readouts, list[str]]:
    """The readouts, at the end of the echo where that alone puts the peak of the signal in the centre.

    Some converters leave the header's centre of a partial echo at the middle of what was measured.
    """
    length = readouts.samples[0].shape[1]
    same = all(samples.shape[1] == length for samples in readouts.samples) and len(set(readouts.start.tolist())) == 1
    if not same or length == readouts.width:
        return readouts, []
    profile = sum((np.abs(samples.astype(np.complex64)) ** 2).sum(axis=0) for samples in readouts.samples)
    peak, centre = int(np.argmax(profile)), readouts.width // 2
    if abs(int(readouts.start[0]) + peak - centre) <= OFF_CENTRE:
        return readouts, []
    for start in (readouts.width - length, 0):
        if abs(start + peak - centre) <= OFF_CENTRE:
            moved = Readouts(
                readouts.samples, np.full_like(readouts.start, start), readouts.lines, readouts.counters,
                readouts.height, readouts.width,
            )  # fmt: skip
            end = "first" if start else "last"
            return moved, [
                f"partial echo: from the k-space peak, the {end} part of the readout is missing, contrary to the header"
            ]
    return readouts, []
