"""The benchmark commands at a tiny size: what they measure and write, and one sentence for each bad input."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import ablation, calibration, published, quality, speed, zero_shot
from benchmarks.baselines import bart, l_plus_s, llr, temporal_tv
from benchmarks.scores import SCORES, over_seeds
from models.prior import MODELS, load_prior, shipped
from mri.fourier import fft2c
from mri.holdout import hold_out_sets
from mri.masks import make_mask
from mri.metrics import image_error
from mri.noise import chi
from mri.phantom import make_phantom
from reconstruction.prepare import prepare
from reconstruction.settings import SAMPLERS, OUSettings
from tests.conftest import simple_scan
from tests.test_benchmarks.commands import FAST, checkpoints, command, run_here, table

PEERS = ["l_plus_s", "llr", "temporal_tv"] + ([] if bart.why_not() else ["bart_llr", "bart_tv"])


# ------------------------------------------------------------------------------------------ arithmetic


def test_scores_over_seeds_are_those_of_all_frames():
    frames = np.array([[30.0, 34.0], [20.0, 28.0]])
    rest = {**dict.fromkeys(SCORES, 0.5), "passes": 8}
    total = over_seeds([{**rest, "psnr": f.mean(), "psnr_std": f.std()} for f in frames])
    assert total["psnr"] == frames.mean() and total["psnr_std"] == pytest.approx(frames.std())
    assert total["passes"] == 8 and set(total) == set(SCORES)


def test_gains_compare_rows_that_differ_in_one_stage():
    group = {"scan": "s", "pattern": "p", "acceleration": "4", "noise": "0", "sampler": "published", "stages": "GM"}
    stages = (("zero_filled", "no", 1.0), ("pseudo_reference", "no", 3.0), ("pseudo_reference", "yes", 7.0))
    rows = [{**group, "start": start, "ou": ou, "psnr": psnr} for start, ou, psnr in stages]
    rows += [{**row, "sampler": "none", "stages": "none", "psnr": 9 * row["psnr"]} for row in rows]
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


def test_the_error_leaves_out_the_phase_that_coil_maps_leave_free():
    reference, error = torch.randn(2, 40, 8, 8, dtype=torch.complex64)
    phase = torch.polar(torch.ones(8, 8), torch.randn(8, 8))
    image = phase * (reference + 0.01 * error)
    expected = 0.01 * error.norm().item()
    assert image_error(image, reference, 8).norm().item() == pytest.approx(expected, rel=0.05)
    assert image_error(image, reference, 1).norm() > 10 * expected
    assert torch.equal(image_error(image, image.abs(), 8), torch.zeros(40, 8, 8))


# --------------------------------------------------------------------------------------------- quality


def test_quality_of_a_file(tmp_path, priors, monkeypatch, capsys):
    monkeypatch.setattr(llr, "STRENGTHS", (0.001, 0.005))
    image = make_phantom(4, 66, 5)
    np.save(tmp_path / "heart.npy", image.numpy())
    scans = ["--data", "heart.npy", "--size", 64, "--acceleration", "2,4", "--acs", 8, "--seeds", "1"]
    names = ["zero_filled", "nearest_merge", "ou_only", "llr", "gldm_published"]
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    run_here(monkeypatch, quality, *scans, *checkpoints(priors), *FAST, "--methods", ",".join(names), "--out", out)
    written = {"quality.csv", "quality.md", "quality.json", "panel.png", "cine.gif"}
    assert {path.name for path in out.iterdir()} == written
    columns, rows = table(out / "quality.csv")
    assert tuple(columns) == quality.COLUMNS
    assert [(row["acceleration"], row["method"]) for row in rows] == [(a, n) for a in "24" for n in names]
    assert all(row["scan"] == "heart" and row["pattern"] == "uniform" for row in rows)
    psnr = {(row["acceleration"], row["method"]): float(row["psnr"]) for row in rows}
    assert psnr["4", "llr"] > psnr["4", "zero_filled"] and psnr["2", "llr"] > psnr["4", "llr"]
    assert [int(row["passes"]) > 0 for row in rows] == 2 * [False, False, False, False, True]
    assert "λ of the swept baselines" in (out / "quality.md").read_text()
    assert str(out / "panel.png") in capsys.readouterr().out


def test_quality_of_a_heart_with_coils(tmp_path, monkeypatch):
    """Every classical peer runs on several coils with noise, and agrees with the data as far as the noise allows."""
    for module, name, strength in (
        (l_plus_s, "STRENGTHS", 0.003), (llr, "STRENGTHS", 0.005), (temporal_tv, "STRENGTHS", 0.01),
        (bart, "LLR_STRENGTHS", 0.0005), (bart, "TV_STRENGTHS", 0.01),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, (strength,))
    found, measure = [], quality.measure

    def recorded(method, runs, bar):
        found.append((runs[0][1].problem, measure(method, runs, bar)))
        return found[-1][1]

    monkeypatch.setattr(quality, "measure", recorded)
    names = ["zero_filled", "nearest_merge", "ou_only", *PEERS]
    run_here(monkeypatch, quality, "--size", 64, "--frames", 5, "--methods", ",".join(names),
             "--set", "ou.operator=llr", "--out", tmp_path / "out")  # fmt: skip
    _, rows = table(tmp_path / "out" / "quality.csv")
    assert [row["method"] for row in rows] == names and {row["scan"] for row in rows} == {"heart0"}
    psnr = {row["method"]: float(row["psnr"]) for row in rows}
    for (problem, measurement), name in zip(found, names, strict=True):
        assert problem.model.coils > 1 and problem.noise_known
        if name not in ("zero_filled", "nearest_merge"):
            level = chi(problem.model, measurement.image / problem.scale, problem.measured, problem.noise_std)
            assert 0.5 < level < 1.5, name
            assert psnr[name] > psnr["nearest_merge"] > psnr["zero_filled"]


def test_methods_of_the_quality_table(tiny):
    methods = quality.all_methods(tiny, (None, None), 2)
    assert list(methods) == [
        "zero_filled", "nearest_merge", "ou_only", "l_plus_s", "llr", "temporal_tv", "bart_llr", "bart_tv",
        "gldm_published", "gldm", "gldm_own", "gldm_continued",
    ]  # fmt: skip
    swept = [method.strengths for method in methods.values() if method.strengths[1:]]
    assert {len(strengths) for strengths in swept} == {6} and len(swept) == 5


def test_each_sampler_gets_priors_of_its_kind(priors, context_priors):
    of_kspace, with_context = (tuple(load_prior(path) for path in paths) for paths in (priors, context_priors))
    assert quality.published_kind(of_kspace) is of_kspace and quality.context_kind(with_context) is with_context
    assert quality.context_kind(of_kspace) == (None, None)
    assert all("dsm" in prior.path for prior in quality.published_kind(with_context))


def test_bart_is_left_out_with_a_reason(tiny, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    methods = quality.choose_methods(quality.all_methods(tiny, (None, None), 2), ["llr", "bart_llr", "bart_tv"])
    assert list(methods) == ["llr"] and capsys.readouterr().out.count("apt-get install bart") == 1


# ---------------------------------------------------------------------------------- the other commands


def test_speed_of_the_ou(tmp_path):
    lines = command("benchmarks.speed", "--only", "ou", "--size", 64, "--frames", 4, cwd=tmp_path)
    number = r"(\d[\d.e+-]*)"
    found = re.fullmatch(rf"ou: {number} s  published: {number} s  ratio: {number}", lines[-1])
    warm, published, ratio = map(float, found.groups())
    assert ratio == pytest.approx(published / warm, rel=1e-2)  # which of the two is faster is for the benchmark to say


def test_speed_tables(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr(speed, "OU", OUSettings(operator="motion", motion_patches=(4,), motion_steps=5))
    run_here(monkeypatch, speed, "--size", 64, "--frames", 4, "--iterations", 1, "--out", out,
             "--max_published_elements", 1000)  # fmt: skip
    columns, rows = table(out / "speed.csv")
    assert tuple(columns) == speed.COLUMNS and "left out" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"speed.csv", "speed.md", "speed.json"}
    parts = ["ou_warm", "ou_exact", "network_pass", "gldm_cascade", "gldm_published", "gldm_cascade_coils"]
    coils = ["ou_motion_one_coil", "ou_motion_coils"]
    together = ["gldm", "gldm_one_by_one"]
    assert [row["part"] for row in rows] == [*parts, *coils, "motion", "motion_plain", *together, *["ou_warm_rank"] * 4]
    assert float(rows[6]["ratio"]) == 1 and "1 virtual coil" in rows[6]["note"]
    assert "scaled up" in rows[4]["note"] and "after a change of image" in rows[0]["note"]


def test_ablation(tmp_path, priors, monkeypatch, capsys):
    out = tmp_path / "out"
    run_here(monkeypatch, ablation, "--phantoms", 0, "--size", 64, "--frames", 4, *checkpoints(priors), *FAST,
             "--out", out)  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert {path.name for path in out.iterdir()} == {"ablation.csv", "ablation.md", "ablation.json"}
    columns, rows = table(out / "ablation.csv")
    assert tuple(columns) == ablation.COLUMNS
    count = {sampler: sum(row["sampler"] == sampler for row in rows) for sampler in ("none", *SAMPLERS)}
    assert count == {"none": 5, "cascade": 4 * 3, "published": 4 * 2 * 2}
    assert {row["stages"] for row in rows if row["sampler"] != "none"} == {"GM", "LM", "LM→GM", "GM→LM"}
    assert {row["start"] for row in rows if row["sampler"] == "cascade"} == {"pseudo_reference"}
    for words in ("OU after every model rather than never, published sampler:", "models in turn with the OU rather",
                  "start from view sharing rather than zero-filled:"):  # fmt: skip
        assert any(line.startswith(f"- {words}") for line in lines)
    assert any("over the best OU alone" in line for line in lines)


def test_the_published_sampler_in_full(tmp_path, priors, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(published, "EVERY", 2)
    run_here(monkeypatch, published, "--phantoms", 0, "--size", 64, "--frames", 4, *checkpoints(priors), *FAST,
             "--set", "sampling.iterations=3", "--out", out)  # fmt: skip
    assert {path.name for path in out.iterdir()} == {f"published.{end}" for end in ("csv", "md", "json", "png")}
    columns, rows = table(out / "published.csv")
    assert tuple(columns) == published.COLUMNS
    assert [row["iteration"] for row in rows] == ["OU", "GLDM", "2", "3"]
    assert len({row["psnr_common"] for row in rows[2:]}) == 2 and float(rows[-1]["seconds"]) > 0


def test_priors_of_the_scan_alone_begin_at_random_or_as_shipped(monkeypatch):
    problem = prepare(simple_scan(5, 64)[0])
    monkeypatch.setattr(zero_shot, "FRAMES", 5)
    own, continued = (zero_shot.own_priors(problem, 0, 1, begun) for begun in (False, True))
    for name, at_random, further in zip(MODELS, own, continued, strict=True):
        assert at_random.of_scenes and further.of_scenes and at_random.role == name
        weights = load_prior(shipped(name, "cascade")).network.conv_in.weight
        change = (further.network.conv_in.weight - weights).norm() / weights.norm()
        assert 0 < change < 0.1 < (at_random.network.conv_in.weight - weights).norm() / weights.norm()


def test_what_is_held_out_is_not_learned_from(monkeypatch):
    problem = prepare(simple_scan(5, 64)[0])
    kept = hold_out_sets(problem.model.mask, 0).kept
    other = replace(problem, measured=torch.where(kept[:, None], problem.measured, 7.0 * problem.model.mask[:, None]))
    monkeypatch.setattr(zero_shot, "FRAMES", 5)
    pairs = zip(*(zero_shot.own_priors(one, 0, 1, False) for one in (problem, other)), strict=True)
    assert not torch.equal(problem.measured, other.measured)
    for own, same in ((prior.network.state_dict() for prior in pair) for pair in pairs):
        assert all(torch.equal(own[name], same[name]) for name in own)


def test_calibration(tmp_path, context_priors, monkeypatch):
    out = tmp_path / "out"
    run_here(monkeypatch, calibration, "--size", 64, "--frames", 5, *checkpoints(context_priors), *FAST,
             "--out", out)  # fmt: skip
    names = {f"calibration.{end}" for end in ("csv", "md", "json", "png")}
    assert {path.name for path in out.iterdir()} == names
    columns, rows = table(out / "calibration.csv")
    assert tuple(columns) == calibration.COLUMNS and [int(row["group"]) for row in rows] == list(range(1, 11))
    predicted = [float(row["predicted"]) for row in rows]
    assert predicted == sorted(predicted) and all(0 < float(row["error"]) < 0.5 for row in rows)


def _undersampled(folder):
    mask = make_mask("uniform", (4, 64, 64), 4, 8)
    np.save(folder / "y.npy", torch.where(mask, fft2c(make_phantom(4, 64, 0)), 0).numpy())


@pytest.mark.parametrize(
    "module,flags,words",
    [
        (quality, "--data y.npy --key kspace", "no reference to score against"),
        (quality, "--data nothing.mat", "nothing.mat"),
        (quality, "--pattern zigzag", "zigzag"),
        (quality, "--acceleration 4,99", "99"),
        (quality, "--methods llr,magic", "magic"),
        (quality, "--methods gldm_adapted", "gldm_continued now"),
        (quality, "--methods gldm_cascade", "was removed"),
        (quality, "--phantoms 1,1", "same name"),
        (quality, "--hearts 1,1 --phantoms 1", "same name"),
        (quality, "--hearts -1", "0 or above"),
        (quality, "--set sampling.magic=1", "sampling.magic"),
        (quality, "--set sampling.adapt=1", "never improved"),
        (quality, "--set ou.operator=both", "hankel after llr"),
        (quality, "--set mask.path=a.mat", "--pattern"),
        (quality, "--checkpoint_global none.safetensors", "together"),
        (quality, "--checkpoint_global none.safetensors --checkpoint_local no.pth", "none.safetensors"),
        (quality, "--methods zero_filled", "--overwrite"),
        (ablation, "--samplers magic", "magic"),
        (calibration, "--seeds 0,1", "--seeds"),
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
