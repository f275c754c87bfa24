"""ISMRMRD files, written with ismrmrd: what is kept, dropped and refused."""

import warnings
from itertools import product

import numpy as np
import pytest
import torch

from mri.formats import load_scan
from mri.formats.hdf5 import opened
from mri.formats.mrd import contents
from mri.formats.stored import SeveralSlices
from mri.fourier import fft2c, ifft2c
from mri.intake import reference_from_file, scan_from_file
from mri.intake_settings import DataSettings, Intake
from mri.masks import make_mask
from mri.oversampling import crop_readout
from mri.phantom import make_coil_maps, make_phantom
from reconstruction.prepare import prepare
from tests.refusals import refusal

ismrmrd = pytest.importorskip("ismrmrd")

FRAMES, COILS, SIZE = 4, 3, 64
HEADER = """<?xml version="1.0"?>{doctype}
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<acquisitionSystemInformation><systemVendor>{vendor}</systemVendor>
<relativeReceiverNoiseBandwidth>0.79</relativeReceiverNoiseBandwidth></acquisitionSystemInformation>
<experimentalConditions><H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz></experimentalConditions>
<encoding><encodedSpace><matrixSize><x>128</x><y>64</y><z>1</z></matrixSize>
<fieldOfView_mm><x>256</x><y>192</y><z>6</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>64</x><y>64</y><z>1</z></matrixSize>
<fieldOfView_mm><x>128</x><y>{fov}</y><z>6</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>63</maximum><center>{center}</center>
</kspace_encoding_step_1></encodingLimits><trajectory>{trajectory}</trajectory></encoding>{more}</ismrmrdHeader>"""


@pytest.fixture(scope="module")
def coil_images():
    """(frames, coils, 64, 64)"""
    return make_phantom(FRAMES, SIZE, 3)[:, None] * make_coil_maps(COILS, SIZE, SIZE)


@pytest.fixture(scope="module")
def oversampled(coil_images):
    """K-space of twice the field of view along the readout."""
    return fft2c(torch.nn.functional.pad(coil_images, (SIZE // 2, SIZE // 2)))


@pytest.fixture(scope="module")
def mask():
    return make_mask("uniform", (FRAMES, SIZE, SIZE), 3, 8)[:, :, 0]


class Writer:
    """Writes readouts to a file, one call each."""

    def __init__(self, path, **header):
        known = {"center": 32, "trajectory": "cartesian", "doctype": "", "fov": 192, "vendor": "SIEMENS", "more": ""}
        self.dataset = ismrmrd.Dataset(str(path), "dataset", create_if_needed=True)
        self.dataset.write_xml_header(HEADER.format(**known | header).encode())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.dataset.close()

    def add(self, samples, flags=(), first=0, dwell=5.0, **counters):
        """`samples` (coils, n) from the sample `first` of 128."""
        values = np.ascontiguousarray(samples, np.complex64)
        acquisition = ismrmrd.Acquisition.from_array(values)
        acquisition.center_sample = 64 - first
        acquisition.sample_time_us = dwell
        acquisition.position[:] = (10.0, 20.0, 30.0)
        acquisition.read_dir[:] = (1.0, 0.0, 0.0)
        acquisition.phase_dir[:] = (0.0, 1.0, 0.0)
        acquisition.slice_dir[:] = (0.0, 0.0, 1.0)
        acquisition.physiology_time_stamp[0] = 1000 + 16 * counters.get("phase", 0)
        acquisition.acquisition_time_stamp = 5000 + 20 * counters.get("repetition", 0)
        for flag in flags:
            acquisition.set_flag(flag)
        for name, value in counters.items():
            setattr(acquisition.idx, name, value)
        self.dataset.append_acquisition(acquisition)

    def scan(self, kspace, mask, time="phase", first=0, line_offset=0, **counters):
        for frame, line in mask.nonzero().tolist():
            counters |= {time: frame, "kspace_encode_step_1": line - line_offset}
            self.add(kspace[frame, :, line, first:].numpy(), first=first, **counters)


def test_kspace_noise_oversampling_and_geometry(tmp_path, oversampled, coil_images, mask):
    path = tmp_path / "scan.dat"  # the suffix says nothing
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(COILS, 400, 2)).astype(np.float32).view(np.complex64)[..., 0]
    with Writer(path) as file:
        file.add(noise, [ismrmrd.ACQ_IS_NOISE_MEASUREMENT], dwell=10.0)
        file.scan(oversampled, mask)
    stored = load_scan(path)
    assert stored.kind == "kspace" and stored.oversampling == 2 and stored.data.shape == (FRAMES, COILS, SIZE, 128)
    assert torch.equal(stored.mask, mask[:, :, None].expand(-1, -1, 128))
    assert torch.equal(stored.data, torch.where(mask[:, None, :, None], oversampled, 0))
    # half the bandwidth has half the variance; the receiver's filter takes another part of it
    assert torch.allclose(stored.noise, torch.from_numpy(noise) * (2 / 0.79) ** 0.5)
    geometry = stored.geometry
    assert geometry.voxel_mm == (3.0, 2.0, 6.0) and geometry.orientation == (1, 0, 0, 0, 1, 0)
    assert geometry.position_mm == (10 - 32 * 2, 20 - 32 * 3, 30)  # of the cropped images
    assert geometry.frame_time_ms == 40 and geometry.frame_times_ms == (0, 40, 80, 120) and not stored.real_time
    scan, reference = scan_from_file(Intake(), path)
    assert reference is None and scan.matrix == (64, 64)
    problem = prepare(scan)
    assert problem.model.mask.shape == (FRAMES, SIZE, SIZE) and any("oversampling" in note for note in problem.notes)
    cropped = scan.without_oversampling()
    expected = torch.where(mask[:, None, :, None], fft2c(coil_images), 0)
    assert torch.allclose(cropped.kspace, expected, atol=1e-4)


def test_phase_oversampling_is_cropped_from_the_finished_images(tmp_path, oversampled, coil_images, mask):
    path = tmp_path / "scan.h5"
    with Writer(path, fov=120) as file:
        file.scan(oversampled, mask)
    scan, _ = scan_from_file(Intake(), path)
    assert scan.kspace.shape[2] == SIZE and scan.matrix == (40, SIZE)
    assert scan.geometry.position_mm == (10 - 32 * 2, 20 - 20 * 3, 30) and scan.geometry.voxel_mm == (3.0, 2.0, 6.0)
    problem = prepare(scan)
    assert any("cropped from 64 rows to 40" in note for note in problem.notes)
    assert problem.model.mask.shape == (FRAMES, SIZE, SIZE)  # what aliases is resolved in the whole field of view
    image = problem.finished(problem.view_sharing())
    truth = coil_images.abs().square().sum(dim=1).sqrt()[:, 12:52]
    assert image.shape == truth.shape and problem.finished_maps().shape[1:] == truth.shape[1:]
    assert (image.abs() - truth).norm() < 0.2 * truth.norm()
    with Writer(tmp_path / "wrong.h5", fov=19.2) as file:  # in cm
        file.scan(oversampled, mask)
    wrong, _ = scan_from_file(Intake(), tmp_path / "wrong.h5")
    assert wrong.matrix == (SIZE, SIZE) and "warning: the encoded field of view" in str(wrong)
    half, _ = scan_from_file(Intake(DataSettings(size=32)), path)
    assert half.matrix == (32, 32) and half.kspace.shape[2] == 51


def test_phase_oversampling_of_a_full_scan_and_its_reference(tmp_path, oversampled, coil_images):
    path = tmp_path / "scan.h5"
    with Writer(path, fov=120) as file:
        file.scan(oversampled, torch.ones(FRAMES, SIZE, dtype=torch.bool))
    scan, reference = scan_from_file(Intake(), path)
    truth = coil_images.abs().square().sum(dim=1).sqrt()[:, 12:52]
    np.save(tmp_path / "cropped.npy", truth.numpy())
    problem = prepare(scan)
    given = reference_from_file(Intake(), str(tmp_path / "cropped.npy"), "image", scan)
    for one in (reference, reference_from_file(Intake(), str(path), None, scan), given):
        image = problem.reference_image(one).abs()
        assert image.shape == truth.shape and (image - truth).norm() < 0.05 * truth.norm()


@pytest.mark.parametrize(("time", "tr", "expected"), [("phase", 0, None), ("phase", 3, None), ("repetition", 3, 81)])
def test_frame_times_of_other_vendors(tmp_path, oversampled, mask, time, tr, expected):
    """Their time stamps have no known unit: TR alone says how long a frame takes."""
    path = tmp_path / "scan.h5"
    more = f"<sequenceParameters><TR>{tr}</TR></sequenceParameters>" if tr else ""
    with Writer(path, vendor="GE MEDICAL SYSTEMS", more=more) as file:
        file.scan(oversampled, mask, time=time)
    stored = load_scan(path)
    assert stored.geometry.frame_time_ms == expected and stored.geometry.frame_times_ms is None  # 28, 26, 26, 28 lines
    assert ("time stamps of ge medical systems have no known unit" in str(stored)) == (expected is None)


def test_a_partial_echo_stays_unsampled_and_is_cropped(tmp_path, oversampled, coil_images, mask):
    path = tmp_path / "scan.h5"
    with Writer(path) as file:
        file.scan(oversampled, mask, first=32)
    stored = load_scan(path)
    assert not stored.mask[:, :, :32].any() and torch.equal(stored.mask[:, :, 32:].all(dim=-1), mask)
    scan, _ = scan_from_file(Intake(), path)
    cropped = scan.without_oversampling()
    assert not cropped.mask[..., :16].any() and torch.equal(cropped.mask[..., 16:].all(dim=-1), mask)
    expected = torch.where(cropped.mask[:, None], fft2c(coil_images), 0)
    assert (cropped.kspace - expected).norm() < 0.02 * expected.norm()


def test_the_centre_of_a_partial_echo_is_found_where_the_header_has_it_wrong(tmp_path, oversampled, mask):
    path = tmp_path / "scan.h5"
    with Writer(path) as file:
        for frame, line in mask.nonzero().tolist():
            # 48 is the middle of the 96 samples
            file.add(oversampled[frame, :, line, 32:].numpy(), first=16, phase=frame, kspace_encode_step_1=line)
    stored = load_scan(path)
    assert torch.equal(stored.data[..., 32:], torch.where(mask[:, None, :, None], oversampled, 0)[..., 32:])
    assert "the first part of the readout is missing" in str(stored)


def test_partial_fourier_with_its_centre_in_the_header(tmp_path, oversampled, mask):
    path = tmp_path / "scan.h5"
    measured = mask.clone()
    measured[:, :12] = False
    with Writer(path, center=20) as file:
        file.scan(oversampled, measured, line_offset=12)
    stored = load_scan(path)
    assert torch.equal(stored.mask[..., 0], measured)
    assert torch.equal(stored.data, torch.where(measured[:, None, :, None], oversampled, 0))


def test_a_header_that_counts_the_measured_lines_alone(tmp_path, oversampled, mask):
    path = tmp_path / "scan.h5"
    with Writer(path, center=40) as file:  # 40 lines on one side of the centre are not in a matrix of 64
        file.scan(oversampled, mask[:, :50], line_offset=-8)
    stored = load_scan(path)
    assert stored.data.shape[2] == 80 and stored.mask[:, 8:58, 0].equal(mask[:, :50])
    assert "80 lines about its centre" in str(stored) and stored.geometry.voxel_mm[0] == pytest.approx(192 / 80)


def test_averages(tmp_path, oversampled, mask):
    path = tmp_path / "scan.h5"
    with Writer(path) as file:
        file.scan(oversampled * 0.5, mask, average=0)
        file.scan(oversampled * 1.5, mask, average=1)
        file.add(oversampled[0, :, 32].numpy(), phase=0, kspace_encode_step_1=32)
    stored = load_scan(path)
    assert torch.allclose(stored.data, torch.where(mask[:, None, :, None], oversampled, 0), atol=1e-5)
    assert stored.averages[0, 32, 0] == 3 and stored.averages[1, 32, 0] == 2
    assert "3 measurements of a sample averaged" in str(stored)
    assert scan_from_file(Intake(), path)[0].averages.shape == (FRAMES, SIZE, 128)


def test_the_noise_of_averages_is_lower(tmp_path, oversampled, mask):
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return 0.3 * torch.view_as_complex(torch.randn(*shape, 2, generator=generator)).numpy()

    with Writer(tmp_path / "scan.h5") as writer:
        for _ in range(20):
            writer.add(noise(COILS, 128), (ismrmrd.ACQ_IS_NOISE_MEASUREMENT,))
        for average in range(4):
            for frame, line in mask.nonzero().tolist():
                kspace = oversampled[frame, :, line].numpy() + noise(COILS, 128)
                writer.add(kspace, phase=frame, kspace_encode_step_1=line, average=average)
    scan, _ = scan_from_file(Intake(), tmp_path / "scan.h5")
    problem = prepare(scan)
    single = scan.noise_samples.abs().square().mean().sqrt().item()
    assert problem.noise_std * problem.scale == pytest.approx(0.5 * single, rel=0.02)


def test_readouts_that_are_no_image_are_dropped_and_said(tmp_path, oversampled, mask):
    path = tmp_path / "scan.h5"
    wrong = 1e3 * np.ones((COILS, 128))
    with Writer(path) as file:
        file.scan(oversampled, mask)
        file.add(wrong, [ismrmrd.ACQ_IS_NAVIGATION_DATA])
        file.add(wrong, [ismrmrd.ACQ_IS_PHASECORR_DATA])
        file.add(wrong, [ismrmrd.ACQ_IS_RTFEEDBACK_DATA])
        file.add(np.ones((COILS, 200)))  # a pilot tone without a flag
    stored = load_scan(path)
    assert torch.equal(stored.data, torch.where(mask[:, None, :, None], oversampled, 0))
    for words in ("navigator", "phase correction", "real-time feedback", "1 readouts with other than 128 samples"):
        assert words in str(stored)


@pytest.mark.parametrize("integrated", [True, False])
def test_calibration_lines_of_every_frame_are_its_centre(tmp_path, oversampled, mask, integrated):
    path, acs = tmp_path / "scan.h5", range(SIZE // 2 - 3, SIZE // 2 + 3)
    outer = mask.clone()
    outer[:, acs] = False
    with Writer(path) as file:
        file.scan(oversampled, outer)
        for frame, line in product(range(FRAMES if integrated else 1), acs):
            values = oversampled[frame, :, line].numpy()
            file.add(values, [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION], phase=frame, kspace_encode_step_1=line)
    stored = load_scan(path)
    words = f"{6 * FRAMES} calibration readouts are ACS lines" if integrated else "6 calibration readouts are left out"
    assert words in str(stored)
    expected = outer.clone()
    expected[:, acs] = integrated
    assert torch.equal(stored.mask, expected[:, :, None].expand(-1, -1, 128))


def test_slices_sets_and_two_kinds_of_time(tmp_path, oversampled, mask):
    path = tmp_path / "scan.h5"
    with Writer(path) as file:
        for index in (0, 1):
            file.scan((index + 1) * oversampled, mask, slice=index)
    with pytest.raises(SeveralSlices, match=r"2 slices \(0, 1\)") as caught:
        load_scan(path)
    assert caught.value.slices == (0, 1)
    sampled = torch.where(mask[:, None, :, None], oversampled, 0)
    assert torch.equal(load_scan(path, slice=1).data, 2 * sampled)
    refusal(path, "no slice 2", slice=2)
    path = tmp_path / "sets.h5"
    with Writer(path) as file:
        for index in (0, 1):
            file.scan((index + 1) * oversampled, mask, set=index)
    refusal(path, "2 sets", "--set")
    assert torch.equal(load_scan(path, set=1).data, 2 * sampled)
    path = tmp_path / "times.h5"
    with Writer(path) as file:
        for index in (0, 1):
            file.scan((index + 1) * oversampled, mask, repetition=index)
    refusal(path, "--time phase", "--time repetition")
    assert torch.allclose(load_scan(path, time="phase").data, 1.5 * sampled)
    both = load_scan(path, time="repetition").data
    assert both.shape[0] == 2 * FRAMES and torch.equal(both[FRAMES:], 2 * sampled)


def test_repetitions_are_a_real_time_series(tmp_path, oversampled, mask):
    path = tmp_path / "scan.h5"
    with Writer(path) as file:
        file.scan(oversampled, mask, time="repetition")
    stored = load_scan(path)
    assert stored.real_time and stored.geometry.frame_time_ms == 50 and "time: repetition (detected" in str(stored)
    problem = prepare(scan_from_file(Intake(), path)[0])
    assert not problem.periodic and any("real-time" in note for note in problem.notes)


def test_fully_sampled_raw_data_are_cropped_and_undersampled(tmp_path, oversampled, coil_images):
    path = tmp_path / "scan.h5"
    with Writer(path) as file:
        file.scan(oversampled, torch.ones(FRAMES, SIZE, dtype=torch.bool))
    scan, reference = scan_from_file(Intake(), path)
    assert scan.readout_oversampling == 1 and scan.kspace.shape[2:] == (SIZE, SIZE)
    assert torch.allclose(ifft2c(reference.kspace), coil_images, atol=1e-4)


def test_files_that_are_refused(tmp_path, oversampled, mask):
    path = tmp_path / "scan.h5"
    with Writer(path, doctype='<!DOCTYPE x [<!ENTITY a "b">]>') as file:
        file.scan(oversampled, mask)
    refusal(path, "entities")
    for trajectory in ("radial", "spiral"):
        path = tmp_path / f"{trajectory}.h5"
        with Writer(path, trajectory=trajectory) as file:
            file.scan(oversampled, mask)
        refusal(path, trajectory, "grid it")
    path = tmp_path / "volume.h5"
    with Writer(path) as file:
        for index in (0, 1):
            file.scan(oversampled, mask, kspace_encode_step_2=index)
    refusal(path, "3-D")
    path = tmp_path / "noise.h5"
    with Writer(path) as file:
        file.add(np.ones((COILS, 128)), [ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
    refusal(path, "only noise")
    path = tmp_path / "still.h5"
    with Writer(path) as file:
        file.scan(oversampled[:1], mask[:1])
    refusal(path, "1 frame")
    refusal(path, "--frames_axis", frames_axis=0)
    refusal(path, "--kind image", kind="image")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refusal(path, "damaged")


def test_what_the_memory_does_not_hold(tmp_path, oversampled, mask, monkeypatch):
    path = tmp_path / "scan.h5"
    with Writer(path) as file:
        file.scan(oversampled, mask)
    monkeypatch.setattr("mri.formats.limits.available_bytes", lambda: 1000)
    refusal(path, "memory")


@pytest.mark.parametrize("oversampling", [1.25, 2.0])
@pytest.mark.parametrize("width", [80, 45])
def test_cropping_the_readout(oversampling, width):
    """A complete readout is cropped exactly, of an even and an odd matrix."""
    images = torch.randn(2, 3, 8, width, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    wide = round(width * oversampling)
    before = wide // 2 - width // 2
    kspace = fft2c(torch.nn.functional.pad(images, (before, wide - width - before)))
    cropped, mask = crop_readout(kspace, torch.ones(2, 8, wide, dtype=torch.bool), wide / width)
    assert mask.all() and torch.allclose(cropped, fft2c(images), atol=1e-5)


def test_development_file(shared_file):
    """The k-space agrees with that of the same scan as an array, within the noise that each has of its own."""
    stored = load_scan(shared_file("data/coils/giraf_6coil_ocmr.h5"))
    truth = np.load(shared_file("data/coils/giraf_6coil_truth.npz"))
    scan, _ = scan_from_file(Intake(), stored.path)
    cropped = scan.without_oversampling()
    sampled = torch.from_numpy(truth["mask"])
    assert torch.equal(cropped.mask[..., 24:], sampled[..., None].expand(-1, -1, 72))
    assert not cropped.mask[..., :24].any() and stored.noise.shape == (6, 192)
    exact = fft2c(torch.from_numpy(truth["image"])[:, None] * torch.from_numpy(truth["maps"]))
    error = (cropped.kspace - exact).movedim(1, -1)[cropped.mask]
    assert error.std() == pytest.approx(0.01, rel=0.1)
    assert stored.noise.std() == pytest.approx(0.01, rel=0.1)


def test_what_is_in_a_file(tmp_path, oversampled, mask):
    path = tmp_path / "scan.h5"
    with Writer(path) as file:
        file.scan(oversampled, mask, slice=0)
        file.scan(oversampled, mask, slice=1)
    with opened(path) as file:
        (words,) = contents(file)
    assert f"{2 * int(mask.sum())} readouts, 0 of them noise" in words
    assert "phase has 4 values" in words and "slice has 2 values" in words


def test_reading_does_not_warn(tmp_path, oversampled, mask):
    path = tmp_path / "scan.h5"
    with Writer(path) as file:
        file.scan(oversampled, mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_scan(path)
