"""The baselines against what makes a minimiser one, and the benchmark commands at a tiny size."""

import csv
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import ablation, quality, speed
from benchmarks.baselines import bart, l_plus_s, llr, temporal_tv
from benchmarks.baselines.fillings import nearest_merge, zero_filled
from benchmarks.baselines.pogm import pogm
from benchmarks.scores import over_seeds
from mri.consistency import scan_scale
from mri.fourier import fft2c, ifft2c
from mri.lowrank import HankelLowRank
from mri.masks import make_mask
from mri.metrics import evaluate
from mri.phantom import make_phantom
from utils.errors import exit_on_input_error

ROOT = Path(__file__).parents[1]
needs_bart = pytest.mark.skipif(bart.why_not() is not None, reason=f"{bart.why_not()}")


@pytest.fixture(scope="module")
def scan():
    """Reference, k-space and mask, 8 frames of 64×48: not square, so that no axis can be taken for another."""
    kspace = fft2c(make_phantom(8, 64, 3))[:, :, 8:56] * (48 / 64) ** 0.5
    mask = make_mask("uniform", tuple(kspace.shape), 4, 8)
    return ifft2c(kspace), torch.where(mask, kspace, 0), mask


BASELINES = {
    "nearest_merge": nearest_merge,
    "l_plus_s": partial(l_plus_s.l_plus_s, strength=0.001, iterations=40),
    "llr": partial(llr.llr, strength=0.005, iterations=40),
    "temporal_tv": partial(temporal_tv.temporal_tv, strength=0.01, iterations=40),
    "bart_llr": partial(bart.bart_llr, strength=0.002, iterations=80),
    "bart_tv": partial(bart.bart_tv, strength=0.01, iterations=40),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_bart if "bart" in n else ()) for n in BASELINES])
def test_baseline_improves_and_keeps_the_data_in_the_units_of_the_input(scan, name):
    reference, kspace, mask = scan
    image = BASELINES[name](kspace, mask)
    assert image.shape == kspace.shape and image.dtype == torch.complex64
    assert torch.allclose(fft2c(image)[mask], kspace[mask], atol=1e-5)
    score, before = (evaluate(x, reference) for x in (image, zero_filled(kspace, mask)))
    assert score["psnr"] > before["psnr"] + 5 and score["nmse"] < before["nmse"] / 5
    thousand = BASELINES[name](1000 * kspace, mask)
    assert (thousand - 1000 * image).norm() < 1e-3 * thousand.norm()
    spoiled = torch.where(mask, kspace, 5)
    assert torch.allclose(BASELINES[name](spoiled, mask), image, atol=1e-4)


def residual(image, kspace, mask):
    """Aᴴ(y − A x): minus the gradient of the data term."""
    return ifft2c(torch.where(mask, kspace - fft2c(image), 0))


@pytest.mark.parametrize("strength", [0.003, 0.03])
def test_temporal_tv_is_the_minimum(scan, strength):
    """Optimal iff the residual is Dᴴ p with |p| ≤ λ and Re⟨p, D x⟩ = λ ‖D x‖₁."""
    _, kspace, mask = scan
    kspace = kspace / scan_scale(kspace, mask)
    x = temporal_tv.minimise(nearest_merge(kspace, mask), kspace, mask, strength, False, 1000)
    r = residual(x, kspace, mask)
    p = -r.cumsum(0)[:-1]
    assert r.sum(0).abs().max() < 0.05 * strength  # in the range of Dᴴ
    assert p.abs().max() < 1.02 * strength
    dx = temporal_tv.differences(x, False)
    assert (p.conj() * dx).real.sum() > 0.995 * strength * dx.abs().sum()
    early = temporal_tv.minimise(nearest_merge(kspace, mask), kspace, mask, strength, False, 400)
    assert tv_objective(early, kspace, mask, strength, False) < 1.002 * tv_objective(x, kspace, mask, strength, False)


def tv_objective(x, kspace, mask, strength, periodic):
    data = residual(x, kspace, mask).abs().square().sum() / 2
    return (data + strength * temporal_tv.differences(x, periodic).abs().sum()).item()


@pytest.mark.parametrize("periodic", [False, True])
def test_differences_and_their_adjoint(periodic):
    x = torch.randn(5, 4, 3, dtype=torch.complex128)
    y = torch.randn_like(temporal_tv.differences(x, periodic))
    forward = torch.vdot(temporal_tv.differences(x, periodic).flatten(), y.flatten())
    adjoint = torch.vdot(x.flatten(), temporal_tv.differences_adjoint(y, periodic).flatten())
    assert torch.allclose(forward, adjoint)


@needs_bart
def test_bart_solves_the_same_problem_in_the_same_orientation_and_scale(scan):
    _, kspace, mask = scan
    kspace = kspace / scan_scale(kspace, mask)
    own = temporal_tv.minimise(nearest_merge(kspace, mask, True), kspace, mask, 0.01, True, 400)
    theirs = bart.pics(kspace, mask, ["-R", "T:1024:0:0.01", "-i", "400"])
    assert (own - theirs).norm() < 0.02 * own.norm()
    values = [tv_objective(x, kspace, mask, 0.01, periodic=True) for x in (own, theirs)]
    assert values[0] == pytest.approx(values[1], rel=0.01)


def test_l_plus_s_is_the_minimum(scan):
    """Optimal iff the residual r has ‖r‖₂ ≤ λ_L, |T r| ≤ λ_S, ⟨r, L⟩ = λ_L ‖L‖_* and ⟨T r, T S⟩ = λ_S ‖T S‖₁."""
    _, kspace, mask = scan
    kspace = kspace / scan_scale(kspace, mask)
    lambda_l, lambda_s = 0.5, 0.02
    low_rank, sparse = l_plus_s.separate(nearest_merge(kspace, mask), kspace, mask, lambda_l, lambda_s, 400)
    r = residual(low_rank + sparse, kspace, mask)
    assert torch.linalg.matrix_norm(r.flatten(1), 2) < 1.02 * lambda_l
    nuclear = torch.linalg.svdvals(low_rank.flatten(1)).sum()
    assert (r.conj() * low_rank).real.sum() > 0.98 * lambda_l * nuclear > 0
    spectrum, of_residual = (torch.fft.fft(x, dim=0, norm="ortho") for x in (sparse, r))
    assert of_residual.abs().max() < 1.02 * lambda_s
    assert (of_residual.conj() * spectrum).real.sum() > 0.98 * lambda_s * spectrum.abs().sum() > 0


def test_pogm_finds_the_lasso_and_is_ahead_of_plain_gradient_steps():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(30, 20, dtype=torch.float64, generator=generator)
    b = torch.randn(30, dtype=torch.float64, generator=generator)
    step = 1 / torch.linalg.matrix_norm(a, 2).item() ** 2

    def shrink(x, gamma):
        return x.sign() * (x.abs() - gamma * 2).clamp(min=0)

    def objective(x):
        return ((a @ x - b).square().sum() / 2 + 2 * x.abs().sum()).item()

    x = pogm(lambda x: a.T @ (a @ x - b), shrink, torch.zeros(20, dtype=torch.float64), step, 1000)
    correlation = a.T @ (b - a @ x)
    assert correlation.abs().max() < 2 + 1e-6
    assert torch.allclose(correlation[x != 0], 2 * x.sign()[x != 0], atol=1e-6) and (x == 0).any()
    early = pogm(lambda x: a.T @ (a @ x - b), shrink, torch.zeros(20, dtype=torch.float64), step, 15)
    plain = torch.zeros(20, dtype=torch.float64)
    for _ in range(15):
        plain = shrink(plain - step * a.T @ (a @ plain - b), step)
    assert objective(x) <= objective(early) < objective(plain)


def test_published_step_agrees_with_the_circular_one_but_for_the_edge(scan):
    image = nearest_merge(*scan[1:])
    assert torch.allclose(speed.published_step(image, 4, 8 * 16), image, atol=1e-4)
    published = speed.published_step(image, 4, 30)
    circular = HankelLowRank(4, 30, sweeps=0)(image)
    assert (published - circular).norm() < 0.3 * (published - image).norm() < 0.1 * image.norm()


# ------------------------------------------------------------------------------------------ arithmetic


def test_scores_over_seeds_are_those_of_all_frames():
    frames = np.array([[30.0, 34.0], [20.0, 28.0]])
    rest = {"ssim": 0.5, "nmse": 0.1, "seconds": 1.0, "passes": 8}
    total = over_seeds([{"psnr": f.mean(), "psnr_std": f.std(), **rest} for f in frames])
    assert total["psnr"] == frames.mean() and total["psnr_std"] == pytest.approx(frames.std())
    assert total["passes"] == 8


def test_gains_compare_rows_that_differ_in_one_stage():
    group = {"scan": "s", "pattern": "uniform", "acceleration": "4", "sampler": "cascade", "stages": "GM"}
    stages = (("zero_filled", "no", 1.0), ("pseudo_reference", "no", 3.0), ("pseudo_reference", "yes", 7.0))
    rows = [{**group, "start": start, "ou": ou, "psnr": psnr} for start, ou, psnr in stages]
    assert ablation.gains(rows, "ou", "yes", "no") == [4.0]
    assert ablation.gains(rows, "start", "pseudo_reference", "zero_filled") == [2.0]


def test_growth_recovers_powers():
    rows = [
        {"part": "ou", "frames": t, "size": n, "seconds": 1e-4 * t**1.5 * n**2}
        for t in (4, 8, 16)
        for n in (64, 96)
    ]
    sizes = {"T": lambda row: row["frames"], "H·W": lambda row: row["size"] ** 2}
    assert speed.growth(rows, "ou", sizes) == "ou: seconds ∝ (T)^1.50 · (H·W)^1.00"
    assert speed.growth(rows[:1], "ou", sizes) == ""


# ------------------------------------------------------------------------------------------ commands


def command(module, *arguments, cwd):
    """Run `python -m module` from another folder; returns its output's lines."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def table(path):
    rows = list(csv.DictReader(path.read_text().splitlines()))
    return list(rows[0]), rows


def tiny_models(priors):
    return ["--checkpoint_global", priors[0], "--checkpoint_local", priors[1], "--set", "sampling.num_scales=8",
            "--set", "sampling.iterations=1", "--set", "sampling.trust_levels=(0.1,)",
            "--set", "ou.llr_iterations=3", "--set", "ou.motion_patches=(4,)",
            "--set", "ou.motion_steps=2"]  # fmt: skip


def test_quality(tmp_path, priors):
    image = make_phantom(4, 66, 5)
    np.save(tmp_path / "heart.npy", image.numpy())
    scans = ["--data", "heart.npy", "--size", 64, "--acceleration", "2,4", "--acs", 8, "--seeds", "1"]
    ours = ["gldm_published", "gldm_cascade"]
    names = ["zero_filled", "nearest_merge", "ou_only", "llr", *ours]
    out = tmp_path / "out"
    lines = command(
        "benchmarks.quality", *scans, *tiny_models(priors), "--methods", ",".join(names), "--out", out, cwd=tmp_path
    )
    assert {path.name for path in out.iterdir()} == {"quality.csv", "quality.md", "quality.json", "panel.png"}
    columns, rows = table(out / "quality.csv")
    assert ",".join(columns) == "scan,pattern,acceleration,method,psnr,psnr_std,ssim,nmse,seconds,passes"
    assert [(row["acceleration"], row["method"]) for row in rows] == [(a, n) for a in "24" for n in names]
    assert all(row["scan"] == "heart" and row["pattern"] == "uniform" for row in rows)
    psnr = {(row["acceleration"], row["method"]): float(row["psnr"]) for row in rows}
    assert psnr["4", "llr"] > psnr["4", "zero_filled"] and psnr["2", "llr"] > psnr["4", "llr"]
    assert {row["method"]: int(row["passes"]) > 0 for row in rows} == {name: name in ours for name in names}
    assert "λ of the swept baselines" in (out / "quality.md").read_text()
    assert str(out / "panel.png") in lines


def test_methods_of_the_quality_table(tiny):
    names = list(quality.all_methods(tiny, (None, None)))
    assert names == [
        "zero_filled", "nearest_merge", "ou_only", "l_plus_s", "llr", "temporal_tv", "bart_llr", "bart_tv",
        "gldm_published", "gldm_cascade", "gldm_synthetic",
    ]  # fmt: skip
    swept = [method.strengths for method in quality.all_methods(tiny, (None, None)).values() if method.strengths[1:]]
    assert {len(strengths) for strengths in swept} == {6} and len(swept) == 5
    tiny.sampling.adapt = 1.0
    assert list(quality.all_methods(tiny, (None, None)))[-2:] == ["gldm_synthetic", "gldm_adapted"]


def test_adapted_priors_have_a_row_of_their_own(tmp_path):
    flags = ["--size", 64, "--frames", 5, "--acceleration", 4, "--seeds", "1", "--set", "sampling.adapt_steps=1",
             "--set", "ou.operator=llr"]  # fmt: skip
    names = "gldm_synthetic,gldm_adapted"
    command("benchmarks.quality", *flags, "--methods", names, "--out", "out", cwd=tmp_path)
    rows = table(tmp_path / "out" / "quality.csv")[1]
    assert [row["method"] for row in rows] == names.split(",")
    assert float(rows[1]["seconds"]) > float(rows[0]["seconds"])  # five reconstructions by the OU more


def test_bart_is_left_out_with_a_reason(tiny, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    methods = quality.choose_methods(quality.all_methods(tiny, (None, None)), ["llr", "bart_llr", "bart_tv"])
    assert list(methods) == ["llr"] and capsys.readouterr().out.count("apt-get install bart") == 1


def test_speed_of_the_ou(tmp_path):
    lines = command("benchmarks.speed", "--only", "ou", "--size", 64, "--frames", 4, cwd=tmp_path)
    number = r"(\d[\d.e+-]*)"
    found = re.fullmatch(rf"ou: {number} s  published: {number} s  ratio: {number}", lines[-1])
    warm, published, ratio = map(float, found.groups())
    assert ratio == pytest.approx(published / warm, rel=1e-2) and ratio > 1


def test_speed_tables(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    run_here(monkeypatch, speed, "--size", 64, "--frames", 4, "--iterations", 1, "--out", out,
             "--max_published_elements", 1000)  # fmt: skip
    columns, rows = table(out / "speed.csv")
    assert tuple(columns) == speed.COLUMNS and "left out" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"speed.csv", "speed.md", "speed.json"}
    parts = ["ou_warm", "ou_exact", "network_pass", "gldm_cascade", "gldm_published", *["ou_warm_rank"] * 4]
    assert [row["part"] for row in rows] == parts
    assert "scaled up" in rows[4]["note"] and "after a change of image" in rows[0]["note"]


def test_ablation(tmp_path, priors, monkeypatch, capsys):
    phantom = ["--size", 64, "--frames", 4, "--set", "sampling.steps=2"]
    out = tmp_path / "out"
    run_here(monkeypatch, ablation, *phantom, *tiny_models(priors), "--out", out)
    lines = capsys.readouterr().out.splitlines()
    assert {path.name for path in out.iterdir()} == {"ablation.csv", "ablation.md", "ablation.json"}
    columns, rows = table(out / "ablation.csv")
    assert tuple(columns) == ablation.COLUMNS
    models = [row for row in rows if row["stages"] != "none"]
    assert len(rows) - len(models) == 6 and len(models) == 4 * (4 + 3)
    assert {row["stages"] for row in models} == {"GM", "LM", "LM→GM", "GM→LM"}
    assert any(line.startswith("- OU after every model rather than never:") for line in lines)
    assert any("against the best OU alone" in line for line in lines)


def run_here(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    exit_on_input_error(module.main)


def _undersampled(tmp_path):
    mask = make_mask("uniform", (4, 64, 64), 4, 8)
    np.save(tmp_path / "y.npy", torch.where(mask, fft2c(make_phantom(4, 64, 0)), 0).numpy())


@pytest.mark.parametrize(
    "module,flags,words",
    [
        (quality, "--data y.npy --key kspace", "no reference to score against"),
        (quality, "--data nothing.mat", "nothing.mat"),
        (quality, "--pattern zigzag", "zigzag"),
        (quality, "--acceleration 4,99", "99"),
        (quality, "--methods llr,magic", "magic"),
        (quality, "--phantoms 1,1", "same name"),
        (quality, "--set sampling.magic=1", "sampling.magic"),
        (quality, "--methods gldm_adapted", "--adapt SECONDS"),
        (quality, "--adapt -3", "number of seconds"),
        (quality, "--set mask.path=a.mat", "--pattern"),
        (quality, "--checkpoint_global none.safetensors", "together"),
        (quality, "--checkpoint_global none.safetensors --checkpoint_local no.pth", "none.safetensors"),
        (quality, "--methods zero_filled", "--overwrite"),
        (ablation, "--samplers magic", "magic"),
        (speed, "--only magic", "magic"),
        (speed, "--size 64 --frames 4 --rank 999 --only ou", "999"),
    ],
)
def test_bad_input_is_one_sentence(module, flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _undersampled(tmp_path)
    small = [] if module is speed else ["--size", 64, "--frames", 4]
    (tmp_path / "out").mkdir()
    if words == "--overwrite":
        (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(SystemExit) as stopped:
        run_here(monkeypatch, module, *small, *flags.split(), "--out", "out")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and words in error
    assert not (tmp_path / "out" / "quality.csv").exists()
