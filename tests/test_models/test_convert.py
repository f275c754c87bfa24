"""Published weights to ours and back, our own files, and bad files answered in one sentence."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.checkpoint import load_model, save_model
from models.convert import (
    fixture_error,
    infer_config,
    load_fixture,
    load_published,
    main,
    named_to_upstream,
    upstream_keys,
    upstream_to_named,
)
from models.ncsnpp import NCSNpp
from tests.commands import ROOT, command
from utils.errors import InputError

SHARED = Path(os.environ.get("GLDM_SHARED", ROOT.parent / "shared"))
FIXTURES = ["ncsnpp_small.npz", "ncsnpp_tiny_centered.npz"]

# With the published values of what weights do not show, so that it can be inferred from them.
PUBLISHED = {"image_size": 192, "nf": 8, "ch_mult": [1, 2, 1], "num_res_blocks": 1, "attn_resolutions": [96]}
VARIANTS = {
    "published": PUBLISHED,
    "last level attends": {**PUBLISHED, "attn_resolutions": [192, 48], "num_res_blocks": 2},
    "without pyramids": {**PUBLISHED, "progressive": "none", "progressive_input": "none", "num_channels": 3},
    "concatenated": {**PUBLISHED, "progressive_combine": "cat"},
    "positional": {**PUBLISHED, "embedding_type": "positional"},
    "not conditional": {**PUBLISHED, "conditional": False},
    "one level": {**PUBLISHED, "ch_mult": [2], "attn_resolutions": []},
}


def fixture_path(name):
    path = SHARED / "parity" / name
    if not path.exists():
        pytest.skip(f"the published numbers are not there: {path}")
    return path


def random_network(config, seed):
    torch.manual_seed(seed)
    model = NCSNpp(**config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def write_published(path, model, averaged):
    """A file as published training writes it: DataParallel keys, a ladder buffer, an optimizer, an EMA."""
    state = {f"module.{k}": v for k, v in named_to_upstream(model.state_dict(), model.architecture).items()}
    ema_state = named_to_upstream(averaged.state_dict(), averaged.architecture)
    ema = {
        "decay": 0.999,
        "num_updates": 7,
        "shadow_params": [value for key, value in ema_state.items() if key != "all_modules.0.W"],
    }
    state = {"module.sigmas": torch.linspace(4, 0.01, 1000), **state}
    optimizer = {"state": {}, "param_groups": []}
    torch.save({"optimizer": optimizer, "model": state, "ema": ema, "step": 1234}, path)


@pytest.fixture
def published(tmp_path):
    """Path, trained network and averaged network; they share the Fourier frequencies, as in training."""
    model, averaged = random_network(PUBLISHED, 1), random_network(PUBLISHED, 2)
    averaged.features.frequencies.copy_(model.features.frequencies)
    write_published(tmp_path / "checkpoint_5.pth", model, averaged)
    return tmp_path / "checkpoint_5.pth", model, averaged


@pytest.mark.parametrize("name", FIXTURES)
def test_published_keys_round_trip(name):
    with np.load(fixture_path(name)) as file:
        config = json.loads(file["config"].tobytes())
        state = {k.removeprefix("weights/"): torch.from_numpy(file[k]) for k in file.files if "all_modules" in k}
    named = upstream_to_named({f"module.{k}": v for k, v in state.items()}, config)
    back = named_to_upstream(named, config)
    assert list(back) == list(state)
    for key, value in state.items():
        torch.testing.assert_close(back[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_our_keys_round_trip(name):
    model = random_network(VARIANTS[name], 0)
    state = model.state_dict()
    assert sorted(ours for _, ours in upstream_keys(model)) == sorted(state)
    back = upstream_to_named(named_to_upstream(state, model.architecture), model.architecture)
    for key, value in state.items():
        torch.testing.assert_close(back[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_configuration_from_weights(name):
    model = random_network(VARIANTS[name], 0)
    inferred = NCSNpp(**infer_config(named_to_upstream(model.state_dict(), model.architecture))).architecture
    # With one level, an output pyramid changes nothing.
    if len(inferred["ch_mult"]) == 1:
        inferred |= {"progressive": model.architecture["progressive"]}
    assert inferred == model.architecture


def test_published_file_gives_the_averaged_network(published):
    path, model, averaged = published
    x, sigma = torch.rand(2, 2, 16, 16), torch.tensor([0.1, 2.0])
    loaded = load_published(path)
    assert not loaded.training
    for network in (loaded, load_published(path, PUBLISHED)):
        for name, value in averaged.state_dict().items():
            torch.testing.assert_close(network.state_dict()[name], value, rtol=0, atol=0)
    with torch.inference_mode():
        scale = float(averaged(x, sigma).abs().max())
        torch.testing.assert_close(loaded(x, sigma), averaged(x, sigma), rtol=0, atol=1e-5 * scale)
        assert (loaded(x, sigma) - model(x, sigma)).abs().max() > 0.01 * scale


def test_published_file_of_another_configuration(published):
    for change, sentence in [
        ({"nf": 16}, "which does not fit the configuration"),
        ({"num_res_blocks": 2}, "another configuration made them"),
        ({"attn_resolutions": []}, "another configuration made them"),
        ({"progressive": "residual"}, "progressive must be"),
        ({"layers": 3}, "configuration of another network"),
    ]:
        with pytest.raises(InputError, match=sentence) as caught:
            load_published(published[0], {**PUBLISHED, **change})
        assert str(published[0]) in str(caught.value)


def test_averages_of_another_network(published):
    path = published[0]
    checkpoint = torch.load(path, weights_only=True)
    shadow = checkpoint["ema"]["shadow_params"]
    for damaged, sentence in [(shadow[:-1], "averages"), ([torch.zeros(3)] * len(shadow), "averaged embedding")]:
        torch.save({**checkpoint, "ema": {"shadow_params": damaged}}, path)
        with pytest.raises(InputError, match=sentence):
            load_published(path)


def test_positional_fixture_stores_places_on_the_ladder(tmp_path):
    model = random_network(VARIANTS["positional"], 0)
    place = torch.tensor([0.0, 500.0])
    sigma = 4.0 * (0.01 / 4.0) ** (place / 999)
    x = torch.rand(2, 2, 8, 8)
    with torch.inference_mode():
        score = model(x, sigma)
    assert fixture_error(model, {"input": x, "sigma": place, "score": score}) < 1e-4
    with pytest.raises(InputError, match="outside"):
        fixture_error(model, {"input": x, "sigma": place * 2, "score": score})


def test_our_file_round_trip(tmp_path):
    model = random_network(PUBLISHED, 0).to(memory_format=torch.channels_last)
    path = tmp_path / "new" / "model.safetensors"
    save_model(model, path, step=5, data_std=0.25, note="é")
    loaded, metadata = load_model(path)
    assert metadata == {"step": 5, "data_std": 0.25, "note": "é", "config": model.architecture}
    assert not loaded.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value.contiguous(), rtol=0, atol=0)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def our_file(path, spoiled=False, **changes):
    model = NCSNpp(**PUBLISHED)
    if spoiled:
        model.conv_in.weight.data[0, 0, 0, 0] = torch.nan
    metadata = {"config": json.dumps({**model.architecture, **changes})}
    save_file(dict(model.state_dict()), path, metadata=metadata)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: None, "is not there"),
        (lambda path: path.mkdir(), "is not there"),
        (lambda path: path.write_bytes(b""), "truncated or not one of our models"),
        (lambda path: path.write_bytes(b"text" * 100), "truncated or not one of our models"),
        (lambda path: (our_file(path), path.write_bytes(path.read_bytes()[:-9])), "truncated or not one"),
        (lambda path: save_file({"a": torch.zeros(1)}, path), "records no configuration"),
        (lambda path: save_file({"a": torch.zeros(1)}, path, metadata={"config": "{"}), "not one of our models"),
        (lambda path: our_file(path, nf=16), "do not fit its configuration"),
        (lambda path: our_file(path, spoiled=True), "'conv_in.weight' holds NaN"),
        (lambda path: our_file(path, num_res_blocks=2), "do not fit its configuration"),
        (lambda path: our_file(path, resblock_type="ddpm"), "configuration of another network"),
        (lambda path: our_file(path, unknown=1), "configuration of another network"),
    ],
)
def test_bad_files_of_ours(tmp_path, damage, sentence):
    path = tmp_path / "model.safetensors"
    damage(path)
    with pytest.raises(InputError, match=sentence) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def small_fixture(path, **changes):
    """A fixture of one small network; `changes` replace arrays, None removes them."""
    model = random_network(PUBLISHED, 0)
    x, sigma = torch.rand(1, 2, 8, 8), torch.ones(1)
    arrays = {f"weights/{k}": v.numpy() for k, v in named_to_upstream(model.state_dict(), PUBLISHED).items()}
    arrays |= {"input": x.numpy(), "sigma": sigma.numpy(), "config": json_bytes(model.architecture)}
    arrays["score"] = model(x, sigma).detach().numpy()
    np.savez(path, **{k: v for k, v in {**arrays, **changes}.items() if v is not None})


def json_bytes(value):
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: None, "is not there"),
        (lambda path: path.write_bytes(b""), "truncated or not a parity fixture"),
        (lambda path: path.write_text("text"), "truncated or not a parity fixture"),
        (lambda path: (small_fixture(path), path.write_bytes(path.read_bytes()[:5000])), "truncated"),
        (lambda path: np.savez(path, score=np.zeros(2)), "it lacks 'config'"),
        (lambda path: small_fixture(path, input=None), "it lacks 'input'"),
        (lambda path: small_fixture(path, config=np.zeros(3, np.uint8)), "not a parity fixture"),
        (lambda path: small_fixture(path, config=json_bytes([1])), "configuration of another network"),
        (lambda path: small_fixture(path, config=json_bytes({**PUBLISHED, "nf": "8"})), "of another network"),
        (lambda path: small_fixture(path, config=json_bytes({**PUBLISHED, "nf": 16})), "does not fit"),
        (lambda path: small_fixture(path, **{"weights/all_modules.0.W": None}), "lack all_modules.0.W"),
    ],
)
def test_bad_fixtures(tmp_path, damage, sentence):
    path = tmp_path / "fixture.npz"
    damage(path)
    with pytest.raises(InputError, match=sentence) as caught:
        load_fixture(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.write_bytes(b""), "truncated or not a PyTorch file"),
        (lambda path: path.write_text("text"), "truncated or not a PyTorch file"),
        (lambda path: path.write_bytes(path.read_bytes()[:20000]), "truncated or not a PyTorch file"),
        (lambda path: torch.save({"model": {}}, path), "not a published checkpoint"),
        (lambda path: torch.save([1, 2], path), "not a published checkpoint"),
        (lambda path: torch.save({"model": {"a": 1}, "ema": {"shadow_params": []}}, path), "not a published"),
        (lambda path: torch.save({"model": {}, "ema": {"shadow_params": []}}, path), "not those of an NCSN"),
        (
            lambda path: torch.save({"model": {"conv.weight": torch.zeros(2, 2, 3, 3)},
                                     "ema": {"shadow_params": []}}, path),
            "not those of an NCSN",
        ),
    ],
)
def test_bad_published_files(published, damage, sentence):
    damage(published[0])
    with pytest.raises(InputError, match=sentence) as caught:
        load_published(published[0])
    assert str(published[0]) in str(caught.value)


def convert(*arguments):
    return command("-m", "models.convert", *arguments, cwd=ROOT, succeeds=False)


@pytest.mark.parametrize("name", FIXTURES)
def test_command_checks_a_fixture(name):
    done = convert(fixture_path(name), "--check")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("max relative error ")
    assert float(done.stdout.split()[-1]) < 1e-5


def test_command_refuses_another_score(tmp_path):
    small_fixture(tmp_path / "f.npz", score=np.ones((1, 2, 8, 8), np.float32))
    done = convert(tmp_path / "f.npz", "--check")
    assert done.returncode == 1
    assert done.stdout.startswith("max relative error ")


def test_command_converts_a_published_file(published, tmp_path):
    path, _, averaged = published
    config = tmp_path / "config.json"
    config.write_text(json.dumps(PUBLISHED))
    out = tmp_path / "out.safetensors"
    done = convert(path, "--check", "--config", config, "--out", out)
    assert done.returncode == 0, done.stderr
    assert f"{sum(p.numel() for p in averaged.parameters())} parameters, step 1234" in done.stdout
    model, metadata = load_model(out)
    assert metadata["step"] == 1234
    for name, value in averaged.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)


def test_command_answers_bad_input_in_one_sentence(published, tmp_path, monkeypatch, capsys):
    path = published[0]
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "text.npz").write_text("text")
    small_fixture(tmp_path / "shape.npz", score=np.ones((1, 2, 4, 4), np.float32))
    for arguments, named in [
        ((tmp_path / "text.npz", "--check"), "text.npz"),
        ((tmp_path / "shape.npz", "--check"), "shape.npz"),
        ((path, "--check", "--config", tmp_path / "bad.json"), "bad.json"),
        ((path, "--out", path / "out.safetensors"), "out.safetensors"),
        ((path,), "--check"),
    ]:
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2
        answer = capsys.readouterr().err
        assert answer.startswith("error: ")
        assert answer.count("\n") == 1
        assert named in answer


def test_command_has_no_traceback(tmp_path):
    done = convert(tmp_path / "missing.pth", "--check")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "missing.pth" in done.stderr
