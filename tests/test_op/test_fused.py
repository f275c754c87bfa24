"""Fused operations: the native forms are right, and the Triton kernels are the native forms.

Without a GPU the kernels run in Triton's interpreter (conftest sets TRITON_INTERPRET before it is imported).
"""

import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models.layers import NoiseEmbedding, activation
from models.ncsnpp import NCSNpp
from op import dispatch
from op.fused import divide_by_sigma, group_norm, residual_add
from op.upfirdn2d import fir_kernel, upfirdn2d
from utils.errors import InputError

ROOT = Path(__file__).parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not TRITON, reason="Triton is not installed")
interpreter = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # of Triton's own code
TYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
LAYOUTS = ("contiguous", "channels_last", "neither")
FILTERS = [(1, 2, (1, 1)), (2, 1, (2, 1)), (1, 1, (-1, 2)), (3, 2, (2, 0)), (2, 2, (1, 3))]


def images(*shape, layout="contiguous", kind=torch.float32, seed=0):
    """Random images on the device, in a memory layout."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, kind)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "neither":
        wide = torch.zeros(*shape[:2], shape[2] + 1, 2 * shape[3], device=DEVICE, dtype=kind)
        wide[:, :, :-1, ::2] = x
        x = wide[:, :, :-1, ::2]
        assert not x.is_contiguous()
    return x.detach().requires_grad_()


def both_forms(function, *inputs):
    """Result and gradients of a function of tensors, native and by Triton."""
    found = []
    for form in dispatch.FORMS:
        with dispatch.forced(form):
            out = function(*inputs)
            cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out)
            leaves = [x for x in inputs if x is not None and x.requires_grad]
            found.append([out, *torch.autograd.grad(out, leaves, cotangent)])
    return zip(*found, strict=True)


def assert_close(native, kernel, tolerance):
    assert native.shape == kernel.shape
    scale = native.float().abs().max().clamp(min=1.0)
    assert (native.float() - kernel.float()).abs().max() <= tolerance * scale


@pytest.fixture(autouse=True)
def not_failed():
    """A test that makes Triton fail must not turn it off for the others; warnings of a failure are errors."""
    dispatch._failed = False
    yield
    dispatch._failed = False


# ---------------------------------------------------------------------------------------------- native forms


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_gradients_of_native_forms(silu, shifted, layout):
    x = images(1, 6, 3, 5, layout=layout, kind=torch.float64).detach().requires_grad_()
    w, b = (torch.randn(6, dtype=torch.float64, device=DEVICE, requires_grad=True) for _ in range(2))
    shift = torch.randn(1, 6, dtype=torch.float64, device=DEVICE, requires_grad=True) if shifted else None
    inputs = (x, w, b, shift) if shifted else (x, w, b)
    assert torch.autograd.gradcheck(lambda x, w, b, s=None: group_norm(x, 3, w, b, 1e-6, silu, s), inputs)
    h, sigma = torch.randn_like(x, requires_grad=True), torch.rand(1, dtype=torch.float64, device=DEVICE) + 0.5
    assert torch.autograd.gradcheck(lambda x, h: residual_add(x, h, silu), (x, h))
    assert torch.autograd.gradcheck(lambda x: divide_by_sigma(x, sigma), (x,))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("up,down,pad", FILTERS)
def test_gradients_of_native_resampling(up, down, pad, layout):
    x = images(1, 2, 5, 6, layout=layout, kind=torch.float64).detach().requires_grad_()
    kernel = torch.rand(4, 3, dtype=torch.float64, device=DEVICE)
    assert torch.autograd.gradcheck(lambda x: upfirdn2d(x, kernel, up, down, pad), (x,))


def test_native_group_norm_is_its_definition():
    x, w, b = images(2, 6, 3, 5), images(1, 1, 1, 6).flatten(), images(1, 1, 1, 6, seed=1).flatten()
    shift = images(1, 1, 2, 6, seed=2)[0, 0]
    value = (x + shift[:, :, None, None]).reshape(2, 3, -1)
    value = (value - value.mean(2, keepdim=True)) / (value.var(2, keepdim=True, correction=0) + 1e-6).sqrt()
    value = value.reshape(x.shape) * w[:, None, None] + b[:, None, None]
    with dispatch.forced("native"):
        assert torch.allclose(group_norm(x, 3, w, b, 1e-6, True, shift), value * value.sigmoid(), atol=1e-5)


# --------------------------------------------------------------------------------------------- Triton kernels


@needs_triton
@interpreter
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("up,down,pad", FILTERS)
def test_resampling_kernel(up, down, pad, layout):
    kernel = torch.rand(4, 3, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    for shape in ((2, 3, 7, 10), (1, 4, 9, 9)):
        x = images(*shape, layout=layout)
        for native, own in both_forms(lambda x: upfirdn2d(x, kernel, up, down, pad), x):
            assert_close(native, own, 1e-5)
        with dispatch.forced("triton"):
            if layout == "channels_last":
                assert upfirdn2d(x, kernel, up, down, pad).is_contiguous(memory_format=torch.channels_last)


@needs_triton
@interpreter
def test_second_derivative_of_the_resampling_kernel():
    kernel = fir_kernel((1, 3, 3, 1)).to(DEVICE)
    x = images(1, 2, 6, 6)
    with dispatch.forced("triton"):
        (first,) = torch.autograd.grad(upfirdn2d(x, kernel, 2, 1, (2, 1)).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
    with dispatch.forced("native"):
        (first,) = torch.autograd.grad(upfirdn2d(x, kernel, 2, 1, (2, 1)).square().sum(), x, create_graph=True)
        (expected,) = torch.autograd.grad(first.square().sum(), x)
    assert_close(expected, second, 1e-5)


@needs_triton
@interpreter
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("silu,shifted", [(True, True), (True, False), (False, False)])
def test_group_norm_kernel(layout, kind, silu, shifted):
    """Odd sizes and groups, values far from 0, where sums of squares would cancel."""
    c = 3 * (12 if DEVICE == "cuda" else 3)  # the interpreter runs one channel of one image after the other
    x = (images(2, c, 7, 9, layout=layout, kind=kind) + 5).detach().requires_grad_()
    w, b, shift = (images(1, 1, 1, n, seed=s).flatten().detach().requires_grad_() for s, n in enumerate((c, c, 2 * c)))
    shift = shift.reshape(2, c).detach().to(kind).requires_grad_() if shifted else None
    for native, own in both_forms(lambda x, w, b, s: group_norm(x, 3, w, b, 1e-6, silu, s), x, w, b, shift):
        assert_close(native, own, 3 * TYPES[kind])


@needs_triton
@interpreter
@pytest.mark.parametrize("pixels", [(1, 1), (40, 70)])
def test_group_norm_kernel_in_parts(pixels, monkeypatch):
    """Images of one pixel, and images reduced in several parts."""
    monkeypatch.setattr(dispatch.kernels(), "ELEMENTS", 256)
    for layout in LAYOUTS[:2]:
        x = images(1, 4, *pixels, layout=layout)
        w, b = (images(1, 1, 1, 4, seed=s).flatten().detach().requires_grad_() for s in (1, 2))
        for native, own in both_forms(lambda x, w, b: group_norm(x, 2, w, b, 1e-6, True), x, w, b):
            assert_close(native, own, 1e-4)


@needs_triton
@interpreter
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sum_and_division_kernels(layout, kind):
    x, h = images(3, 5, 7, 3, layout=layout, kind=kind), images(3, 5, 7, 3, kind=kind, seed=1)
    for rescale in (True, False):
        for native, own in both_forms(lambda x, h, r=rescale: residual_add(x, h, r), x, h):
            assert_close(native, own, TYPES[kind])
    sigma = torch.tensor([0.5, 2.0, 3.0], device=DEVICE)
    for native, own in both_forms(lambda x: divide_by_sigma(x, sigma), x):
        assert native.dtype == own.dtype
        assert_close(native, own, TYPES[kind])


def network():
    torch.manual_seed(1)
    return NCSNpp(image_size=8, nf=8, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), init_scale=1.0).to(DEVICE)


@needs_triton
@interpreter
@pytest.mark.parametrize("layout", LAYOUTS[1:2])
def test_the_whole_network_and_its_gradients(layout):
    x, sigma = images(2, 2, 8, 8, layout=layout), torch.tensor([0.1, 1.0], device=DEVICE)
    model = network()
    found = []
    for form in dispatch.FORMS:
        with dispatch.forced(form):
            out = model(x, sigma)
            found.append([out, *torch.autograd.grad(out.square().mean(), [x, *model.parameters()])])
    for native, own in zip(*found, strict=True):
        assert_close(native, own, 1e-4)


@needs_triton
@interpreter
def test_operators_are_registered_as_torch_library_wants():
    x, w = images(1, 4, 5, 6), torch.ones(4, device=DEVICE, requires_grad=True)
    shift = torch.ones(1, 4, device=DEVICE, requires_grad=True)
    sigma = torch.ones(1, device=DEVICE)
    kernel = fir_kernel((1, 3, 3, 1)).to(DEVICE)
    gldm = torch.ops.gldm
    torch.library.opcheck(gldm.upfirdn2d.default, (x, kernel, 2, 1, 2, 2, 10, 12))
    torch.library.opcheck(gldm.group_norm.default, (x, w, w, shift, 2, 1e-6, True))
    torch.library.opcheck(gldm.group_norm.default, (x, w, w, None, 2, 1e-6, False))
    torch.library.opcheck(gldm.scaled_sum.default, (x, x.detach().clone().requires_grad_(), 0.5))
    torch.library.opcheck(gldm.divide_by_sigma.default, (x, sigma))


@interpreter
@pytest.mark.parametrize("form", ["", *dispatch.FORMS])
def test_the_network_is_one_graph_for_torch_compile(form):
    if form == "triton" and not TRITON:
        pytest.skip("Triton is not installed")
    x, sigma = images(1, 2, 8, 8, layout="channels_last").detach(), torch.tensor([0.3], device=DEVICE)
    model = network()
    with dispatch.forced(form):
        torch._dynamo.reset()
        traced = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert torch.allclose(traced(x, sigma), model(x, sigma), atol=1e-4)


# --------------------------------------------------------------------------------------------------- choice


def test_forms_that_cannot_be_forced():
    x = torch.zeros(1, 2, 4, 4)
    with dispatch.forced("cuda"), pytest.raises(InputError, match=r"native or triton.*'cuda'"):
        residual_add(x, x, True)


def test_triton_on_a_cpu_without_its_interpreter(monkeypatch):
    monkeypatch.setattr(dispatch, "_interpreted", False)
    x = torch.zeros(1, 2, 4, 4)
    with dispatch.forced("triton"), pytest.raises(InputError, match=r"needs a GPU|not installed"):
        residual_add(x, x, True)
    monkeypatch.setattr(dispatch, "_installed", False)
    with dispatch.forced("triton"), pytest.raises(InputError, match="pip install triton"):
        residual_add(x, x, True)


@needs_triton
@interpreter
def test_a_failure_of_triton_is_told_once_and_native_from_then_on(monkeypatch):
    calls = []

    def broken(*_):
        calls.append(1)
        raise RuntimeError("no kernel image is available\nfor this device")

    for name in ("scaled_sum", "upfirdn2d", "group_norm", "divide_by_sigma"):
        monkeypatch.setattr(dispatch.kernels(), name, broken)
    x, h, w = images(2, 4, 6, 6), images(2, 4, 6, 6, seed=1), torch.ones(4, device=DEVICE)
    kernel, sigma = fir_kernel((1, 3, 3, 1)).to(DEVICE), torch.ones(2, device=DEVICE)
    with dispatch.forced("triton"):
        with pytest.warns(UserWarning, match="RuntimeError: no kernel image is available for this device") as told:
            results = [residual_add(x, h, True), upfirdn2d(x, kernel, 1, 2, (1, 1)), group_norm(x, 2, w, w, 1e-6, True)]
            results += [divide_by_sigma(x, sigma)]
            # a graph that was traced before goes on calling the operators
            direct = torch.ops.gldm.upfirdn2d(x, kernel, 1, 2, 1, 1, 3, 3)
            normed, mean, rstd = torch.ops.gldm.group_norm(x, w, w, None, 2, 1e-6, True)
    assert len(told) == 1 and len(calls) == 1
    with dispatch.forced("native"):
        assert torch.allclose(results[0], residual_add(x, h, True))
        assert torch.equal(results[3], divide_by_sigma(x, sigma))
        assert torch.allclose(results[1], upfirdn2d(x, kernel, 1, 2, (1, 1))) and torch.allclose(direct, results[1])
        assert torch.allclose(results[2], group_norm(x, 2, w, w, 1e-6, True)) and torch.allclose(normed, results[2])


@needs_triton
@interpreter
def test_what_stands_in_for_a_kernel_has_its_gradients(monkeypatch):
    """The native forms behind the operators, which graphs traced before a failure call."""
    x, w, b = images(2, 6, 5, 4), *(images(1, 1, 1, 6, seed=s).flatten().detach().requires_grad_() for s in (1, 2))
    shift = images(1, 1, 2, 6, seed=3)[0, 0].detach().requires_grad_()
    monkeypatch.setattr(dispatch, "_failed", True)
    out, *_ = torch.ops.gldm.group_norm(x, w, b, shift, 3, 1e-6, True)
    expected = F.silu(F.group_norm(x + shift[:, :, None, None], 3, w, b, 1e-6))
    cotangent = images(2, 6, 5, 4, seed=5).detach()
    for one, other in zip(torch.autograd.grad(out, (x, w, b, shift), cotangent),
                          torch.autograd.grad(expected, (x, w, b, shift), cotangent), strict=True):  # fmt: skip
        assert_close(other, one, 1e-5)


# ------------------------------------------------------------------------------------------------ autocast


@interpreter
@pytest.mark.parametrize("form", dispatch.FORMS)
def test_autocast_keeps_what_must_be_exact(form):
    if form == "triton" and not TRITON:
        pytest.skip("Triton is not installed")
    model, seen = network(), []
    x, sigma = images(2, 2, 8, 8, layout="channels_last").detach(), torch.tensor([0.01, 1.0], device=DEVICE)
    model.embedding.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with dispatch.forced(form):
        exact = model(x, sigma)
        with torch.autocast(DEVICE, torch.bfloat16):
            short = model(x, sigma)
    assert short.dtype == torch.float32
    assert 0 < (short - exact).norm() / exact.norm() < 0.05
    assert seen[0].dtype == seen[1].dtype == torch.float32 and torch.equal(seen[0], seen[1])


def test_embedding_of_the_noise_level_ignores_autocast():
    embedding = NoiseEmbedding(8, 16, activation("swish"))
    features = torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(embedding(features), embedding.float()(features))
        assert embedding(features).dtype == torch.float32


# --------------------------------------------------------------------------------------------- no compiler

IMPORTS = """
import sys
started = []
events = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"}
def hook(event, arguments):
    if event in events and arguments[0] != "uname":  # with which Python itself asks for the kind of processor
        started.append((event, arguments))
sys.addaudithook(hook)
import torch.distributed, torch.utils.tensorboard, matplotlib.pyplot, scipy.io, skimage.metrics, PIL.Image, h5py
# what those start is theirs
before = len(started)
import COMMAND, run_lib, sampling, losses, datasets, sde_lib, training.loop, training.objectives, training.processes
import op.fused, op.upfirdn2d, op.dispatch, models.ncsnpp, models.convert, models.precision
import mri.scenes, mri.lowrank.hankel, mri.lowrank.along_motion
import benchmarks.quality, benchmarks.speed, benchmarks.calibration
assert started[before:] == [], started[before:]
assert "triton" not in sys.modules and "torchvision" not in sys.modules
print("imported")
"""


@pytest.mark.parametrize("script", ["main", "PCsampling_demo_svd"])
def test_no_import_starts_a_compiler_or_anything_else(script):
    environment = {name: value for name, value in os.environ.items() if name not in ("PATH", "TRITON_INTERPRET")}
    environment.update(PATH="", PYTHONPATH=str(ROOT), MPLBACKEND="agg")
    program = [sys.executable, "-c", IMPORTS.replace("COMMAND", script)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "imported", done.stderr


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # as where it is not installed
from pathlib import Path
import importlib, torch
for folder in ("op", "models", "mri", "utils"):
    for path in (Path(sys.argv[1]) / folder).glob("*.py"):
        if path.stem not in ("__init__", "triton_kernels"):
            importlib.import_module(f"{folder}.{path.stem}")
import main, run_lib
from models.prior import load_shipped
from models.context import neighbours
prior = load_shipped("global", "cascade")
x = torch.randn(3, prior.network.in_channels, 32, 32)
print("passed", bool(prior._run(x, torch.full((3,), 0.1), neighbours(3, True)).isfinite().all()))
try:
    import op.triton_kernels
except ImportError as error:
    print(error)
"""


def test_without_triton_all_but_its_own_module_works():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = [sys.executable, "-c", WITHOUT_TRITON, str(ROOT)]
    done = subprocess.run(program, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0 and "passed True" in done.stdout, done.stderr
    assert "op.triton_kernels needs Triton (pip install triton)" in done.stdout


COMPILE = """
import sys
from importlib import import_module
from op import triton_kernels as kernels

compiler, GPUTarget = import_module("triton.compiler"), import_module("triton.backends.compiler").GPUTarget

TYPES = {"i32": "total C H W OH OW stride_n stride_c stride_y stride_x stride_p pad_y pad_x P G part parts per_image",
         "*fp32": "taps means squares mean rstd weight bias sums products constant linear scale",
         "*bf16": "x h shift gradient out", "fp32": "eps factor"}
types = {name: kind for kind, names in TYPES.items() for name in names.split()}
for name, constants in {
    "_upfirdn2d": dict(UP=2, DOWN=1, TAPS_Y=4, TAPS_X=4, CHANNELS_LAST=True, WIDE=True, BLOCK=1024),
    "_channel_statistics": dict(BLOCK_P=32, BLOCK_C=128),
    "_group_statistics": dict(HAS_SHIFT=True, BLOCK_S=64, BLOCK_C=16),
    "_normalise": dict(HAS_SHIFT=True, SILU=True, BLOCK_P=32, BLOCK_C=128),
    "_gradient_sums": dict(HAS_SHIFT=True, SILU=True, BLOCK_P=2048, BLOCK_C=1),
    "_gradient": dict(HAS_SHIFT=False, SILU=True, BLOCK_P=2048, BLOCK_C=1),
    "_scaled_sum": dict(HAS_H=True, HAS_SCALE=False, WIDE=False, BLOCK=1024),
}.items():
    kernel = getattr(kernels, name)
    signature = {argument: types.get(argument, "constexpr") for argument in kernel.arg_names}
    source = compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    print(name, len(compiler.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32)).asm["cubin"]) > 0)
"""


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_gpus_that_are_not_here(capability, tmp_path):
    """To machine code of an A100 and an H100: what the interpreter accepts is not all that a GPU does."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment.update(PYTHONPATH=str(ROOT), TRITON_CACHE_DIR=str(tmp_path))
    program = [sys.executable, "-c", COMPILE, str(capability)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("True") == 7


def test_warnings_are_errors_here():
    """So a silent fall back to native would fail every test of a kernel."""
    with pytest.raises(UserWarning):
        warnings.warn("told", stacklevel=1)
