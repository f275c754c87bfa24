"""Benchmarks of the network: all forms compute the same, counts and ratios are correct, the GPU script runs."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu, network
from benchmarks.network import Case, build, flops, measure
from benchmarks.network_reference import plain_resampling, plain_upfirdn2d
from op.upfirdn2d import upfirdn2d
from reconstruction.settings import SAMPLERS, SamplingSettings
from sampling import check_priors
from tests.conftest import tiny_config
from tests.test_benchmarks.commands import ROOT, run_here, table
from utils.errors import InputError

CPU = torch.device("cpu")


@pytest.mark.parametrize("pad", [(0, 0), (2, 1), (0, 3)])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_the_plain_form_resamples_alike(up, down, pad):
    x, kernel = torch.randn(2, 3, 7, 9, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    expected = upfirdn2d(x, kernel, up, down, pad)
    torch.testing.assert_close(plain_upfirdn2d(x, kernel, up, down, pad), expected)


def test_a_network_of_the_plain_form_gives_the_same_score_and_is_ours_again_afterwards():
    score, x, sigma = build("small", 32), torch.randn(2, 2, 32, 32), torch.tensor([0.3, 1.0])
    ours = score(x, sigma)
    seen = []
    with plain_resampling(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.nn.functional.conv_transpose2d", lambda *_, **__: seen.append(1))
        torch.testing.assert_close(score(x, sigma), ours, rtol=1e-4, atol=1e-4 * ours.abs().max().item())
    assert not seen and torch.equal(score(x, sigma), ours)


def test_random_priors_are_of_the_kind_that_the_sampler_needs():
    config = tiny_config()
    for sampler in SAMPLERS:
        config.sampling.sampler = sampler
        priors = gpu.random_priors(config)
        assert [prior.role for prior in priors] == ["global", "local"]
        check_priors(SamplingSettings(sampler=sampler), list(priors))
        for prior in priors:
            assert (prior.context is not None) == prior.network.architecture["temporal"] == (sampler == "cascade")
            assert prior.network.architecture["init_scale"] == 1


def test_networks_that_do_not_fit_the_memory_are_reported(monkeypatch):
    def full(*_):
        raise InputError("16 frames in one network pass do not fit into the memory.")

    config = tiny_config()
    monkeypatch.setattr(gpu, "reconstruct_problem", full)
    (row,) = gpu.timed({"what": "a test"}, config, (None, None), "phantom0")
    assert row == {"what": "a test", "size": 64, "frames": 4, "coils": 1,
                   "note": "16 frames in one network pass do not fit into the memory."}  # fmt: skip


def test_operations_are_counted():
    convolution = 2 * 2 * 16 * 9 * 32 * 32  # the first layer: 2 to 16 channels, 3×3, 32×32 pixels
    one = flops(Case("small", 32, 1, "forward"))
    assert one > 10 * convolution
    assert flops(Case("small", 32, 3, "forward")) == 3 * one
    assert flops(Case("published", 192, 1, "forward")) == pytest.approx(300e9, rel=0.01)  # as published
    assert 2.8 < flops(Case("small", 32, 1, "training")) / one < 3.2


def test_rows_of_a_case():
    forms = [("plain", "fp32"), ("native", "fp32"), ("native", "bf16")]
    rates = {"fp32": 1e11, "bf16": 2e11}
    rows = list(measure(Case("small", 32, 2, "training"), forms, CPU, 2, rates))
    assert [(row["form"], row["precision"]) for row in rows] == forms
    assert rows[0]["ratio_to_plain"] == 1 and rows[1]["ratio"] == 1
    operations = flops(Case("small", 32, 2, "training"))
    for row in rows:
        assert row["frames_per_s"] == 2 / row["seconds"]
        assert row["share"] == pytest.approx(operations / row["seconds"] / rates[row["precision"]])


def test_without_memory_a_row_says_so(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(network, "run_pass", lambda *inputs: None if inputs[1].device.type != "cpu" else full())
    monkeypatch.setattr(network, "flops", lambda case: 1.0)
    (row,) = measure(Case("small", 32, 2, "forward"), [("native", "fp32")], CPU, 2, {})
    assert row["note"] == "out of memory" and "seconds" not in row


def test_command(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    run_here(monkeypatch, network, "--device", "cpu", "--networks", "scenes", "--size", 32, "--batch", "1,2",
             "--forms", "plain,native,triton", "--precision", "fp32", "--rounds", 1, "--out", out)  # fmt: skip
    told = capsys.readouterr().out
    assert "triton left out" in told and "times plain" in told and "TFLOP/s" in told
    assert {path.name for path in out.iterdir()} == {"network.csv", "network.md", "network.json"}
    columns, rows = table(out / "network.csv")
    assert tuple(columns) == network.COLUMNS
    assert [(row["batch"], row["form"]) for row in rows] == [(b, f) for b in "12" for f in ("plain", "native")]


def test_no_case_begins_when_the_time_is_over(monkeypatch, capsys):
    run_here(monkeypatch, network, "--networks", "small", "--size", 32, "--batch", "1,2", "--forms", "native",
             "--rounds", 1, "--minutes", 1e-9)  # fmt: skip
    assert "left out after" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--networks huge", "huge is unknown"),
        ("--mode backwards", "backwards is unknown"),
        ("--forms fast", "fast is unknown"),
        ("--precision fp8", "fp8 is unknown"),
        ("--networks published --size 100", "multiple of 64"),
        ("--batch 0", "at least one frame"),
        ("--device cuda", "finds no GPU"),
        ("--device cpu --forms triton", "no form is left"),
    ],
)
def test_bad_input_is_one_sentence(flags, words, monkeypatch, capsys):
    if flags == "--device cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as left:
        run_here(monkeypatch, network, *flags.split())
    told = capsys.readouterr().err
    assert left.value.code == 2 and words in told and "Traceback" not in told


def test_parity_on_this_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("GLDM_SHARED", raising=False)
    rows = list(gpu.parity(small=True))
    exact = [row["max_relative_error"] for row in rows if row.get("precision") == "fp32" and not row["tf32"]]
    assert exact and max(exact) < gpu.LARGEST_ERROR
    assert 0 < max(row.get("max_relative_error", 0) for row in rows if row.get("precision") == "bf16") < 0.1
    assert "left out, GLDM_SHARED" in rows[-1]["what"]


def test_parity_that_is_wrong_is_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(gpu.PARTS, "parity", lambda small: iter([{"precision": "fp32", "max_relative_error": 0.1}]))
    with pytest.raises(SystemExit):
        run_here(monkeypatch, gpu, "parity", tmp_path)
    assert "wrong by more than" in capsys.readouterr().err and (tmp_path / "parity.json").is_file()


def gpu_script(*arguments, **environment):
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    script = str(ROOT / "benchmarks" / "gpu.sh")
    return subprocess.run(["bash", script, *map(str, arguments)], env=environment, capture_output=True, text=True)


def test_the_gpu_script_at_small_size(tmp_path):
    """With a step that fails, which the others survive: the folder of the published scores is not there."""
    out = tmp_path / "out"
    done = gpu_script(out, SMALL="1", GLDM_SHARED=str(tmp_path / "nowhere"))
    assert done.returncode == 1 and {path.name for path in out.iterdir()} == {"gpu.json", "gpu.md"}, done.stderr
    record = json.loads((out / "gpu.json").read_text())
    exits = {step["step"]: step["exit"] for step in record["steps"]}
    assert exits == {"parity": "2", "tests": "0", "network": "0", "reconstruction": "0", "training": "0", "scenes": "0"}
    text = (out / "gpu.md").read_text()
    assert "nowhere" in text and "End of the log of parity" in text
    assert record["machine"]["date"] and all(record[part] for part in ("network", *gpu.PARTS))
    passes = {row["what"]: row["passes_per_frame"] for row in record["reconstruction"]}
    assert passes["cascade, published network at random"] >= 2  # each was tested on the held-out samples
    assert {row["coils"] for row in record["reconstruction"]} == {1, 8}
    assert all(row["images_per_s"] > 0 for row in record["training"])
    assert str(tmp_path) not in json.dumps([step["command"] for step in record["steps"]])
    again = gpu_script(out, SMALL="1")
    assert again.returncode == 2 and "is there already" in again.stderr


def test_the_gpu_script_wants_a_folder_and_a_gpu(tmp_path):
    done = gpu_script()
    assert done.returncode == 2 and done.stderr.startswith("usage")
    if not torch.cuda.is_available():
        done = gpu_script(tmp_path / "out")
        assert done.returncode == 2 and "finds no GPU" in done.stderr


def test_collected_rows_may_differ_in_columns():
    text = gpu.table([{"a": 1, "b": 0.123456}, {"a": 2, "c": "x"}])
    assert [cell.strip() for cell in text.splitlines()[0].split("|")[1:-1]] == ["a", "b", "c"]
    assert len(list(csv.reader(text.splitlines()))) == 4 and "0.1235" in text
