"""Series for viewers: NIfTI, DICOM and BART's `.cfl`, with voxel size, orientation and frame times where known.

Magnitudes are written to NIfTI and DICOM, complex values to `.cfl`. Libraries are imported where they are used.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mri.fourier import fft2c, ifft2c
from mri.geometry import Geometry
from mri.scan import Source
from utils.errors import InputError
from utils.files import atomic_path

FORMATS = ("nifti", "dicom", "cfl")
DICOM_FOLDER, NIFTI_NAME, CFL_NAME = "dicom", "reconstruction.nii.gz", "reconstruction"
MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
LARGEST = 65535  # stored value of a DICOM image
DERIVED = 1000  # added to the number of the source's series
WINDOW_TOP = 99.5  # percentile of the series that the window shows as white
TIME_DIMENSION, DIMENSIONS = 10, 16  # of BART
# what identifies the patient and the study: copied from a DICOM source when asked, else empty or new
PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
STUDY = ("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
         "FrameOfReferenceUID", "PatientPosition")  # fmt: skip


def parse_matrix(text: str) -> tuple[int, int] | None:
    """Rows and columns of `256` or `256x192`; None for an empty text.

    Raises
    ------
    InputError
        for anything else.
    """
    words = text.lower().replace("×", "x").split("x")
    if not text:
        return None
    if len(words) > 2 or not all(word.isdecimal() and 8 <= int(word) <= 4096 for word in words):
        raise InputError(f"--matrix {text}: give rows and columns as 256 or 256x192, each from 8 to 4096.")
    return int(words[0]), int(words[-1])


def on_matrix(
    image: np.ndarray, geometry: Geometry, matrix: tuple[int, int] | None
) -> tuple[np.ndarray, Geometry]:
    """Images `(frames, height, width)` interpolated in the same field of view, by zeros around their k-space."""
    held = (image.shape[1], image.shape[2])
    if matrix is None or matrix == held:
        return image, geometry
    kspace = fft2c(torch.from_numpy(image))
    for axis, (old, new) in zip((1, 2), zip(held, matrix, strict=True), strict=True):
        before = new // 2 - old // 2  # DC stays at n//2
        if new < old:
            kspace = kspace.narrow(axis, -before, new)
        else:
            sizes = (0, 0, before, new - old - before) if axis == 1 else (before, new - old - before)
            kspace = torch.nn.functional.pad(kspace, sizes)
    gain = (matrix[0] * matrix[1] / (held[0] * held[1])) ** 0.5  # intensities stay
    return (gain * ifft2c(kspace)).numpy(), geometry.resampled(held, matrix)


def write_series(
    folder: Path, formats: tuple[str, ...], image: np.ndarray, geometry: Geometry, source: str, header: Any = None,
    matrix: tuple[int, int] | None = None,
) -> list[str]:
    """Write a reconstruction into `folder` in each of `formats`.

    Parameters
    ----------
    image
        complex64 `(frames, height, width)`, as the scan's rows and columns lie.
    source
        checksum of the scan's file: what the study of a new DICOM series follows from.
    header
        dataset of a DICOM source (`patient_header`) whose patient and study the DICOM series is to belong to.
    matrix
        rows and columns to interpolate to, see `on_matrix`.

    Returns
    -------
    one sentence for each thing that had to be assumed.
    """
    image, geometry = on_matrix(image, geometry, matrix)
    said = []
    viewers = [one for one in formats if one in ("nifti", "dicom")]
    if viewers and geometry.voxel_mm is None:
        said.append("the file does not give the voxel size; 1 mm is written")
    if viewers and geometry.voxel_mm is not None and geometry.affine() is None:
        said.append("the file does not give the slice orientation; an axial slice is written")
    if viewers and frame_times(geometry, len(image)) is None:
        said.append("the file does not give frame times; none are written")
    if "nifti" in formats:
        write_nifti(folder / NIFTI_NAME, image, geometry)
    if "dicom" in formats:
        write_dicom(folder / DICOM_FOLDER, image, geometry, source, header)
    if "cfl" in formats:
        write_cfl(folder / CFL_NAME, image)
    return said


def add_series(
    folder: Path, formats: tuple[str, ...], read: Callable[[], tuple[Any, Any]], keep_patient: bool = False,
    matrix: tuple[int, int] | None = None,
) -> str:
    """Write those of `formats` that a folder of results lacks, of the scan that `read` gives; in words, what was added.

    One of another matrix, or with another choice about the patient's data, is written anew. Each appears when it is
    complete.
    """
    places = {"nifti": NIFTI_NAME, "dicom": DICOM_FOLDER, "cfl": f"{CFL_NAME}.cfl"}
    record = json.loads((folder / "config.json").read_text())
    known, wanted = record.get("series", {}), series_record(formats, matrix, keep_patient)
    missing = tuple(
        one for one in formats if not (folder / places[one]).exists() or known.get(one, wanted[one]) != wanted[one]
    )
    if not missing:
        return ""
    scan, _ = read()
    header = patient_header(scan.source) if keep_patient else None
    image = np.load(folder / "reconstruction.npy")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".series-") as place:
        new, old = Path(place) / "new", Path(place) / "old"
        new.mkdir()
        old.mkdir()
        said = write_series(new, missing, image, scan.geometry, scan.source.sha256, header, matrix)
        for path in new.iterdir():
            if (folder / path.name).exists():
                (folder / path.name).rename(old / path.name)
            path.rename(folder / path.name)
    record["series"] = known | {one: wanted[one] for one in missing}
    with atomic_path(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
    return "".join(f", {one} added" for one in missing) + "".join(f"; {words}" for words in said)


def series_record(formats: tuple[str, ...], matrix: tuple[int, int] | None, keep_patient: bool) -> dict[str, Any]:
    """How each of `formats` was written, as JSON types."""
    how = {"matrix": None if matrix is None else list(matrix)}
    return {one: how | ({"keep_patient": keep_patient} if one == "dicom" else {}) for one in formats}


def frame_times(geometry: Geometry, frames: int) -> np.ndarray | None:
    """Time of every frame in ms, `(frames,)`; None where the geometry does not say."""
    if geometry.frame_times_ms is not None and len(geometry.frame_times_ms) == frames:
        return np.array(geometry.frame_times_ms)
    return None if geometry.frame_time_ms is None else geometry.frame_time_ms * np.arange(frames)


def write_nifti(path: Path, image: np.ndarray, geometry: Geometry) -> None:
    """Magnitude as float32 (x, y, slice, time), x along the rows of the image."""
    import nibabel

    voxel = geometry.voxel_mm or (1.0, 1.0, 1.0)
    affine = geometry.affine()
    if affine is None:
        affine = np.diag([-voxel[1], -voxel[0], voxel[2], 1.0])
    series = np.abs(image).astype(np.float32).transpose(2, 1, 0)[:, :, None]
    nifti = nibabel.Nifti1Image(series, affine)
    times = frame_times(geometry, len(image))
    step = 0.0 if times is None or len(times) < 2 else float(np.median(np.diff(times)))
    nifti.header.set_zooms((voxel[1], voxel[0], voxel[2], step / 1000))
    nifti.header.set_xyzt_units("mm", "sec" if step else "unknown")
    nifti.set_qform(affine, 1)
    nifti.header["cal_max"] = np.percentile(series, WINDOW_TOP)
    nifti.header["descrip"] = b"GLDM reconstruction"
    nibabel.save(nifti, path)


def write_cfl(base: Path, image: np.ndarray) -> None:
    """Complex images as BART has them: columns along dimension 0, rows along 1, time along 10."""
    frames, height, width = image.shape
    sizes = [1] * DIMENSIONS
    sizes[0], sizes[1], sizes[TIME_DIMENSION] = width, height, frames
    base.with_suffix(".hdr").write_text(f"# Dimensions\n{' '.join(map(str, sizes))}\n")
    image.astype(np.complex64).tofile(base.with_suffix(".cfl"))  # row-major (t, y, x) is column-major (x, y, t)


def patient_header(source: Source) -> Any:
    """The header of the DICOM images that a scan was read from, for their patient and study.

    Raises
    ------
    InputError
        when the source is no DICOM file or series.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        if source.header_file:
            return pydicom.dcmread(source.header_file, stop_before_pixels=True)
    except (InvalidDicomError, OSError):
        pass
    named = source.path or source.name
    raise InputError(f"--keep_patient: {named} is not a DICOM series and has no patient data; omit the flag.")


def write_dicom(folder: Path, image: np.ndarray, geometry: Geometry, source: str, header: Any = None) -> None:
    """A derived series of classic MR images, one file per frame: `frame_000.dcm`, …

    Values are stored with one rescale slope and shown with one window for all frames. UIDs are new: those of the study
    follow from the file (`source`, its checksum), the others from images and geometry, so that the same scan gives the
    same series, and its slices belong to one study. Nothing in it comes from the names of files, which may be a
    patient's.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    size = np.abs(image).astype(np.float64)
    seed = hashlib.sha256(np.ascontiguousarray(image).tobytes() + repr(geometry).encode()).hexdigest()
    study = source or seed
    slope = float(f"{max(size.max(), 1e-30) / LARGEST:.8e}")
    top = float(np.percentile(size, WINDOW_TOP)) or slope
    voxel = geometry.voxel_mm or (1.0, 1.0, 1.0)
    times = frame_times(geometry, len(image))
    folder.mkdir()
    for number, frame in enumerate(size):
        meta, data = FileMetaDataset(), Dataset()
        uid = generate_uid(entropy_srcs=[seed, str(number)])
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(MR_IMAGE_STORAGE), uid
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta = meta
        data.SOPClassUID, data.SOPInstanceUID = MR_IMAGE_STORAGE, uid
        data.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: names in any script
        for keyword in (*PATIENT, *STUDY):
            setattr(data, keyword, header.get(keyword, "") if header is not None else "")
        data.StudyInstanceUID = data.StudyInstanceUID or generate_uid(entropy_srcs=[study, "study"])
        data.FrameOfReferenceUID = data.FrameOfReferenceUID or generate_uid(entropy_srcs=[study, "frame of reference"])
        data.SeriesInstanceUID = generate_uid(entropy_srcs=[seed, "series"])
        data.Modality, data.Manufacturer = "MR", "GLDM"
        number_there = header.get("SeriesNumber") if header is not None else None
        data.SeriesNumber = DERIVED + int(number_there or 0)
        data.SeriesDescription = "GLDM reconstruction"
        data.PositionReferenceIndicator, data.Laterality = "", ""
        data.ImageType = ["DERIVED", "PRIMARY", "OTHER"]
        data.DerivationDescription = "Zero-shot dynamic reconstruction (GLDM) of under-sampled k-space"
        data.ScanningSequence, data.SequenceVariant = "RM", "NONE"
        data.ScanOptions = "" if times is None else "CG"  # what a trigger time asks for
        data.MRAcquisitionType, data.EchoTime, data.EchoTrainLength = "2D", None, None
        data.RepetitionTime = None
        data.InstanceNumber = number + 1
        data.TemporalPositionIdentifier, data.NumberOfTemporalPositions = number + 1, len(image)
        if times is not None:
            data.TriggerTime = f"{times[number]:.4f}"[:16]
        data.PixelSpacing = [_decimal(voxel[0]), _decimal(voxel[1])]
        data.SliceThickness = _decimal(geometry.slice_thickness_mm or voxel[2])
        data.SpacingBetweenSlices = _decimal(voxel[2])
        data.ImageOrientationPatient = [_decimal(value) for value in geometry.orientation or (1, 0, 0, 0, 1, 0)]
        data.ImagePositionPatient = [_decimal(value) for value in geometry.position_mm or (0, 0, 0)]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.Rows, data.Columns = frame.shape
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "0", f"{slope:.8e}", "US"
        data.WindowCenter, data.WindowWidth = _decimal(top / 2), _decimal(top)
        data.VOILUTFunction = "LINEAR_EXACT"  # a window may be narrower than 1
        data.PixelData = np.round(frame / slope).clip(0, LARGEST).astype("<u2").tobytes()
        data.save_as(folder / f"frame_{number:03d}.dcm", enforce_file_format=True)


def _decimal(value: float) -> str:
    """A number as DICOM's decimal string, of 16 characters at most."""
    return f"{value:.8g}"
