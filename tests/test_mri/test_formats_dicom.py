"""DICOM series, written with pydicom: classic, one file a frame, and enhanced, one file for all."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mri.formats import load_scan, sha256
from mri.formats.dicom_frames import refuse_unreadable
from mri.formats.export import patient_header
from mri.formats.stored import SeveralSlices
from mri.intake import is_several_scans, scan_files, scan_from_file
from mri.intake_settings import Intake
from mri.phantom import make_phantom
from mri.scan import Source
from reconstruction.prepare import prepare
from tests.refusals import refusal
from utils.errors import InputError

pydicom = pytest.importorskip("pydicom")
MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
SERIES = "1.2.826.0.1.3680043.8.498.1"
SLOPE, INTERCEPT = 0.5, -3.0


@pytest.fixture(scope="module")
def values():
    """Stored values (frames, rows, columns) = (6, 64, 48), no symmetry"""
    return (1000 * make_phantom(6, 64, 3)[..., 4:52].abs()).numpy().astype(np.uint16)


def dataset(pixels, sop=MR):
    """The parts that every image has; no patient."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop, pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    one = pydicom.Dataset()
    one.file_meta = meta
    one.SOPClassUID, one.SOPInstanceUID, one.Modality = sop, meta.MediaStorageSOPInstanceUID, "MR"
    one.SeriesInstanceUID, one.SeriesNumber = SERIES, 7
    one.Rows, one.Columns = pixels.shape[-2:]
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
    one.PixelData = pixels.astype(np.uint16).tobytes()
    return one


def classic(folder, values, order=None, position=(10.0, 20.0, 30.0), first=0, **more):
    """One file a frame, named in an order that says nothing; trigger times 40 ms apart."""
    folder.mkdir(exist_ok=True)
    for t, pixels in enumerate(values):
        one = dataset(pixels)
        one.InstanceNumber, one.TriggerTime = first + t + 1, 40.0 * t
        one.PixelSpacing, one.SliceThickness = [1.5, 2.0], 8
        one.ImageOrientationPatient, one.ImagePositionPatient = [0, 1, 0, 0, 0, -1], list(position)
        one.RescaleSlope, one.RescaleIntercept = SLOPE, INTERCEPT
        for name, value in more.items():
            value = value[t] if isinstance(value, list) else value
            if value is None:
                delattr(one, name)
            else:
                setattr(one, name, value)
        one.save_as(folder / f"IM{(t * 5 + 3) % 7 + first}.dcm", enforce_file_format=True)
    return folder


def enhanced(path, values, times=True, slices=1):
    """One file for all frames and slices; the frames are stored in another order than that of time."""
    count = len(values) // slices
    order = list(range(count))[::-1]
    stored = np.concatenate([values[s * count : (s + 1) * count][order] for s in range(slices)])
    one = dataset(stored, ENHANCED_MR)
    one.NumberOfFrames = len(stored)
    shared = pydicom.Dataset()
    for name, entries in (
        ("PixelMeasuresSequence", {"PixelSpacing": [1.5, 2.0], "SliceThickness": 8}),
        ("PlaneOrientationSequence", {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}),
        ("PixelValueTransformationSequence", {"RescaleSlope": SLOPE, "RescaleIntercept": INTERCEPT}),
    ):
        setattr(shared, name, [_item(entries)])
    one.SharedFunctionalGroupsSequence = [shared]
    each = []
    for s in range(slices):
        for t in order:
            frame = pydicom.Dataset()
            frame.PlanePositionSequence = [_item({"ImagePositionPatient": [10.0, 20.0, 30.0 + 10 * s]})]
            frame.FrameContentSequence = [_item({"TemporalPositionIndex": t + 1, "InStackPositionNumber": s + 1})]
            if times:
                frame.CardiacSynchronizationSequence = [_item({"NominalCardiacTriggerDelayTime": 40.0 * t})]
            each.append(frame)
    one.PerFrameFunctionalGroupsSequence = each
    one.save_as(path, enforce_file_format=True)
    return path


def _item(entries):
    item = pydicom.Dataset()
    for name, value in entries.items():
        setattr(item, name, value)
    return item


def rescaled(values):
    return torch.from_numpy(values.astype(np.float32) * SLOPE + INTERCEPT)


def test_a_classic_series(tmp_path, values):
    folder = classic(tmp_path / "series", values)
    (folder / "README.txt").write_text("no image")
    stored = load_scan(folder)
    assert torch.equal(stored.data.real[:, 0], rescaled(values)) and "ordered by trigger time" in str(stored)
    geometry = stored.geometry
    assert geometry.voxel_mm == (1.5, 2.0, 8.0) and geometry.orientation == (0, 1, 0, 0, 0, -1)
    assert geometry.position_mm == (10, 20, 30) and geometry.frame_time_ms == 40
    assert geometry.frame_times_ms == (0, 40, 80, 120, 160, 200) and not geometry.irregular
    assert not is_several_scans(folder) and scan_files(folder) == [folder]
    assert sha256(folder) == stored.sha256
    scan, _ = scan_from_file(Intake(), folder)
    assert scan.name == "series" and scan.geometry == geometry
    assert scan_files(tmp_path) == [folder]  # a folder of series
    np.save(folder / "other.npy", values)
    assert is_several_scans(folder)  # of another format, too


def test_instance_numbers_order_what_has_no_trigger_time(tmp_path, values):
    folder = classic(tmp_path / "series", values, TriggerTime=None)
    stored = load_scan(folder)
    assert torch.equal(stored.data.real[:, 0], rescaled(values)) and "ordered by instance number" in str(stored)
    assert stored.geometry.frame_time_ms is None


def test_a_real_time_series(tmp_path, values):
    times = [f"1200{seconds:09.6f}" for seconds in (0, 0.9, 1.8, 2.7, 3.6, 4.5)]
    folder = classic(tmp_path / "series", values, TriggerTime=None, AcquisitionTime=times)
    scan, _ = scan_from_file(Intake(), folder)
    assert scan.real_time and scan.geometry.frame_time_ms == pytest.approx(900)
    assert any("real-time" in note for note in prepare(scan).notes)


def test_irregular_times_are_no_cycle(tmp_path, values):
    times = [0.0, 40.0, 90.0, 130.0, 185.0, 225.0]
    folder = classic(tmp_path / "series", values, TriggerTime=times)
    scan, _ = scan_from_file(Intake(), folder)
    assert scan.geometry.irregular and scan.geometry.frame_times_ms == tuple(times)
    problem = prepare(scan)
    assert not problem.periodic and any("frame times are irregular" in note for note in problem.notes)


@pytest.mark.parametrize("times", [True, False])
def test_an_enhanced_file(tmp_path, values, times):
    path = enhanced(tmp_path / "scan.dcm", values, times)
    stored = load_scan(path)
    assert torch.equal(stored.data.real[:, 0], rescaled(values))
    assert ("trigger time" if times else "temporal position") in str(stored)
    assert stored.geometry.voxel_mm == (1.5, 2.0, 8.0) and stored.geometry.position_mm == (10, 20, 30)
    assert stored.geometry.frame_time_ms == (40 if times else None)


def test_a_multi_frame_file_without_functional_groups(tmp_path, values):
    one = dataset(values)
    one.NumberOfFrames, one.FrameTime = len(values), 40.0
    one.save_as(tmp_path / "scan", enforce_file_format=True)
    stored = load_scan(tmp_path / "scan")
    assert torch.equal(stored.data.real[:, 0], torch.from_numpy(values.astype(np.float32)))
    assert stored.geometry.frame_time_ms == 40


def test_slices(tmp_path, values):
    folder = classic(tmp_path / "series", values)
    classic(folder, values // 2, position=(20.0, 20.0, 30.0), first=100)
    path = enhanced(tmp_path / "scan.dcm", np.concatenate([values, values // 2]), slices=2)
    for place in (folder, path):
        with pytest.raises(SeveralSlices):
            load_scan(place)
        found = [load_scan(place, slice=index).data.real[:, 0] for index in (0, 1)]
        found.sort(key=torch.sum)
        assert torch.equal(found[0], rescaled(values // 2)) and torch.equal(found[1], rescaled(values))
    (folder / "IM103.dcm").unlink()
    refusal(folder, "6, 5 images", "missing", slice=0) if _first_is_complete(folder) else refusal(
        folder, "5, 6 images", "missing", slice=0
    )


def _first_is_complete(folder):
    """The normal of the slices, row × column, decides which comes first."""
    normal = np.cross([0, 1, 0], [0, 0, -1])
    return normal @ [10, 0, 0] < normal @ [20, 0, 0]


def test_several_series(tmp_path, values):
    folder = classic(tmp_path / "series", values)
    classic(folder, values[:4], first=50, SeriesInstanceUID=SERIES + ".9", SeriesNumber=8)
    refusal(folder, "7 (6 images)", "8 (4 images)", "--key")
    refusal(folder, "no series 5", key="5")
    assert torch.equal(load_scan(folder, key="8").data.real[:, 0], rescaled(values[:4]))


def test_the_patient_of_the_series_that_was_chosen(tmp_path, values):
    folder = classic(tmp_path / "series", values, PatientName="First^One")
    classic(folder, values[:4], first=50, SeriesInstanceUID=SERIES + ".9", SeriesNumber=8, PatientName="Second^One")
    for key, name in (("7", "First^One"), ("8", "Second^One")):
        stored = load_scan(folder, key)
        assert patient_header(Source("scan", header_file=stored.header_file)).PatientName == name


def test_phase_images_are_left_out(tmp_path, values):
    folder = classic(tmp_path / "series", values, ImageType=["ORIGINAL\\PRIMARY\\M"] * 6)
    classic(folder, values, first=50, ImageType=["ORIGINAL\\PRIMARY\\P"] * 6)
    stored = load_scan(folder)
    assert len(stored.data) == 6 and "6 phase images are left out" in str(stored)


def test_series_that_are_refused(tmp_path, values):
    folder = classic(tmp_path / "sizes", values)
    one = dataset(values[0, :32])
    one.InstanceNumber, one.TriggerTime = 7, 240.0
    one.ImageOrientationPatient, one.ImagePositionPatient = [0, 1, 0, 0, 0, -1], [10.0, 20.0, 30.0]
    one.save_as(folder / "small.dcm", enforce_file_format=True)
    refusal(folder, "32 × 48 and 64 × 48")
    folder = classic(tmp_path / "gap", values)
    (folder / f"IM{(3 * 5 + 3) % 7}.dcm").unlink()
    refusal(folder, "after frame 2", "jumps from 80 to 160", "missing")
    folder = classic(tmp_path / "short", values, CardiacNumberOfImages=8)
    refusal(folder, "6 of the 8 cardiac phases")
    folder = classic(tmp_path / "slope", values, RescaleSlope=0.0)
    refusal(folder / "IM3.dcm", "one image of a DICOM series")
    with pytest.raises(InputError, match="rescale slope 0"):
        load_scan(folder)
    folder = classic(tmp_path / "same", values, TriggerTime=0.0, InstanceNumber=1)
    refusal(folder, "cannot be ordered by trigger time")
    refusal(folder, "--kind kspace", kind="kspace")
    (tmp_path / "empty").mkdir()
    refusal(tmp_path / "empty", "folder")


@pytest.mark.parametrize(
    "name,decoded", [("JPEG2000Lossless", True), ("JPEG2000MCLossless", False), ("MPEG2MPML", False)]
)
def test_compression_without_a_decoder_is_refused(name, decoded):
    syntax = getattr(pydicom.uid, name)
    dataset = SimpleNamespace(file_meta=SimpleNamespace(TransferSyntaxUID=syntax))
    refused = nullcontext() if decoded else pytest.raises(InputError, match="series is compressed as .* uncompressed")
    with refused:
        refuse_unreadable(Path("series"), dataset)


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"])
def test_compressed_images(syntax, tmp_path, values):
    """As archives keep them; a damaged one is not mistaken for one that cannot be read."""
    gdcm = pytest.importorskip("gdcm")
    folder = classic(tmp_path / "series", values, RescaleSlope=1.0, RescaleIntercept=0.0)  # GDCM writes no others
    for file in folder.iterdir():
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(file))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(file))
        assert writer.Write()
    assert pydicom.dcmread(folder / "IM3.dcm").file_meta.TransferSyntaxUID.is_compressed
    assert torch.equal(load_scan(folder).data.real[:, 0], torch.from_numpy(values.astype(np.float32)))
    whole = (folder / "IM3.dcm").read_bytes()
    (folder / "IM3.dcm").write_bytes(whole[: int(0.7 * len(whole))])
    with pytest.raises(InputError, match="damaged or cut short"):
        load_scan(folder)


def test_compression_that_nothing_reads_is_named(tmp_path, values):
    folder = classic(tmp_path / "series", values)
    one = pydicom.dcmread(folder / "IM3.dcm")
    one.PixelData = pydicom.encaps.encapsulate([one.PixelData])
    one["PixelData"].is_undefined_length = True
    one.file_meta.TransferSyntaxUID = pydicom.uid.HTJ2KLossless
    one.save_as(folder / "IM3.dcm")
    refusal(folder, "IM3.dcm", "compressed as High-Throughput JPEG 2000", "uncompressed")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_files_that_are_cut_short(tmp_path, values, share):
    folder = classic(tmp_path / "series", values)
    file = folder / "IM3.dcm"
    whole = file.read_bytes()
    file.write_bytes(whole[: max(int(share * len(whole)), 200)])
    with pytest.raises(InputError) as caught:
        load_scan(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_what_the_memory_does_not_hold(tmp_path, values, monkeypatch):
    folder = classic(tmp_path / "series", values)
    monkeypatch.setattr("mri.formats.limits.available_bytes", lambda: 1000)
    refusal(folder, "memory")


def test_copies_of_images_are_left_out(tmp_path, values):
    folder = classic(tmp_path / "series", values)
    once = load_scan(folder)
    for file in list(folder.iterdir()):
        (folder / f"copy_{file.name}").write_bytes(file.read_bytes())
    twice = load_scan(folder)
    assert torch.equal(once.data, twice.data) and "6 copies of images" in str(twice)
