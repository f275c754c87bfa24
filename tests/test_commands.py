"""The commands as a user types them: what they write, and one sentence for each bad input."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from models.checkpoint import load_model
from models.prior import shipped
from mri.fourier import fft2c, ifft2c
from mri.intake import scan_from_file
from mri.intake_settings import DataSettings, Intake
from mri.masks import make_mask
from mri.metrics import evaluate
from mri.phantom import make_phantom, simulate_scan
from mri.scan import Reference, Scan
from reconstruction.in_turn import PASSES, STEP_SIZE
from reconstruction.prepare import prepare
from reconstruction.settings import MODELS, OUSettings, SamplingSettings
from report.results import METRICS
from sampling import reconstruct_problem
from tests.commands import TINY, array, assert_one_sentence, command, demo, names

PICTURES = {"montage.png", "xt_profile.png", "cine.gif", "deviation.png"}
ALWAYS = {"reconstruction.npy", "reconstruction.mat", "deviation.npy", "config.json", "report.html", *PICTURES}


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


def test_noise_of_images_counts_as_signal_unless_its_level_is_given(tmp_path):
    np.save(tmp_path / "images.npy", make_phantom(6, 64, 0).numpy())
    scan, reference = scan_from_file(Intake(DataSettings()), tmp_path / "images.npy")
    assert not reference.noisy and "--noise_std states its level" in scan.source.found
    scan, reference = scan_from_file(Intake(DataSettings(noise_std=0.02)), tmp_path / "images.npy")
    assert reference.noisy and "--noise_std" not in scan.source.found


def test_noise_that_explains_the_error_is_no_reason_to_doubt_the_scan(tmp_path):
    generator = torch.Generator().manual_seed(0)
    image = make_phantom(6, 64, 0) + 0.3 * torch.randn(6, 64, 64, dtype=torch.complex64, generator=generator)
    np.save(tmp_path / "images.npy", image.numpy())
    flags = ["--data=images.npy", "--acceleration=2", "--acs=8", "--noise_std=0.3", "--out=out"]
    said = command("PCsampling_demo_svd.py", *flags, cwd=tmp_path).stdout
    assert "noise that is removed counts as error" in said and "worse than the zero-filled" not in said


def test_shipped_checkpoints_and_the_embedded_heart(tmp_path):
    done = command("PCsampling_demo_svd.py", "--frames=5", "--size=64", "--out=out", cwd=tmp_path)
    assert "built-in heart phantom 0: 5 frames of 8 coils, 64×64" in done.stdout and "gldm" in done.stdout
    assert "virtual coils" in done.stdout and "coil maps: Walsh" in done.stdout and "SNR" in done.stdout
    assert "optimization unit:" in done.stdout and "priors:" in done.stdout and "χ² =" in done.stdout
    assert names(tmp_path / "out") >= ALWAYS | {"coil_maps.npy", "metrics.csv"}
    maps = np.load(tmp_path / "out" / "coil_maps.npy")
    assert maps.ndim == 3 and np.allclose((np.abs(maps) ** 2).sum(0), 1, atol=1e-4)
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert record["noise_std"] == pytest.approx(0.01, rel=0.05) and 0 < record["chi"] < 2


def test_shipped_checkpoints_say_how_they_were_made():
    for sampler, objective in (("cascade", "cascade"), ("published", "dsm")):
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
    assert all(0.3 < size <= STEP_SIZE for size in result.settings["calibration"]["step_sizes"])  # both were used
    assert result.settings["passes_per_frame"] <= PASSES == 40
    assert after["psnr_common"] > before["psnr_common"] + 0.1 and after["ssim_common"] > before["ssim_common"]


def test_integers_of_an_odd_size(tmp_path, context_priors):
    np.save(tmp_path / "scan.npy", (100 * np.abs(array()))[:, :63, :61].astype(np.uint16))
    demo("--data", "scan.npy", "--out", "out", cwd=tmp_path, priors=context_priors)
    assert np.load(tmp_path / "out" / "reconstruction.npy").shape == (4, 63, 61)


def test_dc_in_the_corner_can_be_said(tmp_path, context_priors):
    np.save(tmp_path / "scan.npy", torch.fft.fft2(make_phantom(4, 64, 0)).numpy().astype(np.complex64))
    demo("--data", "scan.npy", "--key", "kspace", "--dc", "corner", "--out", "out", cwd=tmp_path, priors=context_priors)


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


def test_a_bad_scan_does_not_stop_the_others(tmp_path, priors):
    (tmp_path / "scans").mkdir()
    np.savez(tmp_path / "scans" / "good.npz", image=array())
    np.savez(tmp_path / "scans" / "bad.npz", image=np.full_like(array(), np.nan))
    flags = ["--mode=eval", "--config.eval.path=scans", *TINY]
    flags += [f"--config.eval.checkpoint_{name}={path}" for name, path in zip(("global", "local"), priors, strict=True)]
    done = command("main.py", *flags, cwd=tmp_path, succeeds=False)
    assert_one_sentence(done, "1 of 2 scans skipped")
    out = tmp_path / "exp" / "result"
    assert "bad.npz" in done.stderr and names(out) == {"good", "index.html", "metrics.csv", "metrics.md"}
    index = (out / "index.html").read_text()
    assert 'href="good/report.html"' in index and "bad.npz" in index and (out / "good" / "report.html").is_file()
    assert f"report: {Path('exp') / 'result' / 'index.html'}" in done.stdout


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


@pytest.mark.parametrize("script", ("main.py", "PCsampling_demo_svd.py"))
def test_help_succeeds(script, tmp_path):
    done = command(script, "--help", cwd=tmp_path)
    assert done.returncode == 0 and "docs/options.md" in done.stdout and not done.stderr
