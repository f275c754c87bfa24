"""BART's `.cfl` and `.hdr`: complex64 in column-major order, each dimension with a fixed meaning."""

from pathlib import Path

import numpy as np
import torch

from mri.formats.limits import check_size
from mri.formats.stored import Finding, ReadOptions, Stored, choose_slice, finished
from utils.errors import InputError

NAME = "BART .cfl"
# bart/src/misc/mri.h
READ, PHASE1, PHASE2, COIL, TE, TIME, TIME2, SLICE = 0, 1, 2, 3, 5, 10, 11, 13
TIMES = {"phase": TIME, "repetition": TIME2, "contrast": TE, "slice": SLICE}
SPOKES = 5.0  # energy of the brightest line over that of the usual one: of spokes below 2, of Cartesian lines over 50
WORDS = {PHASE2: "second phase encoding", 4: "maps", TE: "echo time", TIME2: "second time", 12: "level", 14: "average"}


def files_of(path: Path) -> tuple[Path, Path] | None:
    """`.cfl` and `.hdr` that a path means, with or without one of the suffixes; None where they are not there."""
    base = path.with_suffix("") if path.suffix.lower() in (".cfl", ".hdr") else path
    data, header = base.with_name(base.name + ".cfl"), base.with_name(base.name + ".hdr")
    if path.is_dir() or (path.exists() and path not in (data, header)):
        return None
    return (data, header) if data.is_file() and header.is_file() else None


def recognises(path: Path) -> bool:
    if path.suffix.lower() == ".cfl" and files_of(path) is None:
        header = path.with_suffix(".hdr")
        raise InputError(f"{path}: the header {header} is missing; copy both the .cfl and the .hdr file.")
    files = files_of(path)
    return files is not None and files[1].read_bytes()[:1] == b"#"


def read(path: Path, options: ReadOptions) -> Stored:
    """The scan of a BART file: coils along dimension 3, time along 10, slices along 13."""
    from mri.formats.checksum import sha256  # it needs `files_of`

    options.refuse(path, NAME, "key", "frames_axis", "coils_axis", "set")
    files = files_of(path)
    if files is None:
        raise InputError(f"{path} does not exist; check the path.")
    data, header = files
    dims = dimensions(header)
    count = int(np.prod(dims, dtype=object))
    if data.stat().st_size != 8 * count:
        raise InputError(
            f"{data} has {data.stat().st_size} bytes and its header {header.name} asks for {8 * count}; it is damaged "
            "or cut short: save or copy both files again."
        )
    time = TIMES.get(options.time or "phase", TIME)
    if dims[time] < 2 and options.time is None:
        others = [name for name, axis in TIMES.items() if dims[axis] > 1]
        mend = f"; add --time {others[0]} if dimension {TIMES[others[0]]} is time" if others else ""
        raise InputError(f"{data} has dimensions {_shown(dims)}: dimension {TIME} (time) holds 1 frame{mend}.")
    # a readout of one sample in dimension 0 is none: BART's radial tools have the readout in 1 and the lines in 2
    read, phase = (PHASE1, PHASE2) if dims[READ] == 1 and min(dims[PHASE1], dims[PHASE2]) > 1 else (READ, PHASE1)
    index: list[int | slice] = [slice(None) if axis in (read, phase, COIL, time) else 0 for axis in range(16)]
    if time != SLICE:
        index[SLICE] = choose_slice(f"{data}, dimension {SLICE},", dims[SLICE], options.slice)
    several = [axis for axis, i in enumerate(index) if i == 0 and axis != SLICE and dims[axis] > 1]
    if several:
        axis = several[0]
        raise InputError(
            f"{data} has {dims[axis]} entries along dimension {axis} ({WORDS.get(axis, 'not of a 2-D scan')}); save "
            f"one of them (bart slice {axis} 0), or inverse Fourier transform along it first."
        )
    check_size(data, count // dims[SLICE])
    array = np.memmap(data, np.complex64, "r", shape=tuple(dims), order="F")[tuple(index)]
    # what is left: readout, phase encoding, coils, and time before or after nothing else
    array = np.asarray(array).transpose(3, 2, 1, 0)
    axes = f"readout {read}, phase encoding {phase}, coils {COIL}, time {time}"
    layout = [f"dimensions {_shown(dims)}: {axes}"]
    if dims[SLICE] > 1 and time != SLICE:
        layout.append(f"slice {index[SLICE]} of {dims[SLICE]}")
    guess = "" if options.kind else " (guessed from its values; --kind image|kspace changes it)"
    kind = options.kind or ("kspace" if dims[COIL] > 1 else None)
    finding = Finding(data, "", NAME, array, str(data), tuple(layout), sha256(data))
    scan = finished(finding, kind, options.dc, guess if kind is None else "")
    if phase == PHASE2 and scan.kind == "kspace":
        _refuse_spokes(str(data), scan.data)
    return scan


def _refuse_spokes(where: str, kspace: torch.Tensor) -> None:
    """Refuse k-space `(frames, coils, lines, readout)` whose lines all pass the centre, as those of radial scans do."""
    power = kspace.abs().square().sum(dim=(1, 3))  # (frames, lines)
    mean = power.sum(dim=0) / (power > 0).sum(dim=0).clamp(min=1)
    if mean.max() < SPOKES * mean[mean > 0].median():
        raise InputError(
            f"{where}: all lines along dimension {PHASE2} hold about the same energy, as spokes of a radial scan do; "
            "grid them to Cartesian k-space first (bart nufft -i, then bart fft -u 3)."
        )


def dimensions(header: Path) -> list[int]:
    """The 16 dimensions of a header."""
    lines = header.read_text(errors="replace").splitlines()
    at = next((i for i, line in enumerate(lines) if line.strip() == "# Dimensions"), None)
    words = lines[at + 1].split() if at is not None and at + 1 < len(lines) else []
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise InputError(f"{header} is not a BART header: '# Dimensions' and a line of numbers are missing.")
    sizes = [int(word) for word in words]
    return (sizes + [1] * 16)[: max(16, len(sizes))][:16]


def _shown(dims: list[int]) -> str:
    last = max((i for i, n in enumerate(dims) if n > 1), default=0)
    return " ".join(map(str, dims[: last + 1]))
