"""Siemens raw data (`.dat`), with twixtools. Untested with a file of a scanner."""

import io
import struct
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np

from mri.formats.checksum import sha256
from mri.formats.limits import check_size
from mri.formats.readouts import Readouts, assemble
from mri.formats.stored import Finding, ReadOptions, Stored, finished
from utils.errors import InputError

NAME = "Siemens raw data"
OVERSAMPLING = 2.0  # Siemens' readouts are always stored so


def recognises(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(32)
    size = path.stat().st_size
    if len(head) < 32:
        return False
    first, second = struct.unpack("<II", head[:8])
    if first < 10000 and 0 < second <= 64:  # VD and VE: a list of measurements
        offset, length = struct.unpack("<QQ", head[16:32])
        return first == 0 and offset >= 10240 and offset < size and 0 < length <= size
    return 10000 < first < size and 0 < second <= 32 and head[8:14] == b"Config"  # VB: a header with named parts


def read(path: Path, options: ReadOptions) -> Stored:
    """The k-space of one slice of the last measurement of the file."""
    options.refuse(path, NAME, "key", "frames_axis", "coils_axis", "dc")
    if options.kind == "image":
        raise InputError(f"{path} is {NAME}, so it holds k-space; leave out --kind image.")
    try:
        import twixtools
    except ImportError:
        raise InputError(f"{path} is {NAME}, which needs twixtools: pip install twixtools.") from None
    check_size(path, path.stat().st_size // 8, "split it by measurements")
    _refuse_damaged(path)
    try:
        with redirect_stdout(io.StringIO()):  # twixtools prints what it does
            measurements = twixtools.read_twix(
                str(path), parse_prot=False, parse_geometry=False, parse_pmu=False, keep_syncdata=False, verbose=False
            )
        blocks = measurements[-1]["mdb"]
        try:
            return from_blocks(path, blocks, options)
        finally:
            for block in blocks[:1]:
                block.fid.close()  # twixtools leaves it open
    except InputError:
        raise
    except Exception:  # twixtools checks nothing and fails where the damage leads it
        raise InputError(f"{path} is {NAME} that is damaged or cut short; export it again.") from None


def _refuse_damaged(path: Path) -> None:
    """Raise `InputError` for a file of VD or VE in whose blocks twixtools would read for ever."""
    damaged = InputError(f"{path} is {NAME} that is damaged or cut short; export it again.")
    size = path.stat().st_size
    with path.open("rb") as file:
        first, count = struct.unpack("<II", file.read(8))
        if first != 0:
            return
        entries = file.read(152 * count)
        for i in range(count):
            offset, length = struct.unpack_from("<QQ", entries, 152 * i + 8)
            if offset + max(length, 4) > size:
                raise damaged
            file.seek(offset)
            place = offset + struct.unpack("<I", file.read(4))[0]
            while place + 128 < offset + length:
                file.seek(place)
                header = file.read(48)
                block = struct.unpack("<I", header[:4])[0] & (2**25 - 1)
                if header[40] & 1:  # ACQEND, the end of the measurement
                    break
                if block == 0:
                    raise damaged
                place += block


def from_blocks(path: Path, blocks: list, options: ReadOptions) -> Stored:
    """The scan of twixtools' measurement data blocks."""
    imaging = [block for block in blocks if block.is_image_scan()]
    if not imaging:
        raise InputError(f"{path} has no imaging readouts; give the imaging scan.")
    if any(block.is_flag_set("REFLECT") for block in imaging):
        raise InputError(f"{path} has reversed readouts (EPI), which need a phase correction first.")
    if len({block.cPar for block in imaging}) > 1:
        raise InputError(f"{path} is a 3-D scan; inverse Fourier transform it along kz and save one slice.")
    samples = [np.asarray(block.data, np.complex64) for block in imaging]
    length = np.array([one.shape[1] for one in samples])
    centre = np.array([int(block.mdh.CenterCol) for block in imaging])
    width = int(max(2 * max(centre.max(), (length - centre).max()), length.max()))
    line = np.array([int(block.cLin) for block in imaging])
    middle = int(imaging[0].mdh.CenterLin)
    height = int(max(2 * max(middle, int(line.max()) + 1 - middle), line.max() + 1))
    names = {"phase": "cPhs", "repetition": "cRep", "contrast": "cEco", "set": "cSet", "slice": "cSlc"}
    counters = {name: np.array([int(getattr(block, own)) for block in imaging]) for name, own in names.items()}
    readouts = Readouts(samples, width // 2 - centre, line + height // 2 - middle, counters, height, width)
    assembled = assemble(path, readouts, options)
    # the noise scan, too: without its bandwidth it does not give the noise of the image
    left_out = len(blocks) - len(imaging)
    layout = (
        f"{len(imaging)} readouts of {width} samples, oversampled {OVERSAMPLING:g} times", *assembled.said,
        *([f"{left_out} non-imaging readouts are left out"] if left_out else []),
        "warning: this reader has not been tested on files from a scanner; check the zero-filled images",
    )  # fmt: skip
    return finished(
        Finding(path, "", NAME, assembled.kspace, str(path), layout, sha256(path)), "kspace",
        mask=assembled.mask, averages=assembled.averages, oversampling=OVERSAMPLING,
        real_time=assembled.time == "repetition",
    )  # fmt: skip
