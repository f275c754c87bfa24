"""The training command: trains, resumes, is stopped; what it refuses."""

import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from models.checkpoint import load_model
from models.prior import load_prior
from mri.fourier import fft2c
from mri.masks import make_mask
from mri.phantom import make_phantom
from tests.commands import ROOT, TINY, array, assert_one_sentence, begun, command, names


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
    assert_one_sentence(done, "other settings: model (nf)")

    (tmp_path / "scans").mkdir()
    magnitude.rename(tmp_path / "scans" / "heart.mat")
    evaluation = [*seed, "--mode=eval", "--config.eval.path=scans"]
    command("main.py", *evaluation, cwd=tmp_path)
    out = tmp_path / "exp" / "result"
    assert names(out) == {"heart", "index.html", "metrics.csv", "metrics.md"}
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    assert {row["scan"] for row in rows} == {"heart"} and rows[-1]["method"] == "gldm"
    assert_one_sentence(command("main.py", *evaluation, cwd=tmp_path, succeeds=False), "--overwrite")


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
        ("scan.mat", "unexpected argument scan.mat"),
    ],
)
def test_configurations_that_cannot_be_used(flag, words, tmp_path):
    flags = [flag] if flag.startswith("--config=") else [*TINY, flag]
    done = command("main.py", *flags, cwd=tmp_path, succeeds=False)
    assert_one_sentence(done, words)
    assert not list(tmp_path.glob("exp/*/*.safetensors"))


def test_training_on_scenes_resumes_prunes_and_starts_from_a_model(tmp_path):
    flags = [flag for flag in TINY if "n_iters" not in flag and "snapshot_freq=" not in flag]
    flags += ["--config.training.objective=scenes", "--config.optim.schedule=cosine"]
    flags += ["--config.training.snapshot_freq=1"]
    first = command("main.py", *flags, "--config.training.n_iters=3", cwd=tmp_path)
    assert "exp/global/model.safetensors" in first.stdout and "exp/local/model.safetensors" in first.stdout
    kept = sorted(path.name for path in (tmp_path / "exp" / "global" / "checkpoints").iterdir())
    assert kept == ["checkpoint_1.pth", "checkpoint_2.pth", "checkpoint_3.pth"]
    again = command("main.py", *flags, "--config.training.n_iters=3", cwd=tmp_path)
    assert "has already reached training.n_iters (step 3)" in again.stdout
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
    back = ["--config.training.init=other/local/model.safetensors", "--workdir=back", "--config.optim.lr=0.0"]
    command("main.py", *other, *back, "--model=global", cwd=tmp_path)
    again = load_model(tmp_path / "back" / "global" / "model.safetensors")[0].state_dict()["conv_in.weight"]
    assert torch.equal(again[:, columns], lm["conv_in.weight"])
    assert again.abs().sum() == pytest.approx(lm["conv_in.weight"].abs().sum())  # others are 0
    done = command("main.py", *other, init, "--config.model.nf=16", "--workdir=third", cwd=tmp_path, succeeds=False)
    assert_one_sentence(done, "another architecture")


def test_ctrl_c_in_a_terminal_with_loader_workers(tmp_path):
    """It reaches the whole process group; the workers go on until the step is done."""
    flags = [*(flag for flag in TINY if "n_iters" not in flag), "--mode=train", "--model=global"]
    endless = [*flags, "--config.training.n_iters=100000", "--config.training.workers=1"]
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(
            [sys.executable, ROOT / "main.py", *endless], cwd=tmp_path, stdout=said, stderr=said, start_new_session=True
        )
    kept = tmp_path / "exp" / "global" / "checkpoints"
    while not (kept.is_dir() and list(kept.iterdir())):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130 and "the same command resumes" in (tmp_path / "said").read_text()


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_end_writes_a_checkpoint_to_resume_from(tmp_path, asked):
    flags = [flag for flag in TINY if "n_iters" not in flag and "preemption" not in flag]
    endless = [*flags, "--model=global", "--config.training.n_iters=100000"]
    process = begun("main.py", *endless, cwd=tmp_path, told=tmp_path)
    kept = tmp_path / "exp" / "global" / "checkpoints"
    while not (kept.is_dir() and list(kept.iterdir())):  # it trains
        assert process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, asked)
    process.join()
    assert process.exitcode == 128 + asked and "the same command resumes" in (tmp_path / "stdout").read_text()
    state = torch.load(tmp_path / "exp" / "global" / "checkpoints-meta" / "checkpoint.pth", weights_only=True)
    more = [*flags, "--model=global", f"--config.training.n_iters={state['step'] + 2}"]
    done = command("main.py", *more, cwd=tmp_path)
    assert f"at step {state['step']}" in done.stdout
    assert not list(tmp_path.rglob(".checkpoint*"))  # no temporary file stays
    other = [*more, "--config.training.batch_size=4"]
    refused = command("main.py", *other, cwd=tmp_path, succeeds=False)
    assert_one_sentence(refused, "other settings: training (batch_size)")
    cosine = command("main.py", *more, "--config.optim.schedule=cosine", cwd=tmp_path, succeeds=False)
    assert_one_sentence(cosine, "other settings")


def test_a_cosine_schedule_is_not_prolonged(tmp_path):
    flags = [flag for flag in TINY if "n_iters" not in flag]
    flags += ["--model=global", "--config.optim.schedule=cosine"]
    command("main.py", *flags, "--config.training.n_iters=2", cwd=tmp_path)
    longer = command("main.py", *flags, "--config.training.n_iters=4", cwd=tmp_path, succeeds=False)
    assert_one_sentence(longer, "other settings: training (n_iters under optim.schedule=cosine)")


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


def test_a_partner_is_for_the_training_of_one_prior(tmp_path):
    flags = [*TINY, "--config.training.objective=cascade", "--config.model.temporal", "--config.training.batch_size=16",
             f"--config.training.partner={ROOT / 'checkpoints' / 'local.safetensors'}"]  # fmt: skip
    assert_one_sentence(command("main.py", *flags, cwd=tmp_path, succeeds=False), "--model=global or --model=local")
    assert not (tmp_path / "exp").exists()
