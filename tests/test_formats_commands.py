"""The command that reconstructs, on the formats of scanners: at most one flag each."""

import json

import numpy as np
import pytest
import torch

from mri.intake import scan_from_file
from mri.intake_settings import DataSettings, Intake
from mri.phantom import make_phantom
from mri.view_sharing import temporal_mean
from reconstruction.prepare import prepare
from reconstruction.settings import PrepareSettings
from tests.commands import TINY, assert_one_sentence, command, names

nibabel = pytest.importorskip("nibabel")


def demo(*arguments, cwd, priors, succeeds=True):
    checkpoints = ["--checkpoint_global", priors[0], "--checkpoint_local", priors[1]]
    return command("PCsampling_demo_svd.py", *TINY, *checkpoints, *arguments, cwd=cwd, succeeds=succeeds)


def save_slices(path, *slices):
    """NIfTI of slices, each (frames, height, width)."""
    array = torch.stack(slices, 1).numpy().transpose(3, 2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 1.5, 8.0, 1.0])), path)


def test_every_slice_gets_a_folder(tmp_path, context_priors):
    image = make_phantom(4, 64, 0).abs()
    path = tmp_path / "scan.nii.gz"
    save_slices(path, image, 2 * image, 0 * image)
    done = demo("--data", path, "--out", tmp_path / "out", cwd=tmp_path, priors=context_priors, succeeds=False)
    assert done.returncode == 2 and "slice 2 skipped" in done.stderr and "3 slices" in done.stdout
    assert names(tmp_path / "out") == {"slice_00", "slice_01"}
    images = [np.load(tmp_path / f"out/slice_0{i}/reconstruction.npy") for i in (0, 1)]
    assert np.allclose(2 * images[0], images[1], atol=0.1)
    record = json.loads((tmp_path / "out/slice_01/config.json").read_text())
    assert record["request"]["data"]["slice"] == 1
    demo("--data", path, "--slice", 1, "--out", tmp_path / "one", cwd=tmp_path, priors=context_priors)
    assert np.array_equal(np.load(tmp_path / "one/reconstruction.npy"), images[1])


def test_flags_that_choose_need_data(tmp_path, context_priors):
    for flags in (["--slice", 1], ["--time", "phase"]):
        done = demo(*flags, cwd=tmp_path, priors=context_priors, succeeds=False)
        assert_one_sentence(done, f"{flags[0]} cannot be used without --data")


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("kspace.npz", {}), ("cmrxrecon.mat", {}), ("fastmri.h5", {"time": "slice"}), ("bart.cfl", {}), ("ocmr.h5", {}),
        ("magnitude.nii.gz", {}),
    ],
)  # fmt: skip
def test_development_files_give_the_same_images(shared_file, name, more):
    """Each layout of the same scan, at most with one flag, as far as its temporal mean shows."""
    scan, _ = scan_from_file(Intake(DataSettings(**more)), shared_file(f"data/coils/giraf_6coil_{name}"))
    problem = prepare(scan, PrepareSettings(maps="walsh"))
    mean = problem.model.combine(temporal_mean(problem.measured, problem.model.mask)[None])
    image = problem.finished(mean)[0].abs().numpy()
    with np.load(shared_file("data/coils/giraf_6coil_truth.npz")) as file:
        truth = np.abs(file["image"].mean(axis=0))
    scale = (image * truth).sum() / (image * image).sum()
    assert image.shape == truth.shape and ((scale * image - truth) ** 2).sum() < 0.01 * (truth**2).sum()


def test_raw_data_end_to_end(tmp_path, context_priors, shared_file):
    path = shared_file("data/coils/giraf_6coil_ocmr.h5")
    flags = ["--frames", 4, "--size", 64, "--out", tmp_path / "out"]
    done = demo("--data", path, *flags, cwd=tmp_path, priors=context_priors)
    assert np.load(tmp_path / "out/reconstruction.npy").shape == (4, 64, 64)
    for words in ("time: phase", "readout oversampling (2) removed", "noise samples", "mask from the readouts"):
        assert words in done.stdout
