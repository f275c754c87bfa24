"""NCSN++: against published numbers, against an independent forward pass, and its own promises."""

import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.context import neighbours
from models.convert import fixture_error, load_fixture, named_to_upstream
from models.layers import AttentionBlock, conv3x3
from models.ncsnpp import NCSNpp
from utils.errors import InputError

SHARED = Path(os.environ.get("GLDM_SHARED", Path(__file__).resolve().parents[3] / "shared"))
FIXTURES = ["ncsnpp_small.npz", "ncsnpp_tiny_centered.npz"]

SMALL = {"image_size": 16, "nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8]}
CONFIGS = {
    "small": SMALL,
    "every level attends, three blocks": {
        **SMALL, "num_res_blocks": 3, "attn_resolutions": [16, 8], "centered": True, "fir_kernel": [1, 2, 1],
    },
    "no attention, odd sizes below": {
        **SMALL, "image_size": 20, "nf": 12, "ch_mult": [1, 1, 2], "attn_resolutions": [], "nonlinearity": "elu",
        "fir_kernel": [1, 1],
    },
    "no pyramids, no scaling": {
        **SMALL, "progressive": "none", "progressive_input": "none", "skip_rescale": False,
        "scale_by_sigma": False, "nonlinearity": "relu", "num_channels": 3,
    },
    "pyramid concatenated": {
        **SMALL, "image_size": 24, "ch_mult": [1, 2, 1], "attn_resolutions": [6, 24], "nonlinearity": "lrelu",
        "progressive_combine": "cat", "num_res_blocks": 2, "fir_kernel": [1, 4, 6, 4, 1],
    },
    "positional": {**SMALL, "embedding_type": "positional", "nf": 12, "num_scales": 50, "dropout": 0.3},
    "not conditional": {**SMALL, "conditional": False, "progressive": "none", "ch_mult": [2, 1, 3]},
    "one level": {**SMALL, "ch_mult": [1], "attn_resolutions": [16]},
    "more than 32 groups of features": {**SMALL, "nf": 160, "ch_mult": [1], "attn_resolutions": []},
}


def fixture_path(name):
    path = SHARED / "parity" / name
    if not path.exists():
        pytest.skip(f"the published numbers are not there: {path}")
    return path


def random_network(config, seed=0):
    """In double precision, with no weight left at the tiny value a block starts from."""
    torch.manual_seed(seed)
    model = NCSNpp(**config).double().eval()
    for parameter in model.parameters():
        spread = 0.5 / math.sqrt(max(1, parameter[0].numel()))
        parameter.data += spread * torch.randn_like(parameter)
    return model


def random_input(config, batch=2):
    size = config["image_size"]
    x = torch.randn(batch, config.get("num_channels", 2), size, size, dtype=torch.float64)
    return x, torch.linspace(0.02, 3, batch, dtype=torch.float64)


# The published forward pass, functional, from a flat dictionary of published keys. It shares no code with
# the package: an index walks `all_modules`, and attention is decided by the size an image has on the way.


def reference_score(weights, config, x, time):
    """Published NCSN++: `time` is σ for Fourier embeddings, the place on the ladder for positional ones."""
    index = itertools.count()
    act = {"swish": F.silu, "elu": F.elu, "relu": F.relu, "lrelu": lambda h: F.leaky_relu(h, 0.2)}
    act = act[config["nonlinearity"]]
    halve = math.sqrt(2) if config["skip_rescale"] else 1

    def take():
        prefix = f"all_modules.{next(index)}."
        return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}

    def norm(h, w, name):
        return F.group_norm(h, min(h.shape[1] // 4, 32), w[f"{name}weight"], w[f"{name}bias"], eps=1e-6)

    def conv(h, w, name):
        kernel = w[f"{name}weight"]
        return F.conv2d(h, kernel, w[f"{name}bias"], padding=kernel.shape[-1] // 2)

    def block(h, resize=lambda h: h):
        w, x = take(), resize(h)
        h = conv(resize(act(norm(h, w, "GroupNorm_0."))), w, "Conv_0.")
        if temb is not None:
            h = h + (act(temb) @ w["Dense_0.weight"].T + w["Dense_0.bias"])[..., None, None]
        h = conv(act(norm(h, w, "GroupNorm_1.")), w, "Conv_1.")
        return ((conv(x, w, "Conv_2.") if "Conv_2.weight" in w else x) + h) / halve

    def attend(x):
        w = take()
        h = norm(x, w, "GroupNorm_0.")
        q, k, v = (
            torch.einsum("bchw,cd->bdhw", h, w[f"NIN_{i}.W"]) + w[f"NIN_{i}.b"][:, None, None] for i in range(3)
        )
        weight = torch.einsum("bchw,bcij->bhwij", q, k) / math.sqrt(x.shape[1])
        weight = weight.flatten(3).softmax(-1).reshape(weight.shape)
        h = torch.einsum("bhwij,bcij->bchw", weight, v)
        h = torch.einsum("bchw,cd->bdhw", h, w["NIN_3.W"]) + w["NIN_3.b"][:, None, None]
        return (x + h) / halve

    def head(h):
        h = act(norm(h, take(), ""))
        return conv(h, take(), "")

    used_sigma = time
    if config["embedding_type"] == "fourier":
        angle = time.log()[:, None] * take()["W"] * 2 * math.pi
    else:
        ladder = np.geomspace(config["sigma_max"], config["sigma_min"], config["num_scales"])
        used_sigma = torch.from_numpy(ladder)[time.long()]
        half = config["nf"] // 2
        angle = time[:, None] * torch.from_numpy(1e4 ** (-np.arange(half) / (half - 1)))
    temb = torch.cat([angle.sin(), angle.cos()], 1)
    if config["conditional"]:
        first, second = take(), take()
        temb = act(temb @ first["weight"].T + first["bias"]) @ second["weight"].T + second["bias"]
    else:
        temb = None

    x = x if config["centered"] else 2 * x - 1
    hs, pyramid, levels = [conv(x, take(), "")], x, len(config["ch_mult"])
    for level in range(levels):
        for _ in range(config["num_res_blocks"]):
            h = block(hs[-1])
            hs.append(attend(h) if h.shape[-1] in config["attn_resolutions"] else h)
        if level < levels - 1:
            h = block(hs[-1], lambda h: reference_resize(h, config["fir_kernel"], up=False))
            if config["progressive_input"] == "input_skip":
                pyramid = reference_resize(pyramid, config["fir_kernel"], up=False)
                joined = conv(pyramid, take(), "Conv_0.")
                h = joined + h if config["progressive_combine"] == "sum" else torch.cat([joined, h], 1)
            hs.append(h)
    h = block(attend(block(hs[-1])))

    out = 0
    for level in reversed(range(levels)):
        for _ in range(config["num_res_blocks"] + 1):
            h = block(torch.cat([h, hs.pop()], 1))
        if h.shape[-1] in config["attn_resolutions"]:
            h = attend(h)
        if config["progressive"] == "output_skip":
            out = head(h) + (out if level == levels - 1 else reference_resize(out, config["fir_kernel"], up=True))
        if level > 0:
            h = block(h, lambda h: reference_resize(h, config["fir_kernel"], up=True))
    out = head(h) if config["progressive"] == "none" else out
    assert not take(), "published weights left over"
    return out / used_sigma[:, None, None, None] if config["scale_by_sigma"] else out


def reference_resize(x, taps, up):
    """Doubles or halves an image as NCSN++ does, by zeros, padding, and one filter along each axis."""
    k = torch.tensor(taps, dtype=x.dtype).flip(0)
    k, p = k / k.sum() * (2 if up else 1), len(taps) - 2
    if up:
        spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
        spread[..., ::2, ::2] = x
        x = spread
    before, after = (p + 1) // 2 + (1 if up else 0), p // 2
    x = F.pad(x, (before, after, before, after))
    x = x.unfold(3, len(taps), 1 if up else 2) @ k
    return x.unfold(2, len(taps), 1 if up else 2) @ k


@pytest.mark.parametrize("name", FIXTURES)
def test_published_numbers(name):
    model, tensors = load_fixture(fixture_path(name))
    assert fixture_error(model, tensors) < 1e-5
    score = model(tensors["input"], tensors["sigma"])
    assert (score - tensors["score"]).abs().max() / tensors["score"].abs().max() < 1e-5


@pytest.mark.parametrize("name", FIXTURES)
def test_reference_gives_the_published_numbers(name):
    with np.load(fixture_path(name)) as file:
        arrays = {key.removeprefix("weights/"): torch.from_numpy(file[key]) for key in file.files}
    config = json.loads(arrays.pop("config").numpy().tobytes())
    x, sigma, score = (arrays.pop(key) for key in ("input", "sigma", "score"))
    error = (reference_score(arrays, config, x, sigma) - score).abs().max() / score.abs().max()
    assert error < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_reference(name):
    model = random_network(CONFIGS[name])
    x, sigma = random_input(CONFIGS[name])
    time = sigma
    if model.architecture["embedding_type"] == "positional":
        time = torch.tensor([3.0, 41.0], dtype=torch.float64)
        top, bottom, steps = (model.architecture[key] for key in ("sigma_max", "sigma_min", "num_scales"))
        sigma = top * (bottom / top) ** (time / (steps - 1))
    weights = named_to_upstream(model.state_dict(), model.architecture)
    with torch.inference_mode():
        expected = reference_score(weights, model.architecture, x, time)
        torch.testing.assert_close(model(x, sigma), expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_reaches_every_parameter(name):
    model = random_network(CONFIGS[name])
    model(*random_input(CONFIGS[name])).square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # The bias of the attention's keys shifts all logits of a pixel alike: its gradient is rounding.
    expected = [n for n, _ in model.named_parameters() if not model.architecture["conditional"] and ".shift." in n]
    assert [n for n in without if not n.endswith("key.bias")] == expected


def test_memory_formats_agree():
    model = random_network(SMALL)
    x, sigma = random_input(SMALL)
    expected = model(x, sigma)
    last = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last), sigma)
    torch.testing.assert_close(last.contiguous(), expected)


def test_images_of_another_size():
    model = random_network(SMALL)
    x = torch.randn(1, 2, 10, 26, dtype=torch.float64)
    assert model(x, torch.ones(1, dtype=torch.float64)).shape == x.shape


@pytest.mark.parametrize("size", [(15, 16), (16, 15), (13, 9)])
def test_size_that_cannot_be_halved_is_mirrored(size):
    model, sigma = random_network(SMALL), torch.ones(1, dtype=torch.float64)
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    padded = F.pad(x, (0, size[1] % 2, 0, size[0] % 2), mode="reflect")
    assert torch.equal(model(x, sigma), model(padded, sigma)[..., : size[0], : size[1]])


def test_size_that_is_too_small():
    with pytest.raises(InputError, match="height and width of at least 2, not 1 × 2"):
        NCSNpp(**SMALL)(torch.zeros(1, 2, 1, 2), torch.ones(1))


@pytest.mark.parametrize(
    ("x_shape", "sigma_shape"), [((1, 3, 16, 16), (1,)), ((2, 16, 16), (1,)), ((2, 2, 16, 16), (1,))]
)
def test_shapes_that_do_not_fit(x_shape, sigma_shape):
    with pytest.raises(InputError, match="The network takes"):
        NCSNpp(**SMALL)(torch.zeros(x_shape), torch.ones(sigma_shape))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"resblock_type": "ddpm"}, "resblock_type must be biggan, not 'ddpm'"),
        ({"progressive": "residual"}, "progressive must be output_skip or none"),
        ({"progressive_input": "residual"}, "progressive_input must be input_skip or none"),
        ({"progressive_combine": "max"}, "progressive_combine must be sum or cat"),
        ({"embedding_type": "learned"}, "embedding_type must be fourier or positional"),
        ({"normalization": "BatchNorm"}, "normalization must be GroupNorm"),
        ({"nonlinearity": "tanh"}, "nonlinearity must be one of elu, relu, lrelu, swish"),
        ({"nf": 2}, "cannot be normalised"),
        ({"nf": 0}, "nf must be at least 1"),
        ({"ch_mult": []}, "ch_mult must name"),
        ({"sigma_min": 5.0}, "sigma_min < sigma_max"),
    ],
)
def test_unsupported_configurations(change, sentence):
    with pytest.raises(InputError, match=sentence):
        NCSNpp(**{**SMALL, **change})


def test_config_is_json_and_rebuilds_the_network():
    model = NCSNpp(**{**SMALL, "ch_mult": (1, 2)}, in_channels=5)
    config = json.loads(json.dumps(model.architecture))
    assert config == model.architecture
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in NCSNpp(**config).state_dict().items()} == shapes


def test_context_channels():
    model = random_network({**SMALL, "in_channels": 5})
    x = torch.randn(1, 5, 16, 16, dtype=torch.float64, requires_grad=True)
    score = model(x, torch.ones(1, dtype=torch.float64))
    assert score.shape == (1, 2, 16, 16)
    score.sum().backward()
    assert (x.grad.abs().amax(dim=(0, 2, 3)) > 0).all()


def test_temporal_network_follows_the_frames():
    """Frames turned round the cycle give scores turned round; a frame is told of the others; others stay apart."""
    config = {**SMALL, "temporal": True}
    model = random_network(config)
    x, sigma = random_input(config, 6)[0], torch.full((6,), 0.3, dtype=torch.float64)
    with torch.no_grad():
        score = model(x, sigma, neighbours(6, True))
        turned = model(x.roll(2, 0), sigma, neighbours(6, True))
        assert torch.allclose(turned, score.roll(2, 0), atol=1e-10)
        cut = model(x, sigma, neighbours(6, False))
        assert not torch.allclose(cut[0], score[0], atol=1e-6)
        changed = x.clone()
        changed[3] += 1
        assert not torch.allclose(model(changed, sigma, neighbours(6, True))[2], score[2], atol=1e-6)
        two = torch.cat([neighbours(3, True), 3 + neighbours(3, True)], dim=1)
        assert torch.allclose(model(x, sigma, two)[:3], model(x[:3], sigma[:3], neighbours(3, True)), atol=1e-10)
        for wrong in (None, neighbours(5, True)):
            with pytest.raises(InputError, match="takes the neighbours of every frame"):
                model(x, sigma, wrong)


def test_a_temporal_network_begins_as_the_one_without():
    plain, temporal = NCSNpp(**SMALL), NCSNpp(**SMALL, temporal=True)
    temporal.load_state_dict(plain.state_dict(), strict=False)
    x, sigma = torch.randn(4, 2, 16, 16), torch.full((4,), 0.3)
    with torch.no_grad():
        expected = plain(x, sigma)
        assert torch.allclose(temporal(x, sigma, neighbours(4, True)), expected, atol=1e-4 * expected.abs().max())
    assert neighbours(3, False).tolist() == [[0, 0, 1], [1, 2, 2]]
    assert neighbours(3, True).tolist() == [[2, 0, 1], [1, 2, 0]]


def test_published_size():
    with torch.device("meta"):
        model = NCSNpp()
    assert sum(p.numel() for p in model.parameters()) == 64_767_118


def test_initial_weights():
    torch.manual_seed(0)
    weight = conv3x3(8, 24).weight
    bound = math.sqrt(3 / (9 * 16))
    assert 0.95 * bound < weight.abs().max() <= bound
    block = AttentionBlock(32, rescale=True, init_scale=0.0)
    assert 0.9 * math.sqrt(0.3 / 32) < block.query.weight.abs().max() <= math.sqrt(0.3 / 32)
    assert 0 < block.out.weight.abs().max() < 1e-5
    model = NCSNpp(**SMALL)
    assert all(not p.any() for n, p in model.named_parameters() if n.endswith("bias"))
    assert model(torch.rand(1, 2, 16, 16), torch.ones(1)).abs().max() < 1e-3


def test_dropout_only_in_training():
    model = random_network({**SMALL, "dropout": 0.5})
    x, sigma = random_input(SMALL)
    torch.testing.assert_close(model(x, sigma), model(x, sigma), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(x, sigma), model(x, sigma))
