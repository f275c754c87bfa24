"""ISMRMRD (MRD) raw data, the files of OCMR included."""

from pathlib import Path

import h5py
import numpy as np
import torch

from mri.formats import mrd_header
from mri.formats.checksum import sha256
from mri.formats.hdf5 import opened
from mri.formats.limits import check_size
from mri.formats.mrd_header import Header
from mri.formats.readouts import COUNTERS, Assembled, Readouts, assemble
from mri.formats.stored import Finding, ReadOptions, Stored, finished
from mri.geometry import Geometry
from utils.errors import InputError

NAME = "ISMRMRD"
NOISE = 19  # flags are counted from 1 in ismrmrd.h
CALIBRATION, REVERSED = 20, 22
# readouts that are no samples of the image
NO_IMAGE = {
    CALIBRATION: "calibration", 23: "navigator", 24: "phase correction", 26: "feedback", 27: "dummy",
    28: "real-time feedback", 29: "surface coil correction", 30: "phase stabilization", 31: "phase stabilization",
}  # fmt: skip
MOST_PHASE_OVERSAMPLING = 4.0
SIEMENS, SIEMENS_TICK_MS = "siemens", 2.5  # of the time stamps; the format does not say what other vendors have


def recognises(path: Path) -> bool:
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    try:
        with h5py.File(path, "r") as file:
            return _group(file) is not None
    except PermissionError:
        raise
    except Exception:  # of whatever damage: who reads it as arrays says what is wrong
        return False


def _group(file: h5py.File) -> h5py.Group | None:
    """The group with header and readouts, by convention 'dataset'."""
    for name in file:
        if isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Group):
            parts = [file[name].get(part, getlink=True) for part in ("xml", "data")]
            if all(isinstance(part, h5py.HardLink) for part in parts):
                data = file[name]["data"]
                if isinstance(data, h5py.Dataset) and "head" in (data.dtype.names or ()):
                    return file[name]
    return None


def contents(file: h5py.File) -> list[str]:
    """How many readouts, and of which counters several values, an open file holds."""
    group = _group(file)
    if group is None:
        return []
    heads = group["data"]["head"]
    several = {name: len(np.unique(heads["idx"][name])) for name in heads["idx"].dtype.names if name != "user"}
    counted = ", ".join(f"{name} has {count} values" for name, count in several.items() if count > 1)
    return [f"{len(heads)} readouts, {int(_has(heads, NOISE).sum())} of them noise: {counted or 'constant counters'}"]


def read(path: Path, options: ReadOptions) -> Stored:
    """The k-space of one slice; see `mri.formats.read.load_scan`."""
    options.refuse(path, NAME, "key", "frames_axis", "coils_axis", "dc")
    if options.kind == "image":
        raise InputError(f"{path} is raw data ({NAME}), so it holds k-space; leave out --kind image.")
    with opened(path) as file:
        group = _group(file)
        if group is None:
            raise InputError(f"{path} holds no readouts; give the raw data.")
        # what is read is hardly more than the file, which is rarely compressed
        check_size(path, path.stat().st_size // 8, "split it by slices")
        text = group["xml"][0] if group["xml"].shape else group["xml"][()]
        header = mrd_header.parse(path, text)
        acquisitions = group["data"][:]
    if len(acquisitions) == 0:
        raise InputError(f"{path} holds no readouts; save or download it again.")
    imaging, noise, said = _sorted(path, header, acquisitions)
    heads = imaging["head"]
    readouts = _readouts(path, header, imaging)
    assembled = assemble(path, readouts, options)
    heads = heads[assembled.used]
    layout = (
        f"{len(acquisitions)} readouts, {len(heads)} of them used: coils × {readouts.width} readout samples × "
        f"{readouts.height} phase encodings",
        *assembled.said, *said,
    )  # fmt: skip
    samples = _noise_samples(path, header, noise, heads, len(assembled.kspace[0]))
    finding = Finding(path, "", NAME, assembled.kspace, str(path), layout, sha256(path))
    details = [] if samples is None else [f"noise scan: {samples.shape[1]} samples per coil"]
    oversampling = readouts.width / round(readouts.width / header.oversampling)
    if oversampling > 1:
        details.append(f"readout oversampled {oversampling:.3g} times")
    phase_oversampling = readouts.height / round(readouts.height / min(header.phase_oversampling, readouts.height))
    if phase_oversampling > MOST_PHASE_OVERSAMPLING:
        details.append(
            f"warning: the encoded field of view in the header is {phase_oversampling:.3g} times that of the images "
            "along phase encoding; this is implausible and ignored, and the images are not cropped. Correct the header."
        )
        phase_oversampling = 1.0
    if phase_oversampling > 1:
        details.append(f"phase encoding oversampled {phase_oversampling:.3g} times")
    geometry = _geometry(header, heads, assembled, readouts, oversampling)
    if SIEMENS not in header.vendor and geometry.frame_time_ms is None:
        details.append(f"frame times are unknown: the time stamps of {header.vendor or 'this file'} have no known unit")
    if readouts.height > header.encoded_matrix[1] > 0:
        details.append(
            f"k-space has {readouts.height} lines about its centre; the header gives {header.encoded_matrix[1]}"
        )
    return finished(
        finding, "kspace", details=details, noise=samples, mask=assembled.mask, averages=assembled.averages,
        oversampling=oversampling, phase_oversampling=phase_oversampling,
        geometry=geometry,
        real_time=assembled.time == "repetition" and len(np.unique(heads["idx"]["phase"])) == 1,
    )  # fmt: skip


def _has(heads: np.ndarray, flag: int) -> np.ndarray:
    return (heads["flags"] >> np.uint64(flag - 1)) & np.uint64(1) == 1


def _is_integrated(imaging: np.ndarray, calibration: np.ndarray) -> bool:
    """Whether calibration readouts are ACS lines: in every frame, sampled like its imaging lines, none twice."""
    counters = ["phase", "repetition", "set", "slice", "kspace_encode_step_1", "kspace_encode_step_2"]
    own, others = (set(map(tuple, heads["idx"][counters].tolist())) for heads in (calibration, imaging))
    frames, others_frames = ({place[:4] for place in places} for places in (own, others))
    like = all(set(calibration[name]) <= set(imaging[name]) for name in ("number_of_samples", "encoding_space_ref"))
    return bool(own) and like and frames == others_frames and not own & others


def _sorted(path: Path, header: Header, acquisitions: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Readouts of the image, noise readouts, and what is said of the others."""
    heads = acquisitions["head"]
    noise = _has(heads, NOISE)
    keep = ~noise
    said = []
    for flag, words in NO_IMAGE.items():
        these = keep & _has(heads, flag)
        if flag == CALIBRATION and _is_integrated(heads[keep & ~these], heads[these]):
            said.append(f"{int(these.sum())} calibration readouts are ACS lines of every frame and are used")
        elif these.any():
            said.append(f"{int(these.sum())} {words} readouts are left out")
            keep &= ~these
    other = keep & (heads["encoding_space_ref"] != 0)
    if other.any():
        said.append(f"{int(other.sum())} readouts of another encoding are left out")
        keep &= ~other
    if keep.any():  # pilot tones and navigators without a flag have another length or other coils than the image
        for field, words in (("number_of_samples", "samples"), ("active_channels", "coils")):
            lengths, counts = np.unique(heads[field][keep], return_counts=True)
            usual = lengths[counts.argmax()]
            odd = keep & (heads[field] != usual)
            if odd.any() and (words == "coils" or odd.sum() < 0.1 * keep.sum()):
                said.append(
                    f"{int(odd.sum())} readouts with other than {usual} {words} are left out (navigators, pilot tones?)"
                )
                keep &= ~odd
    if not keep.any():
        raise InputError(f"{path} has no imaging readouts, only noise or calibration; give the imaging scan.")
    if header.trajectory not in ("", "cartesian", "other", "epi") or (heads["trajectory_dimensions"][keep] > 0).any():
        words = header.trajectory or "non-Cartesian"
        raise InputError(f"{path} has a {words} trajectory; grid it to Cartesian k-space.")
    if (_has(heads, REVERSED) & keep).any():
        raise InputError(f"{path} has reversed readouts (EPI), which need a phase correction; correct them first.")
    if len(np.unique(heads["idx"]["kspace_encode_step_2"][keep])) > 1:
        raise InputError(f"{path} is a 3-D scan; inverse Fourier transform it along kz and save one slice.")
    return acquisitions[keep], acquisitions[noise], said


def _values(path: Path, acquisition: np.void) -> np.ndarray:
    """The samples of a readout, complex64 `(coils, samples)`."""
    coils, samples = int(acquisition["head"]["active_channels"]), int(acquisition["head"]["number_of_samples"])
    values = np.asarray(acquisition["data"], np.float32)
    if coils * samples == 0 or values.size != 2 * coils * samples:
        raise InputError(f"{path} has a readout whose length differs from its header; it is damaged: save it again.")
    return values.view(np.complex64).reshape(coils, samples)


def _readouts(path: Path, header: Header, imaging: np.ndarray) -> Readouts:
    """The readouts, each at its place in k-space with the centre at n//2."""
    heads = imaging["head"]
    length = heads["number_of_samples"].astype(int)
    pre, post = heads["discard_pre"].astype(int), heads["discard_post"].astype(int)
    pre, post = (np.where(pre + post < length, cut, 0) for cut in (pre, post))
    width = max(header.encoded_matrix[0], int(length.max()))
    start = width // 2 - heads["center_sample"].astype(int)
    # without a centre in the header, a complete readout fills the matrix
    start = np.where((start < 0) | (start + length > width), width - length, start)
    step = heads["idx"]["kspace_encode_step_1"].astype(int)
    height = header.encoded_matrix[1] or int(step.max()) + 1
    centre = header.centers.get("kspace_encoding_step_1", 0)
    if not step.max() / 8 < centre <= step.max():  # partial Fourier measures more than an eighth of the other half
        centre = height // 2
    # partial Fourier counts from the first measured line, and some headers name as many lines as were measured
    height = max(height, 2 * centre, 2 * (int(step.max()) + 1 - centre))
    lines = step + height // 2 - centre
    samples = [
        _values(path, acquisition)[:, first : n - last]
        for acquisition, first, last, n in zip(imaging, pre, post, length, strict=True)
    ]
    counters = {name: heads["idx"][name].astype(int) for name in COUNTERS}
    return Readouts(samples, start + pre, lines, counters, height, width)


def _noise_samples(
    path: Path, header: Header, noise: np.ndarray, heads: np.ndarray, coils: int
) -> torch.Tensor | None:
    """Noise `(coils, n)` at the bandwidth of the imaging samples."""
    fitting = noise[noise["head"]["active_channels"] == coils]
    if len(fitting) == 0:
        return None
    # white noise has a variance in proportion to the bandwidth, which is 1 over the dwell time
    dwell, own = float(heads["sample_time_us"][0]), float(fitting["head"]["sample_time_us"][0])
    known = min(dwell, own, header.noise_bandwidth) > 0
    gain = (own / dwell / header.noise_bandwidth) ** 0.5 if known else 1.0
    values = np.concatenate([_values(path, one) for one in fitting], axis=1)
    return torch.from_numpy(values * np.float32(gain))


def _geometry(
    header: Header, heads: np.ndarray, assembled: Assembled, readouts: Readouts, oversampling: float
) -> Geometry:
    voxel = header.voxel_mm
    if voxel is not None:
        voxel = (voxel[0] * header.encoded_matrix[1] / readouts.height, *voxel[1:])
    along_row, along_column = (heads[name][0].astype(float) for name in ("read_dir", "phase_dir"))
    known = voxel is not None and abs(along_row).sum() > 0 and abs(along_column).sum() > 0
    position = None
    if known and voxel is not None:
        columns = round(readouts.width / oversampling)
        to_centre = columns // 2 * voxel[1] * along_row + readouts.height // 2 * voxel[0] * along_column
        corner = heads["position"][0] - to_centre
        position = (float(corner[0]), float(corner[1]), float(corner[2]))
    times = _times_ms(header, heads, assembled)
    frame_time = float(np.median(np.diff(times))) if times is not None else _frame_time_by_tr(header, assembled)
    return Geometry(
        voxel_mm=voxel,
        slice_thickness_mm=voxel[2] if voxel else None,
        orientation=tuple(map(float, (*along_row, *along_column))) if known else None,
        position_mm=position,
        frame_time_ms=frame_time,
        frame_times_ms=tuple(times) if times is not None else None,
    )


def _times_ms(header: Header, heads: np.ndarray, assembled: Assembled) -> list[float] | None:
    """The time of each frame; None where the stamps do not increase, or their tick is not known."""
    if SIEMENS not in header.vendor:
        return None
    stamps = heads["physiology_time_stamp"][:, 0] if assembled.time == "phase" else heads["acquisition_time_stamp"]
    count = len(assembled.kspace)
    times = [float(stamps[assembled.frame == f].mean()) * SIEMENS_TICK_MS for f in range(count)]
    return [time - times[0] for time in times] if all(np.diff(times) > 0) else None


def _frame_time_by_tr(header: Header, assembled: Assembled) -> float | None:
    """TR times the readouts of a frame; None without a TR, or where other readouts may lie between those of a frame."""
    if header.repetition_time_ms <= 0 or assembled.time != "repetition" or not assembled.used.all():
        return None
    return header.repetition_time_ms * float(np.median(np.bincount(assembled.frame)))
