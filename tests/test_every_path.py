"""Every path with one coil and with four: sampler × optimization unit × reconstruct, evaluate, train; peers; error map.

`WITHOUT_COILS` lists what does not take coils: it is empty.
"""

import csv
import json

import numpy as np
import pytest
import torch

import run_lib
from benchmarks.baselines import bart, fillings, l_plus_s, llr, temporal_tv
from models.checkpoint import load_model
from models.prior import load_prior
from mri.masks import make_mask
from mri.metrics import evaluate
from mri.phantom import simulate_scan
from mri.scan import Scan
from reconstruction.prepare import prepare
from reconstruction.settings import OUSettings, SamplingSettings
from sampling import reconstruct_problem
from tests.conftest import tiny_config
from training.settings import OBJECTIVES

WITHOUT_COILS: set[str] = set()
FRAMES, SIZE = 5, 64
SAMPLERS = {"published": "priors", "cascade": "context_priors"}  # and the fixture with priors of its kind
OPERATORS = ("hankel", "llr", "motion")
PEERS = {
    "zero_filled": fillings.zero_filled,
    "nearest_merge": fillings.nearest_merge,
    "l_plus_s": lambda problem: l_plus_s.l_plus_s(problem, 0.001, iterations=20),
    "llr": lambda problem: llr.llr(problem, 0.005, iterations=20),
    "temporal_tv": lambda problem: temporal_tv.temporal_tv(problem, 0.01, iterations=40),
    "bart_llr": lambda problem: bart.bart_llr(problem, 0.0005, iterations=20),
    "bart_tv": lambda problem: bart.bart_tv(problem, 0.01, iterations=20),
}


def simulated(coils):
    return simulate_scan("simple", FRAMES, SIZE, 0, coils, 0.005 if coils > 1 else 0.0)


def scan_of(coils):
    found = simulated(coils)
    mask = make_mask("uniform", (FRAMES, SIZE, SIZE), 3, 8)
    noise = found.noise if coils > 1 else None
    return Scan.from_arrays(found.kspace, mask, noise_samples=noise), found.image


@pytest.fixture
def scans(tmp_path):
    """A folder of scans, under-sampled as measured, one coil or four."""

    def make(coils, count=2):
        folder = tmp_path / "scans"
        folder.mkdir()
        for seed in range(count):
            found = simulate_scan("simple", FRAMES, SIZE, seed, coils, 0.005 if coils > 1 else 0.0)
            mask = make_mask("uniform", (FRAMES, SIZE, SIZE), 3, 8)
            kspace = torch.where(mask[:, None], found.kspace, 0)
            np.savez(folder / f"{seed}.npz", kspace=(kspace if coils > 1 else kspace[:, 0]).numpy(),
                     noise=found.noise.numpy(), image=found.image.numpy())  # fmt: skip
        return folder

    return make


def config_for(sampler="cascade", operator="llr"):
    config = tiny_config()
    config.data.frames = 0
    config.sampling.sampler, config.ou.operator, config.ou.llr_iterations = sampler, operator, 15
    return config


@pytest.mark.parametrize("coils", [1, 4])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_reconstruct(sampler, operator, coils, request):
    models = tuple(load_prior(path) for path in request.getfixturevalue(SAMPLERS[sampler]))
    scan, image = scan_of(coils)
    ou = OUSettings(operator=operator, window=4, llr_iterations=15, motion_patches=(4,), motion_steps=5)
    sampling = SamplingSettings(sampler=sampler, num_scales=8, iterations=2)
    problem = prepare(scan)
    assert (problem.model.coils > 1) == (coils > 1)
    result = reconstruct_problem(problem, models, ou, sampling)
    assert result.image.shape == (FRAMES, SIZE, SIZE) and torch.isfinite(result.image.abs()).all()
    assert len(result.maps) == problem.model.coils
    assert problem.model.residual(result.image / problem.scale, problem.measured) < 0.1
    if sampler == "cascade":
        assert evaluate(result.start, image)["psnr"] > 20
        if operator == "hankel":  # it holds nothing out
            assert result.error_std is None
        else:
            assert result.error_std.shape == result.image.shape and (result.error_std > 0).all()


@pytest.mark.parametrize("coils", [1, 4])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_evaluate_a_folder(sampler, operator, coils, scans, tmp_path, request, capsys):
    config = config_for(sampler, operator)
    names = [str(seed) for seed in range(2 if operator == "motion" else 1)]
    config.eval.path = str(scans(coils, len(names)))
    paths = request.getfixturevalue(SAMPLERS[sampler])
    config.eval.checkpoint_global, config.eval.checkpoint_local = map(str, paths)
    run_lib.evaluate_folder(config, tmp_path, "result", False)
    rows = list(csv.DictReader((tmp_path / "result" / "metrics.csv").read_text().splitlines()))
    assert [row["scan"] for row in rows] == [name for name in names for _ in range(5)]
    assert (tmp_path / "result" / "0" / "coil_maps.npy").exists() == (coils > 1)
    record = json.loads((tmp_path / "result" / names[-1] / "config.json").read_text())
    assert record["noise_std"] == pytest.approx(0.005, rel=0.1) if coils > 1 else record["noise_std"] >= 0
    assert ("virtual coils" in capsys.readouterr().out) == (coils > 1)


@pytest.mark.parametrize("coils", [1, 4])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_train(objective, coils, scans, tmp_path):
    config = config_for()
    config.data.path = str(scans(coils))
    config.data.virtual_coils = 0 if coils == 1 else 3
    config.training.update({"objective": objective, "n_iters": 2, "scene_frames": 5, "batch_size": 5})
    run_lib.train(config, tmp_path / "exp", ("global", "local"))
    for name in ("global", "local"):
        _, metadata = load_model(tmp_path / "exp" / name / "model.safetensors")
        assert metadata["step"] == 2 and np.isfinite(metadata["loss"]).all()
        load_prior(tmp_path / "exp" / name / "model.safetensors")


@pytest.mark.parametrize("coils", [1, 4])
@pytest.mark.parametrize("peer", PEERS)
def test_peers(peer, coils):
    if peer.startswith("bart") and (reason := bart.why_not()):
        pytest.skip(reason)
    scan, image = scan_of(coils)
    problem = prepare(scan)
    found = PEERS[peer](problem)
    scores = evaluate(problem.finished(found), image)
    assert scores["psnr"] > (10 if peer == "zero_filled" else 20)
    assert problem.model.residual(found, problem.measured) < (1 if peer == "zero_filled" else 0.1)


def test_nothing_lacks_coils():
    assert not WITHOUT_COILS
