"""The commands as a user types them: what they write, and one sentence for each bad input."""

import csv
import json
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from models.checkpoint import load_model, save_model
from models.ncsnpp import NCSNpp
from models.prior import load_prior, shipped
from mri.fourier import fft2c, ifft2c
from mri.intake import scan_from_file
from mri.intake_settings import DataSettings, Intake
from mri.masks import make_mask
from mri.metrics import evaluate
from mri.phantom import make_phantom, simulate_scan
from mri.scan import Reference, Scan
from mri.weighting import KspaceWeight
from op.dispatch import forced
from reconstruction.prepare import prepare
from reconstruction.settings import MODELS, OUSettings, SamplingSettings
from report.results import METRICS
from sampling import reconstruct_problem
from tests.commands import ROOT, TINY, assert_one_sentence, begun, command, names
from utils.errors import InputError

PICTURES = {"montage.png", "xt_profile.png", "cine.gif", "deviation.png"}
ALWAYS = {"reconstruction.npy", "reconstruction.mat", "deviation.npy", "config.json", "report.html", *PICTURES}


def demo(*arguments, cwd, priors, succeeds=True):
    checkpoints = ["--checkpoint_global", priors[0], "--checkpoint_local", priors[1]]
    return command("PCsampling_demo_svd.py", *TINY, *checkpoints, *arguments, cwd=cwd, succeeds=succeeds)


@pytest.fixture
def magnitude(tmp_path):
    """A scan file of magnitude images, (row, column, frame)."""
    path = tmp_path / "scan.mat"
    scipy.io.savemat(path, {"image": make_phantom(4, 64, 0).abs().permute(1, 2, 0).numpy()})
    return path


# ---------------------------------------------------------------------------------------- reconstruction


def test_magnitude_scan_end_to_end(magnitude, tmp_path, context_priors):
    flags = ["--data", magnitude, "--acceleration", 4, "--out", tmp_path / "out"]
    done = demo(*flags, cwd=tmp_path, priors=context_priors)
    out = tmp_path / "out"
    assert names(out) == ALWAYS | {"metrics.csv", "metrics_common_scale.csv"}
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    assert list(rows[0]) == list(METRICS)
    assert [row["method"] for row in rows] == ["zero_filled", "global_merge", "nearest_merge", "ou_only", "gldm"]
    image = np.load(out / "reconstruction.npy")
    assert image.shape == (4, 64, 64) and image.dtype == np.complex64
    assert np.array_equal(scipy.io.loadmat(out / "reconstruction.mat")["image"], image)
    record = json.loads((out / "config.json").read_text())
    assert record["request"]["mask"]["acceleration"] == 4 and len(record["request"]["scan_sha256"]) == 64
    assert all(0 <= size <= 1 for size in record["calibration"]["step_sizes"])
    assert record["noise_std"] >= 0 and record["notes"]
    for name in ("metrics.csv", *PICTURES):
        assert str(out / name) in done.stdout
    assert f"report: {out / 'report.html'}" in done.stdout


def test_result_does_not_depend_on_the_reference(magnitude, tmp_path, context_priors):
    other = tmp_path / "other.mat"
    scipy.io.savemat(other, {"image": make_phantom(4, 64, 5).abs().permute(1, 2, 0).numpy()})
    runs = {"own": [], "none": ["--no_reference"], "other": ["--reference", other]}
    for name, flags in runs.items():
        demo("--data", magnitude, "--out", tmp_path / name, *flags, cwd=tmp_path, priors=context_priors)
    images = {name: (tmp_path / name / "reconstruction.npy").read_bytes() for name in runs}
    assert images["own"] == images["none"] == images["other"]
    assert not (tmp_path / "none" / "metrics.csv").exists()
    scores = {name: (tmp_path / name / "metrics.csv").read_text() for name in ("own", "other")}
    assert scores["own"] != scores["other"]
    again = ["--data", magnitude, "--out", tmp_path / "own", "--overwrite", "--no_reference"]
    demo(*again, cwd=tmp_path, priors=context_priors)
    assert names(tmp_path / "own") == ALWAYS


def test_undersampled_kspace_with_a_reference_file(tmp_path, context_priors):
    image = make_phantom(4, 64, 0)
    mask = make_mask("random", (4, 64, 64), 3, 6)
    np.save(tmp_path / "y.npy", torch.where(mask, fft2c(image), 0).numpy())
    np.save(tmp_path / "truth.npy", image.numpy())
    flags = ["--data", "y.npy", "--key", "kspace"]
    done = demo(*flags, "--reference", "truth.npy", cwd=tmp_path, priors=context_priors)
    assert "prospectively under-sampled; mask detected from the zeros" in done.stdout
    assert names(tmp_path / "result" / "0000") >= {"metrics.csv"}
    demo(*flags, cwd=tmp_path, priors=context_priors)
    assert names(tmp_path / "result" / "0001") == ALWAYS


@pytest.mark.parametrize(
    ("frames", "pattern", "acceleration", "acs"),
    [(4, "uniform", 5, 8), (3, "uniform", 8, 8), (4, "random", 2, 32), (4, "radial", 6, 0)],
)
def test_zeros_that_a_fourier_transform_rounded_are_zeros(tmp_path, frames, pattern, acceleration, acs):
    image = make_phantom(frames, 64, 0)
    mask = make_mask(pattern, (frames, 64, 64), acceleration, acs, seed=3)
    sampled = torch.where(mask, fft2c(image), 0)
    np.save(tmp_path / "scan.npy", fft2c(ifft2c(sampled)).numpy())
    np.save(tmp_path / "full.npy", fft2c(image).numpy())
    intake = Intake(DataSettings(key="kspace"))
    scan, reference = scan_from_file(intake, tmp_path / "scan.npy")
    assert torch.equal(scan.mask, mask) and reference is None
    assert "mask detected from samples below 2e-07 of the largest" in scan.source.found
    full, reference = scan_from_file(intake, tmp_path / "full.npy")
    assert reference is not None and "retrospectively under-sampled by uniform, R = 4, 8 ACS" in full.source.found


def test_shipped_checkpoints_and_the_embedded_heart(tmp_path):
    done = command("PCsampling_demo_svd.py", "--frames=5", "--size=64", "--out=out", cwd=tmp_path)
    assert "built-in heart phantom 0: 5 frames of 8 coils, 64×64" in done.stdout and "gldm" in done.stdout
    assert "virtual coils" in done.stdout and "coil maps: Walsh" in done.stdout and "SNR" in done.stdout
    assert "optimization unit:" in done.stdout and "priors:" in done.stdout and "χ =" in done.stdout
    assert names(tmp_path / "out") >= ALWAYS | {"coil_maps.npy", "metrics.csv"}
    maps = np.load(tmp_path / "out" / "coil_maps.npy")
    assert maps.ndim == 3 and np.allclose((np.abs(maps) ** 2).sum(0), 1, atol=1e-4)
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert record["noise_std"] == pytest.approx(0.01, rel=0.05) and 0 < record["chi"] < 2


def test_shipped_checkpoints_say_how_they_were_made():
    for sampler, objective in (("cascade", "scenes"), ("published", "dsm")):
        size = 0
        for name in MODELS:
            path = shipped(name, sampler)
            size += path.stat().st_size
            _, metadata = load_model(path)
            assert metadata["prior"] == name and metadata["command"].startswith("python main.py")
            config = metadata["training_config"]
            assert 96 in (config["data"].get("image_size"), config["model"].get("image_size"))
            assert metadata.get("objective", "dsm") == objective
        assert size <= 16 * 2**20


def test_shipped_priors_improve_on_the_optimization_unit():
    """On a heart they have not seen, coils with noise, by more than chance."""
    heart = simulate_scan("heart", 10, 64, 7, 2, 0.01)
    scan = Scan.from_arrays(heart.kspace, make_mask("uniform", (10, 64, 64), 6, 8), noise_samples=heart.noise)
    problem = prepare(scan)
    result = reconstruct_problem(problem, (None, None), OUSettings(), SamplingSettings(sampler="cascade"))
    reference = problem.reference_image(Reference(image=heart.image))
    before, after = evaluate(result.start, reference), evaluate(result.image, reference)
    assert result.settings["calibration"]["step_sizes"] == (0.5, 0.5) and result.settings["passes_per_frame"] <= 40
    assert after["psnr_common"] > before["psnr_common"] + 0.1 and after["ssim_common"] > before["ssim_common"]


# ---------------------------------------------------------------------------------------------- training


def test_train_resume_evaluate(tmp_path, magnitude):
    config = f"--config={ROOT / 'configs/ve/SIAT_kdata_ncsnpp.py'}"
    seed = [config, "--workdir=exp", "--eval_folder=result", *TINY]
    command("main.py", *seed, "--mode=train", cwd=tmp_path)
    for name in ("global", "local"):
        folder = tmp_path / "exp" / name
        assert names(folder) == {"model.safetensors", "checkpoints", "checkpoints-meta", "tensorboard"}
        assert names(folder / "checkpoints") == {"checkpoint_4.pth", "checkpoint_6.pth"}
        state = torch.load(folder / "checkpoints" / "checkpoint_6.pth", weights_only=True)
        assert {"optimizer", "model", "ema", "step"} <= set(state) and state["step"] == 6
    first = load_model(tmp_path / "exp/global/model.safetensors")[0].state_dict()

    done = command("main.py", *seed, "--mode=train", "--config.training.n_iters=8", cwd=tmp_path)
    assert "at step 6" in done.stdout
    resumed = load_model(tmp_path / "exp/global/model.safetensors")[0].state_dict()
    assert any(not torch.equal(first[k], resumed[k]) for k in first)
    straight = ["main.py", config, "--workdir=straight", "--mode=train", "--model=global", *TINY]
    command(*straight, "--config.training.n_iters=8", cwd=tmp_path)
    uninterrupted = load_model(tmp_path / "straight/global/model.safetensors")[0].state_dict()
    assert all(torch.equal(uninterrupted[k], resumed[k]) for k in resumed)
    assert names(tmp_path / "straight") == {"global", "data"}

    done = command("main.py", *seed, "--config.model.nf=16", cwd=tmp_path, succeeds=False)
    assert_one_sentence(done, "another model (nf)")

    (tmp_path / "scans").mkdir()
    magnitude.rename(tmp_path / "scans" / "heart.mat")
    evaluation = [*seed, "--mode=eval", "--config.eval.path=scans"]
    command("main.py", *evaluation, cwd=tmp_path)
    out = tmp_path / "exp" / "result"
    assert names(out) == {"heart", "index.html", "metrics.csv", "metrics.md"}
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    assert {row["scan"] for row in rows} == {"heart"} and rows[-1]["method"] == "gldm"
    assert_one_sentence(command("main.py", *evaluation, cwd=tmp_path, succeeds=False), "--overwrite")


# --------------------------------------------------------------------------------------------- bad input


def array():
    return make_phantom(4, 64, 0).numpy()


def _with(value):
    image = make_phantom(4, 64, 0)
    image[1, 2, 3] = value
    return image.numpy()


def _mask_file(tmp_path, mask):
    np.save(tmp_path / "mask.npy", mask.numpy())
    return ["--mask", "mask.npy"]


BAD_ARRAYS = {
    "nan": (lambda: _with(float("nan")), [], "scan.npy"),
    "infinite": (lambda: _with(float("inf")), [], "scan.npy"),
    "one frame": (lambda: array()[:1], [], "scan.npy"),
    "dc in the corner": (
        lambda: torch.fft.fft2(make_phantom(4, 64, 0)).numpy().astype(np.complex64),
        ["--key", "kspace"],
        "--dc corner",
    ),
}


def test_integers_of_an_odd_size(tmp_path, context_priors):
    np.save(tmp_path / "scan.npy", (100 * np.abs(array()))[:, :63, :61].astype(np.uint16))
    demo("--data", "scan.npy", "--out", "out", cwd=tmp_path, priors=context_priors)
    assert np.load(tmp_path / "out" / "reconstruction.npy").shape == (4, 63, 61)


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(case, tmp_path, context_priors):
    make, flags, words = BAD_ARRAYS[case]
    np.save(tmp_path / "scan.npy", make())
    done = demo("--data", "scan.npy", *flags, "--out", "out", cwd=tmp_path, priors=context_priors, succeeds=False)
    assert_one_sentence(done, words)
    assert not (tmp_path / "out").exists()


def test_dc_in_the_corner_can_be_said(tmp_path, context_priors):
    np.save(tmp_path / "scan.npy", torch.fft.fft2(make_phantom(4, 64, 0)).numpy().astype(np.complex64))
    demo("--data", "scan.npy", "--key", "kspace", "--dc", "corner", "--out", "out", cwd=tmp_path, priors=context_priors)


@pytest.mark.parametrize("case", ["shape", "empty frame", "does not match"])
def test_bad_masks(case, tmp_path, context_priors):
    image = make_phantom(4, 64, 0)
    mask = make_mask("uniform", (4, 64, 64), 4, 8)
    np.save(tmp_path / "scan.npy", torch.where(mask, fft2c(image), 0).numpy())
    if case == "shape":
        flags = _mask_file(tmp_path, mask[:, :62])
    elif case == "empty frame":
        emptied = mask.clone()
        emptied[2] = False
        flags = _mask_file(tmp_path, emptied)
    else:
        flags = _mask_file(tmp_path, make_mask("uniform", (4, 64, 64), 4, 8, seed=1))
    data = ["--data", "scan.npy", "--key", "kspace", "--out", "out"]
    done = demo(*data, *flags, cwd=tmp_path, priors=context_priors, succeeds=False)
    assert_one_sentence(done, "mask.npy")
    assert not (tmp_path / "out").exists()


def _write_truncated(path):
    scipy.io.savemat(path, {"image": array()}, do_compression=True)
    path.write_bytes(path.read_bytes()[:3000])


def _write_h5_without_data(path):
    path.write_bytes(b"not an HDF5 file" * 100)


def _write_other_key(path):
    with h5py.File(path, "w") as file:
        file["picture"] = array()


BAD_FILES = {
    "mat without the key": ("scan.mat", lambda p: scipy.io.savemat(p, {"data": array()}), ["--key", "image"], "data"),
    "h5 without the key": ("scan.h5", _write_other_key, ["--key", "image"], "picture"),
    "not hdf5": ("scan.h5", _write_h5_without_data, [], "scan.h5"),
    "truncated": ("scan.mat", _write_truncated, [], "scan.mat"),
    "missing": ("scan.mat", lambda p: None, [], "scan.mat"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(case, tmp_path, context_priors):
    name, write, flags, words = BAD_FILES[case]
    write(tmp_path / name)
    done = demo("--data", name, *flags, "--out", "out", cwd=tmp_path, priors=context_priors, succeeds=False)
    assert_one_sentence(done, words)
    assert name in done.stderr and not (tmp_path / "out").exists()


def _four_channels(path, good):
    weight = KspaceWeight(1.0, 0.2, 0.5).to_dict()
    save_model(NCSNpp(image_size=64, num_channels=4, nf=8, ch_mult=(1, 2)), path, weight=weight)


def _other_weights(path, good):
    tensors = {"conv.weight": torch.zeros(3)}
    with safe_open(good, framework="pt") as file:
        save_file(tensors, path, metadata=file.metadata())


BAD_CHECKPOINTS = {
    "other channels": ("bad.safetensors", _four_channels),
    "other weights": ("bad.safetensors", _other_weights),
    "truncated": ("bad.safetensors", lambda path, good: path.write_bytes(good.read_bytes()[:2000])),
    "no weight": ("bad.safetensors", lambda path, good: save_model(NCSNpp(nf=8, ch_mult=(1, 2)), path)),
    "broken weight": ("bad.safetensors", lambda path, good: save_model(NCSNpp(nf=8, ch_mult=(1, 2)), path, weight={})),
    "not a checkpoint": ("bad.pth", lambda path, good: path.write_bytes(b"words")),
    "another suffix": ("bad.ckpt", lambda path, good: path.write_bytes(good.read_bytes())),
    "missing": ("bad.safetensors", lambda path, good: None),
}


@pytest.mark.parametrize(("form", "words"), [("cuda", "native or triton"), ("triton", "needs a GPU")])
def test_operations_that_cannot_run_are_refused_before_any_work(form, words, priors, monkeypatch):
    monkeypatch.setattr("op.dispatch._interpreted", False)
    with forced(form), pytest.raises(InputError, match=words):
        load_prior(priors[0])


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_bad_checkpoints(case, tmp_path, priors):
    name, write = BAD_CHECKPOINTS[case]
    write(tmp_path / name, priors[0])
    with pytest.raises(InputError, match=name):
        load_prior(tmp_path / name)


def test_checkpoint_of_another_architecture(tmp_path, context_priors, magnitude):
    _four_channels(tmp_path / "other.safetensors", context_priors[0])
    flags = ["--data", magnitude, "--out", "out", "--checkpoint_local", "other.safetensors"]
    done = demo(*flags, cwd=tmp_path, priors=context_priors, succeeds=False)
    assert_one_sentence(done, "other.safetensors")
    assert not (tmp_path / "out").exists()


def test_results_are_not_overwritten(tmp_path, context_priors, magnitude):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    flags = ["--data", magnitude, "--out", "out"]
    assert_one_sentence(demo(*flags, cwd=tmp_path, priors=context_priors, succeeds=False), "--overwrite")
    assert names(tmp_path / "out") == {"mine.txt"}
    demo(*flags, "--overwrite", cwd=tmp_path, priors=context_priors)
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("flag,value", [("--frames", 0), ("--size", -4), ("--seed", -1), ("--seed", 2**70)])
def test_numbers_out_of_range(flag, value, tmp_path, context_priors, magnitude):
    done = demo("--data", magnitude, flag, value, "--out", "out", cwd=tmp_path, priors=context_priors, succeeds=False)
    assert done.returncode != 0 and "Traceback" not in done.stderr and flag.strip("-") in done.stderr
    assert not (tmp_path / "out").exists()


def test_reference_of_another_shape(tmp_path, context_priors, magnitude):
    np.save(tmp_path / "truth.npy", array()[:3])
    flags = ["--data", magnitude, "--frames", 4, "--reference", "truth.npy", "--out", "out"]
    assert_one_sentence(demo(*flags, cwd=tmp_path, priors=context_priors, succeeds=False), "truth.npy")
    assert not (tmp_path / "out").exists()


def test_reference_may_be_kspace_and_is_cut_as_the_scan_is(tmp_path, context_priors, magnitude):
    image = make_phantom(6, 64, 0)
    np.save(tmp_path / "images.npy", image.numpy())
    np.savez(tmp_path / "full.npz", kspace=fft2c(image).numpy(), other=np.zeros((6, 64, 64), np.float32))
    flags = ["--data", "images.npy", "--key", "image", "--frames", 4, "--size", 48]
    for name, reference in (("own", []), ("file", ["--reference", "full.npz", "--reference_key", "kspace"])):
        demo(*flags, *reference, "--out", name, cwd=tmp_path, priors=context_priors)
    psnr = [np.loadtxt(tmp_path / n / "metrics.csv", delimiter=",", skiprows=1, usecols=1) for n in ("own", "file")]
    assert np.allclose(*psnr, atol=1e-3)
    sampled = torch.where(make_mask("uniform", (6, 64, 64), 4, 8), fft2c(image), 0)
    np.save(tmp_path / "part.npy", sampled.numpy())
    done = demo(*flags, "--reference", "part.npy", "--out", "part", cwd=tmp_path, priors=context_priors, succeeds=False)
    assert_one_sentence(done, "part.npy is under-sampled")


def test_mask_file_of_several_arrays_cut_as_the_scan_is(tmp_path, context_priors):
    image, mask = make_phantom(6, 64, 0), make_mask("uniform", (6, 64, 64), 4, 8)
    np.savez(tmp_path / "masks.npz", first=mask.numpy(), second=make_mask("random", (6, 64, 64), 2, 8).numpy())
    np.save(tmp_path / "scan.npy", image.numpy())
    flags = ["--data", "scan.npy", "--key", "image", "--mask", "masks.npz", "--size", 48, "--frames", 4]
    done = demo(*flags, "--out", "out", cwd=tmp_path, priors=context_priors, succeeds=False)
    assert_one_sentence(done, "--mask_key")
    demo(*flags, "--mask_key", "first", "--out", "out", cwd=tmp_path, priors=context_priors)
    kspace = fft2c(torch.from_numpy(np.load(tmp_path / "out" / "reconstruction.npy")))
    truth = fft2c(image)[:4, 8:56, 8:56] * (48 / 64)
    kept = mask[:4, 8:56, 8:56]
    assert torch.allclose(kspace[kept], truth[kept], atol=1e-3)
    assert not torch.allclose(kspace[~kept], truth[~kept], atol=1e-3)


def test_mask_flags_for_undersampled_kspace(tmp_path, context_priors):
    kspace = torch.where(make_mask("uniform", (4, 64, 64), 4, 8), fft2c(make_phantom(4, 64, 0)), 0)
    np.save(tmp_path / "scan.npy", kspace.numpy())
    flags = ["--data", "scan.npy", "--key", "kspace", "--acceleration", 8, "--out", "out"]
    assert_one_sentence(demo(*flags, cwd=tmp_path, priors=context_priors, succeeds=False), "--acceleration")
    assert not (tmp_path / "out").exists()


def test_a_bad_scan_does_not_stop_the_others(tmp_path, priors):
    (tmp_path / "scans").mkdir()
    np.savez(tmp_path / "scans" / "good.npz", image=array())
    np.savez(tmp_path / "scans" / "bad.npz", image=_with(float("nan")))
    flags = ["--mode=eval", "--config.eval.path=scans", *TINY]
    flags += [f"--config.eval.checkpoint_{name}={path}" for name, path in zip(("global", "local"), priors, strict=True)]
    done = command("main.py", *flags, cwd=tmp_path, succeeds=False)
    assert_one_sentence(done, "1 of 2 scans left out")
    out = tmp_path / "exp" / "result"
    assert "bad.npz" in done.stderr and names(out) == {"good", "index.html", "metrics.csv", "metrics.md"}
    index = (out / "index.html").read_text()
    assert 'href="good/report.html"' in index and "bad.npz" in index and (out / "good" / "report.html").is_file()
    assert f"report: {Path('exp') / 'result' / 'index.html'}" in done.stdout


@pytest.mark.parametrize(
    "flag,words",
    [
        ("--config.data.nothing=1", "has no field nothing"),
        ("--config=nowhere.py", "nowhere.py"),
        ("--config.training.batch_size=0", "training.batch_size must be at least 1"),
        ("--config.training.n_iters=0", "training.n_iters must be at least 1"),
        ("--config.data.phantoms=0", "data.phantoms must be at least 1"),
        ("--config.training.objective=gan", "'gan' is unknown"),
        ("--config.training.accumulation=3", "cannot be split over 1 process(es)"),
        ("--config.training.init=nowhere.safetensors", "nowhere.safetensors is not there"),
        ("scan.mat", "scan.mat is not a flag"),
    ],
)
def test_configurations_that_cannot_be_used(flag, words, tmp_path):
    flags = [flag] if flag.startswith("--config=") else [*TINY, flag]
    done = command("main.py", *flags, cwd=tmp_path, succeeds=False)
    assert_one_sentence(done, words)
    assert not list(tmp_path.glob("exp/*/*.safetensors"))


def test_results_folder_that_is_a_file(tmp_path, context_priors, magnitude):
    (tmp_path / "out").write_text("words")
    flags = ["--data", magnitude, "--out", "out/here"]
    assert_one_sentence(demo(*flags, cwd=tmp_path, priors=context_priors, succeeds=False), "is a file")


def test_training_on_scenes_resumes_prunes_and_starts_from_a_model(tmp_path):
    flags = [flag for flag in TINY if "n_iters" not in flag and "snapshot_freq=" not in flag]
    flags += ["--config.training.objective=scenes", "--config.optim.schedule=cosine"]
    flags += ["--config.training.snapshot_freq=1"]
    first = command("main.py", *flags, "--config.training.n_iters=3", cwd=tmp_path)
    assert "exp/global/model.safetensors" in first.stdout and "exp/local/model.safetensors" in first.stdout
    kept = sorted(path.name for path in (tmp_path / "exp" / "global" / "checkpoints").iterdir())
    assert kept == ["checkpoint_1.pth", "checkpoint_2.pth", "checkpoint_3.pth"]
    assert "is at step 3 already" in command("main.py", *flags, "--config.training.n_iters=3", cwd=tmp_path).stdout
    prior = load_prior(tmp_path / "exp" / "local" / "model.safetensors")
    assert prior.context.offsets == (-2, -1, 1, 2) and not prior.context.mean and prior.of_scenes

    resume = tmp_path / "exp" / "global" / "checkpoints-meta" / "checkpoint.pth"
    whole = resume.read_bytes()
    resume.write_bytes(whole[:4000])
    more = [*flags, "--config.training.n_iters=4", "--model=global"]
    assert_one_sentence(command("main.py", *more, cwd=tmp_path, succeeds=False), "truncated")

    # LM begins from GM, whose context is a larger one
    init = "--config.training.init=exp/global/model.safetensors"
    other = [*flags, "--config.training.n_iters=1", "--workdir=other"]
    command("main.py", *other, "--model=global", cwd=tmp_path)
    command("main.py", *other, "--model=local", init, "--config.optim.lr=0.0", cwd=tmp_path)
    gm = load_model(tmp_path / "exp" / "global" / "model.safetensors")[0].state_dict()
    lm = load_model(tmp_path / "other" / "local" / "model.safetensors")[0].state_dict()
    columns = [*range(2), *range(4, 12)]  # frame; −2, −1, +1, +2
    assert torch.equal(lm["conv_in.weight"], gm["conv_in.weight"][:, columns])
    done = command("main.py", *other, init, "--config.model.nf=16", "--workdir=third", cwd=tmp_path, succeeds=False)
    assert_one_sentence(done, "another architecture")


def test_priors_of_what_the_ou_leaves_reconstruct(tmp_path, context_priors, magnitude):
    """Checkpoints of the kind that was trained until 2026-11-26."""
    own = context_priors
    demo("--data", magnitude, "--sampler", "cascade", "--out", "out", cwd=tmp_path, priors=own)
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert record["config"]["data"]["periodic"] is False  # 4 frames do not tell
    assert record["passes_per_frame"] <= 6
    assert names(tmp_path / "out") >= {"deviation.npy", "deviation.png"}
    assert np.load(tmp_path / "out" / "deviation.npy").shape == (4, 64, 64)
    demo("--data", magnitude, "--config.ou.operator=hankel", "--config.ou.window=4", "--sampler", "cascade",
         "--out", "out", "--overwrite", cwd=tmp_path, priors=own)  # fmt: skip
    assert not names(tmp_path / "out") & {"deviation.npy", "deviation.png"}  # nothing was held out
    done = demo("--data", magnitude, "--sampler", "published", "--out", "no", cwd=tmp_path, priors=own, succeeds=False)
    assert_one_sentence(done, "--sampler cascade")


def test_removed_flags_and_renamed_fields(tmp_path, context_priors, magnitude):
    flags = ["--data", magnitude, "--out", "out"]
    done = demo(*flags, "--adapt", 5, cwd=tmp_path, priors=context_priors, succeeds=False)
    assert_one_sentence(done, "--adapt was removed: adapting the priors to one scan never improved")
    done = demo(*flags, "--config.ou.hard=True", cwd=tmp_path, priors=context_priors, succeeds=False)
    assert_one_sentence(done, "config.ou.hard was removed")
    done = demo(*flags, "--config.data.scan_size=48", cwd=tmp_path, priors=context_priors)
    assert done.stderr.count("warning: --config.data.scan_size is now --config.data.size") == 1
    assert np.load(tmp_path / "out" / "reconstruction.npy").shape == (4, 48, 48)


def test_priors_of_the_other_kind_are_refused(tmp_path, priors, magnitude):
    done = demo("--data", magnitude, "--out", "no", cwd=tmp_path, priors=priors, succeeds=False)
    assert_one_sentence(done, "add --sampler published")
    demo("--data", magnitude, "--out", "yes", "--sampler", "published", cwd=tmp_path, priors=priors)


def test_sigterm_writes_a_checkpoint_to_resume_from(tmp_path):
    flags = [flag for flag in TINY if "n_iters" not in flag and "preemption" not in flag]
    endless = [*flags, "--model=global", "--config.training.n_iters=100000"]
    process = begun("main.py", *endless, cwd=tmp_path, told=tmp_path)
    kept = tmp_path / "exp" / "global" / "checkpoints"
    while not (kept.is_dir() and list(kept.iterdir())):  # it trains
        assert process.is_alive()
        time.sleep(0.02)
    process.terminate()
    process.join()
    assert process.exitcode == 143 and "the same command goes on" in (tmp_path / "stdout").read_text()
    state = torch.load(tmp_path / "exp" / "global" / "checkpoints-meta" / "checkpoint.pth", weights_only=True)
    more = [*flags, "--model=global", f"--config.training.n_iters={state['step'] + 2}"]
    done = command("main.py", *more, cwd=tmp_path)
    assert f"at step {state['step']}" in done.stdout
    assert not list(tmp_path.rglob(".checkpoint*"))  # no temporary file stays
    other = [*more, "--config.training.batch_size=4"]
    assert_one_sentence(command("main.py", *other, cwd=tmp_path, succeeds=False), "another training (batch_size)")
    cosine = command("main.py", *more, "--config.optim.schedule=cosine", cwd=tmp_path, succeeds=False)
    assert_one_sentence(cosine, "another")


def test_a_cosine_schedule_is_not_prolonged(tmp_path):
    flags = [flag for flag in TINY if "n_iters" not in flag]
    flags += ["--model=global", "--config.optim.schedule=cosine"]
    command("main.py", *flags, "--config.training.n_iters=2", cwd=tmp_path)
    longer = command("main.py", *flags, "--config.training.n_iters=4", cwd=tmp_path, succeeds=False)
    assert_one_sentence(longer, "another training (n_iters under optim.schedule=cosine)")


@pytest.mark.parametrize(
    "flags,words",
    [
        (["--mask", "mask.npy", "--acceleration", 8], "leave out --acceleration"),
        (["--mask_key", "mask"], "without --mask"),
    ],
)
def test_flags_that_cannot_apply(flags, words, tmp_path, context_priors, magnitude):
    done = demo("--data", magnitude, *flags, "--out", "out", cwd=tmp_path, priors=context_priors, succeeds=False)
    assert_one_sentence(done, words)


def test_evaluation_without_a_reference_leaves_no_scores_of_the_earlier_one(tmp_path, priors):
    (tmp_path / "scans").mkdir()
    np.savez(tmp_path / "scans" / "a.npz", image=array())
    flags = ["--mode=eval", "--config.eval.path=scans", *TINY, "--overwrite"]
    flags += [f"--config.eval.checkpoint_{name}={path}" for name, path in zip(("global", "local"), priors, strict=True)]
    command("main.py", *flags, cwd=tmp_path)
    mask = make_mask("uniform", (4, 64, 64), 4, 8)
    np.savez(tmp_path / "scans" / "a.npz", kspace=torch.where(mask, fft2c(make_phantom(4, 64, 0)), 0).numpy())
    assert "nothing is scored" in command("main.py", *flags, cwd=tmp_path).stdout
    assert names(tmp_path / "exp" / "result") == {"a", "index.html"}


def test_global_and_local_model_are_not_exchanged(tmp_path, magnitude):
    exchanged = [shipped(name, "cascade") for name in reversed(MODELS)]
    flags = ["--data", magnitude, "--sampler", "cascade", "--out", "out"]
    done = demo(*flags, cwd=tmp_path, priors=exchanged, succeeds=False)
    assert_one_sentence(done, "is the local model but is given as the global one")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", ("main.py", "PCsampling_demo_svd.py"))
def test_help_succeeds(script, tmp_path):
    done = command(script, "--help", cwd=tmp_path)
    assert done.returncode == 0 and "docs/options.md" in done.stdout and not done.stderr
