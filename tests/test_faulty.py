"""No faulty scan is answered with a confident wrong picture, and no good one with a warning."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mri.fourier import fft2c, ifft2c
from mri.intake import scan_from_file
from mri.intake_settings import DataSettings, Intake, MaskSettings
from reconstruction.prepare import prepare
from tests.faulty import FRAMES, SIZE, Case, faulty, good
from utils.errors import InputError

SHARED = Path(os.environ.get("GLDM_SHARED", Path(__file__).parents[2] / "shared"))


def taken(case: Case):
    """The problem that is made of a case, and all that is said of it."""
    mask = MaskSettings(path=str(case.mask)) if case.mask else MaskSettings(acceleration=4.0, acs=8)
    scan, _ = scan_from_file(Intake(DataSettings(**case.flags), mask), case.path)
    problem = prepare(scan)
    return problem, [*str(scan).splitlines(), *problem.notes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faulty")


def names(cases, tmp):
    return [case.name for case in cases(tmp)]


def test_every_good_scan_passes_in_silence(folder):
    for case in good(folder):
        _, said = taken(case)
        assert not [text for text in said if text.startswith("warning")], (case.name, said)


def test_every_faulty_scan_is_answered(folder):
    count = 0
    for case in faulty(folder):
        count += 1
        if case.answer == "refused":
            with pytest.raises(InputError, match=case.words):
                taken(case)
            continue
        problem, said = taken(case)
        if case.answer == "warned":
            warnings = [text for text in said if text.startswith("warning")]
            assert any(case.words in text for text in warnings), (case.name, said)
        else:
            assert_measured(case, problem)
    assert count == 34


def assert_measured(case, problem):
    """The k-space of the problem is that of the truth, wherever it says that it was measured."""
    size = problem.model.mask.shape[1:]
    image = problem.finished(ifft2c(problem.measured[:, 0]))
    assert image.shape == case.truth.shape == (FRAMES, SIZE, SIZE), (case.name, size)
    mask = problem.model.mask.mT if problem.turned else problem.model.mask
    expected = torch.where(mask, fft2c(torch.from_numpy(case.truth)), 0)
    found = fft2c(image)
    assert ((found - expected).norm() / expected.norm()).item() < 1e-3, case.name
    assert mask.double().mean() < 0.5


@pytest.fixture(scope="module")
def users_cases(tmp_path_factory):
    """The inputs that users of neighbouring projects reported, of the shared data."""
    import json

    if not (SHARED / "cases.py").is_file():
        pytest.skip("needs cases.py of the shared data (set GLDM_SHARED to its folder)")
    out = tmp_path_factory.mktemp("cases")
    subprocess.run([sys.executable, SHARED / "cases.py", out], cwd=Path(__file__).parents[1], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    return json.loads((out / "cases.json").read_text())


# what must be said of them; "" where nothing need be
SAID = {
    "peak_off_centre": "k-space peak", "peak_off_centre_with_acs": "k-space peak", "no_acs": "", "one_central_line": "",
    "late_phases_incomplete": "", "frame_of_one_line": "frame 15", "frame_of_no_line": "error",
    "partial_fourier": "sampled in no frame", "spike": "warning: a spike", "hot_voxel": "warning: the voxel",
    "time_is_first": "", "coils": "coil", "coils_last": "coil", "combined_after_undersampling": "error",
    "rss_after_undersampling": "error", "real_part": "error", "real_imaginary_first": "real and imaginary",
    "integers": "", "odd_size": "", "padded_full_scan": "zero-padded", "mask_dc_in_corner": "corner",
    "mask_leaves_out_lines": "warning: the mask omits",
}  # fmt: skip


def test_cases_of_users(users_cases):
    assert set(users_cases) == set(SAID)
    for name, case in users_cases.items():
        flags = dict(zip(case["args"][::2], case["args"][1::2], strict=True))
        data = DataSettings(key=flags.get("--key", ""), kind=flags.get("--key", ""))
        mask = MaskSettings(
            path=flags.get("--mask", ""), acceleration=float(flags.get("--acceleration", 4)),
            acs=int(flags.get("--acs", 8)),
        )
        intake = Intake(data, mask)
        if SAID[name] == "error":
            with pytest.raises(InputError):
                prepare(scan_from_file(intake, flags["--data"])[0])
            continue
        scan, _ = scan_from_file(intake, flags["--data"])
        problem = prepare(scan)
        text = "\n".join([str(scan), *problem.notes])
        assert SAID[name] in text, (name, text)
        if case["truth"]:
            truth = np.load(case["truth"])
            shared = problem.finished(problem.view_sharing()).abs().numpy()
            assert shared.shape == truth.shape, name
            gain = (shared * truth).sum() / (shared**2).sum()
            error = ((gain * shared - truth) ** 2).sum() / (truth**2).sum()
            assert error < 0.05, (name, error)  # view sharing; what is misread has 0.2 and more
