"""The script that continues the training of the shipped priors: its time, its judgement, what it replaces."""

import csv
import shutil

import pytest

from benchmarks import train_shipped
from benchmarks.train_shipped import improves, replace
from models.checkpoint import load_model
from models.prior import MODELS
from tests.commands import ROOT
from tests.test_benchmarks.commands import run_here
from utils.files import refuse_existing

SHIPPED = ROOT / "checkpoints"


def rows(shipped_scores, new_scores):
    """PSNR and SSIM of two scans with each pair of priors."""
    return [
        {"priors": label, "psnr_common": psnr, "ssim_common": ssim, "nmse": 0.1, "edge_time": 1.0}
        for label, scores in (("none", shipped_scores), ("shipped", shipped_scores), ("new", new_scores))
        for psnr, ssim in scores
    ]


@pytest.mark.parametrize(
    ("new", "better"),
    [
        ([(31, 0.91), (39.5, 0.96)], True),
        ([(30, 0.90), (40, 0.95)], False),  # as before
        ([(32, 0.90), (40, 0.94)], False),  # SSIM falls
        ([(29, 0.92), (40, 0.96)], False),  # PSNR falls
    ],
)
def test_both_means_must_rise(new, better):
    assert improves(rows([(30, 0.90), (40, 0.95)], new))[0] is better


def test_the_old_stay_beside_the_new(tmp_path):
    folder, fresh = tmp_path / "checkpoints", {name: tmp_path / name for name in MODELS}
    folder.mkdir()
    for name, path in fresh.items():
        (folder / f"{name}.safetensors").write_text(f"old {name}")
        path.write_text(f"new {name}")
    replace(fresh, folder)
    found = {path.name: path.read_text() for path in folder.iterdir()}
    assert found == {f"{name}{kind}.safetensors": f"{age} {name}" for name in MODELS
                     for kind, age in (("", "new"), (".previous", "old"))}  # fmt: skip
    replace(fresh, folder)
    assert (folder / "local.previous.safetensors").read_text() == "new local"


def test_trains_judges_and_replaces(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in MODELS:
        shutil.copy(SHIPPED / f"{name}.safetensors", folder)
    monkeypatch.setattr(train_shipped.loop, "LOG_STEPS", 1)
    monkeypatch.setattr(train_shipped, "MASKS", (("uniform", 4.0),))
    monkeypatch.setattr(train_shipped, "PHANTOMS", ("phantom100",))
    monkeypatch.setattr(train_shipped, "HEARTS", (100,))
    testing = train_shipped.cpu_demo.get_config()
    testing.ou.motion_steps = 6
    monkeypatch.setattr(train_shipped.cpu_demo, "get_config", lambda: testing)
    monkeypatch.setattr(train_shipped, "improves", lambda rows: (True, f"{len(rows)} rows"))
    out = tmp_path / "out"
    run_here(monkeypatch, train_shipped, "--minutes", 0.02, "--batch", 4, "--size", 64, "--frames", 5, "--scenes", 1,
             "--checkpoints", folder, "--out", out)  # fmt: skip
    with open(out / "train_shipped.csv", newline="") as file:
        table = list(csv.DictReader(file))
    scans = ["phantom100", "heart100", "scene1000000"]
    assert [(row["scan"], row["priors"]) for row in table] == [(s, p) for s in scans for p in train_shipped.PAIRS]
    assert "9 rows: replaced" in capsys.readouterr().out
    for name in MODELS:
        metadata = load_model(folder / f"{name}.safetensors")[1]
        settings = metadata["training_config"]["training"]
        assert metadata["step"] == settings["n_iters"] >= 1 and settings["init"].endswith(f"{name}.safetensors")
        assert settings["objective"] == "cascade"
        old = folder / f"{name}.previous.safetensors"
        assert old.read_bytes() == (SHIPPED / f"{name}.safetensors").read_bytes()


def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    for flags, words in (
        (("--minutes", 0), "above 0"),
        (("--checkpoints", tmp_path), "global.safetensors"),
        (("--precision", "fp8"), "fp8"),
        (("--data", tmp_path / "none.mat"), "none.mat"),
    ):
        with pytest.raises(SystemExit) as left:
            run_here(monkeypatch, train_shipped, *flags, "--size", 64, "--frames", 5, "--scenes", 0, "--out", out)
        told = capsys.readouterr().err
        assert left.value.code == 2 and words in told and "Traceback" not in told
    refuse_existing(out, False)  # nothing half-written
