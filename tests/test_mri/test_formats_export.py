"""Series for viewers: what is written is read back where it lay, when it was, with the values it had."""

import json
import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import nibabel
import numpy as np
import pydicom
import pytest

from mri.formats import load_scan
from mri.formats.export import (
    FORMATS,
    add_series,
    on_matrix,
    parse_matrix,
    patient_header,
    series_record,
    write_series,
)
from mri.geometry import Geometry
from mri.scan import Source
from utils.errors import InputError

# not square, not axial, not symmetric
GEOMETRY = Geometry(
    voxel_mm=(1.5, 1.25, 8.0), slice_thickness_mm=6.0, orientation=(0.0, 0.8, -0.6, 0.0, 0.6, 0.8),
    position_mm=(10.0, -20.0, 35.5), frame_time_ms=40.0,
)  # fmt: skip
FILES = {"nifti": "reconstruction.nii.gz", "dicom": "dicom", "cfl": "reconstruction.cfl"}


@pytest.fixture
def image():
    generator = np.random.default_rng(0)
    size = generator.random((5, 24, 32)) * np.arange(1, 33) * np.arange(1, 25)[:, None]
    return (size * np.exp(1j * generator.random(size.shape))).astype(np.complex64)


@pytest.mark.parametrize("name", FORMATS)
def test_a_round_trip_keeps_values_place_and_time(name, image, tmp_path):
    assert write_series(tmp_path, (name,), image, GEOMETRY, "a scan") == []
    stored = load_scan(tmp_path / FILES[name], kind="image" if name == "cfl" else None)
    found = stored.data[:, 0].numpy()
    expected = image if name == "cfl" else np.abs(image)
    assert found.shape == image.shape
    assert np.abs(found - expected).max() < (1e-5 if name == "dicom" else 1e-6) * np.abs(image).max()
    if name == "cfl":
        return
    assert np.allclose(stored.geometry.affine(), GEOMETRY.affine(), atol=1e-5)
    assert stored.geometry.frame_time_ms == pytest.approx(40)
    assert stored.geometry.voxel_mm == pytest.approx(GEOMETRY.voxel_mm)


def test_frames_of_unequal_length_keep_their_times_in_dicom(image, tmp_path):
    times = (0.0, 30.0, 61.5, 90.0, 130.0)
    write_series(tmp_path, ("dicom",), image, Geometry(voxel_mm=(1, 1, 5), frame_times_ms=times), "a scan")
    assert load_scan(tmp_path / "dicom").geometry.frame_times_ms == pytest.approx(times)


def test_what_is_assumed_is_said(image, tmp_path):
    said = write_series(tmp_path, ("nifti",), image, Geometry(), "a scan")
    assert any("1 mm" in text for text in said) and any("frame times" in text for text in said)
    said = write_series(tmp_path, ("cfl",), image, Geometry(), "a scan")
    assert said == []
    said = write_series(tmp_path, ("dicom",), image, Geometry(voxel_mm=(2, 2, 8)), "a scan")
    assert any("axial" in text for text in said)


def test_dicom_holds_no_patient_unless_asked_and_one_window(image, tmp_path):
    (tmp_path / "new").mkdir()
    write_series(tmp_path / "new", ("dicom",), image, GEOMETRY, "a scan")
    files = [pydicom.dcmread(file) for file in sorted((tmp_path / "new" / "dicom").iterdir())]
    assert {str(one.PatientName) + str(one.PatientID) + str(one.PatientBirthDate) for one in files} == {""}
    assert len({one.SOPInstanceUID for one in files}) == len(files) == 5
    assert len({(one.SeriesInstanceUID, str(one.WindowWidth), str(one.RescaleSlope)) for one in files}) == 1
    for file in (tmp_path / "new" / "dicom").iterdir():  # a source that names a patient
        data = pydicom.dcmread(file)
        data.PatientName, data.StudyID = "Phantom^Test", "7"
        data.save_as(file)
    (tmp_path / "kept").mkdir()
    header = patient_header(Source("new", header_file=str(tmp_path / "new" / "dicom" / "frame_001.dcm")))
    write_series(tmp_path / "kept", ("dicom",), 2 * image, GEOMETRY, "a scan", header)
    kept = pydicom.dcmread(tmp_path / "kept" / "dicom" / "frame_000.dcm")
    assert str(kept.PatientName) == "Phantom^Test" and kept.StudyInstanceUID == files[0].StudyInstanceUID
    assert kept.SeriesInstanceUID != files[0].SeriesInstanceUID and kept.SeriesNumber != files[0].SeriesNumber
    (tmp_path / "text.npy").write_bytes(b"no dicom")
    for source in (Source("text", path="text.npy"), Source("text", header_file=str(tmp_path / "text.npy"))):
        with pytest.raises(InputError, match="keep_patient: text"):
            patient_header(source)


def test_names_in_any_script_are_kept(image, tmp_path):
    header = pydicom.Dataset()
    header.PatientName, header.SeriesNumber = "Прокофьев^Сергей", 7
    write_series(tmp_path, ("dicom",), image, GEOMETRY, "a scan", header)
    kept = pydicom.dcmread(tmp_path / "dicom" / "frame_000.dcm")
    assert kept.PatientName == "Прокофьев^Сергей" and kept.SeriesNumber == 1007


def test_slices_of_one_file_belong_to_one_study(image, tmp_path):
    slices = []
    for number, position in enumerate(((0.0, 0.0, 0.0), (0.0, 0.0, 8.0))):
        (tmp_path / str(number)).mkdir()
        geometry = replace(GEOMETRY, position_mm=position)
        write_series(tmp_path / str(number), ("dicom",), image, geometry, "checksum")
        slices.append(pydicom.dcmread(tmp_path / str(number) / "dicom" / "frame_000.dcm"))
    first, second = slices
    assert first.StudyInstanceUID == second.StudyInstanceUID
    assert first.FrameOfReferenceUID == second.FrameOfReferenceUID
    assert first.SeriesInstanceUID != second.SeriesInstanceUID and first.SOPInstanceUID != second.SOPInstanceUID


def test_series_asked_for_otherwise_are_written_anew(image, tmp_path):
    np.save(tmp_path / "reconstruction.npy", image)
    record = {"seed": 0, "series": series_record(("nifti",), None, False)}
    (tmp_path / "config.json").write_text(json.dumps(record))
    write_series(tmp_path, ("nifti",), image, GEOMETRY, "a scan")
    scan = SimpleNamespace(geometry=GEOMETRY, source=Source("scan"))
    before = (tmp_path / "reconstruction.nii.gz").read_bytes()

    def added(*formats, matrix=None):
        return add_series(tmp_path, formats, lambda: (scan, None), matrix=matrix)

    assert added("nifti") == "" and (tmp_path / "reconstruction.nii.gz").read_bytes() == before
    assert "nifti added, dicom added" in added("nifti", "dicom", matrix=(64, 64))
    assert nibabel.load(tmp_path / "reconstruction.nii.gz").shape[:2] == (64, 64)
    assert added("nifti", "dicom", matrix=(64, 64)) == ""
    assert "dicom added" in added("dicom")  # as measured again
    assert pydicom.dcmread(tmp_path / "dicom" / "frame_000.dcm").Rows == image.shape[1]
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0
    assert not list(tmp_path.glob(".series*"))


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy of Debian's dicom3tools")
@pytest.mark.parametrize("geometry", (GEOMETRY, Geometry()))
def test_dicom_is_valid(geometry, image, tmp_path):
    write_series(tmp_path, ("dicom",), image / 1000, geometry, "a scan")
    told = subprocess.run(["dciodvfy", tmp_path / "dicom" / "frame_002.dcm"], capture_output=True, text=True)
    assert "Error" not in told.stderr + told.stdout, told.stderr


def test_the_same_images_give_the_same_files(image, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_series(tmp_path / name, ("dicom", "cfl"), image, GEOMETRY, "a scan")
    for path in sorted((tmp_path / "one").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


@pytest.mark.parametrize("matrix", ((48, 64), (36, 40), (20, 32), (25, 33)))
def test_another_matrix_keeps_field_of_view_place_and_intensity(matrix, tmp_path):
    rows, columns = np.meshgrid(np.arange(24) - 12, np.arange(32) - 16, indexing="ij")
    blob = np.exp(-((rows - 2) ** 2 + (columns + 3) ** 2) / 8).astype(np.complex64)[None].repeat(3, 0)
    image, geometry = on_matrix(blob, GEOMETRY, matrix)
    assert image.shape == (3, *matrix)
    assert np.abs(image).max() == pytest.approx(np.abs(blob).max(), rel=0.15)  # its top lies between pixels
    for one, where in ((blob, GEOMETRY), (image, geometry)):
        weight = np.abs(one[0]) ** 2
        place = [(weight.sum(axis) * np.arange(weight.shape[1 - axis])).sum() / weight.sum() for axis in (0, 1)]
        centre = where.affine() @ [place[0], place[1], 0, 1]
        assert np.allclose(centre, GEOMETRY.affine() @ [13, 14, 0, 1], atol=0.15)
    write_series(tmp_path, ("nifti",), blob, GEOMETRY, "a scan", matrix=matrix)
    assert load_scan(tmp_path / FILES["nifti"]).data.shape[2:] == matrix


def test_matrices_in_words():
    assert parse_matrix("") is None and parse_matrix("256") == (256, 256) and parse_matrix("256x192") == (256, 192)
    for text in ("0", "256x", "1x2x3", "wide"):
        with pytest.raises(InputError, match="--matrix"):
            parse_matrix(text)
