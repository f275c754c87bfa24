"""Training by several processes, killed, on a full disk: what must hold whatever happens to a run."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from models.checkpoint import save_model
from models.context import Context
from models.ncsnpp import NCSNpp
from mri.intake_settings import Intake
from reconstruction.settings import PrepareSettings
from tests.commands import ROOT, TINY, assert_one_sentence, begun, command
from training import settings as parts
from training.loop import Draws, Share, Training, seed_of, start_from
from training.objectives import DenoisingScoreMatching
from training.processes import ALONE, Processes
from utils.errors import InputError
from utils.frame_file import append_frames, open_frames

SCENES = ["--config.training.objective=scenes", "--config.model.temporal"]
# two scenes a part
BATCH = ["--config.training.batch_size=16", "--config.training.scene_frames=2", "--config.training.columns=32"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def state(folder, name="global"):
    return torch.load(folder / name / "checkpoints-meta" / "checkpoint.pth", weights_only=True)


def assert_same(first, second, exact):
    """Weights, average, optimizer and loss of two checkpoints."""
    assert first["step"] == second["step"]
    assert first["mean_loss"] == (second["mean_loss"] if exact else pytest.approx(second["mean_loss"], rel=1e-5))
    for one, other in (
        (list(first["model"].values()), list(second["model"].values())),
        (first["ema"]["shadow_params"], second["ema"]["shadow_params"]),
        ([m["exp_avg"] for m in first["optimizer"]["state"].values()],
         [m["exp_avg"] for m in second["optimizer"]["state"].values()]),
    ):  # fmt: skip
        assert len(one) == len(other) > 0
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b) if exact else torch.allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("objective", [[], SCENES])
def test_two_processes_and_accumulated_parts_train_as_one(objective, tmp_path):
    flags = [*TINY, *objective, *BATCH, "--mode=train", "--model=global"]
    command("main.py", *flags, "--workdir=one", cwd=tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    more = [str(ROOT / "main.py"), *flags, "--workdir=two", "--config.training.accumulation=2"]
    done = subprocess.run([*torchrun, *more], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1  # the first process alone speaks
    assert_same(state(tmp_path / "one"), state(tmp_path / "two"), exact=False)


def test_processes_with_different_configurations_stop(tmp_path):
    port, running = str(free_port()), []
    for rank in range(2):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        flags = [*TINY, f"--config.optim.lr={[1e-3, 2e-3][rank]}", f"--config.seed={rank}"]
        running.append(subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), *flags], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
            env={**ENVIRONMENT, **own, "MASTER_PORT": port},
        ))  # fmt: skip
    for process in running:
        _, words = process.communicate(timeout=120)
        assert process.returncode == 2
        assert "optim.lr: 0.001, 0.002; seed: 0, 1" in words and "Traceback" not in words
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize("objective", [[], SCENES])
def test_a_killed_run_goes_on_bit_for_bit(objective, tmp_path):
    """SIGKILL between checkpoints, twice; dropout and batches are the same as without."""
    flags = [flag for flag in TINY if "n_iters" not in flag and "preemption" not in flag]
    flags += [*objective, "--model=global", "--config.training.n_iters=24", "--config.model.dropout=0.1",
              "--config.training.snapshot_freq_for_preemption=3"]  # fmt: skip
    command("main.py", *flags, "--workdir=straight", cwd=tmp_path)
    kept = tmp_path / "killed" / "global" / "checkpoints-meta" / "checkpoint.pth"
    before = -1
    for _ in range(2):
        process = begun("main.py", *flags, "--workdir=killed", cwd=tmp_path, told=tmp_path)
        while not kept.exists() or kept.stat().st_mtime_ns <= before:
            assert process.is_alive()
            time.sleep(0.005)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        before = kept.stat().st_mtime_ns
    assert state(tmp_path / "killed")["step"] < 24
    assert "resuming" in command("main.py", *flags, "--workdir=killed", cwd=tmp_path).stdout
    assert_same(state(tmp_path / "straight"), state(tmp_path / "killed"), exact=True)


def test_a_full_disk_leaves_the_checkpoint_of_before(tmp_path):
    flags = [*TINY, "--model=global"]
    command("main.py", *flags, cwd=tmp_path)
    kept = tmp_path / "exp" / "global" / "checkpoints-meta" / "checkpoint.pth"
    whole, model = kept.read_bytes(), (kept.parents[1] / "model.safetensors").read_bytes()
    limit = len(whole) // 2

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    more = [sys.executable, str(ROOT / "main.py"), *flags, "--config.training.n_iters=9"]
    done = subprocess.run(more, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, preexec_fn=full)
    assert done.returncode == 2
    assert_one_sentence(done, "free disk space")
    assert kept.read_bytes() == whole and (kept.parents[1] / "model.safetensors").read_bytes() == model
    assert not list(tmp_path.rglob(".checkpoint*")) and not list(tmp_path.rglob(".model*"))
    assert "at step 6" in command("main.py", *flags, "--config.training.n_iters=9", cwd=tmp_path).stdout


class Counting:
    """Draws hold their generator's first number."""

    frames_per_draw = 1

    def draw(self, generator):
        return (torch.rand(1, generator=generator),)


@pytest.mark.parametrize("count,accumulation,draws", [(1, 1, 8), (2, 1, 8), (2, 3, 8), (3, 1, 4)])
def test_processes_share_every_batch_without_overlap(count, accumulation, draws):
    parts = count * accumulation
    shares = [
        list(Share(5, 8, draws, parts, range(rank * accumulation, (rank + 1) * accumulation)))
        for rank in range(count)
    ]  # fmt: skip
    for step in range(3):
        seen = [n for share in shares for part in share[step * accumulation : (step + 1) * accumulation] for n in part]
        assert sorted(seen) == list(range((5 + step) * draws, (6 + step) * draws))
    data = Draws(Counting(), 3)
    assert torch.equal(data[7][0], data[7][0]) and not torch.equal(data[7][0], data[8][0])
    assert seed_of(1, 2) != seed_of(2, 1)


def training(tmp_path, processes=ALONE, **settings):
    run = parts.RunSettings(
        0, Intake(), PrepareSettings(), parts.PseudoReferenceSettings(),
        parts.ModelSettings(image_size=96, nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), ema_rate=0.995),
        parts.TrainingSettings(**{"batch_size": 4, "n_iters": 6, **settings}),
        parts.OptimSettings(lr=1.5e-3, warmup=100),
    )  # fmt: skip
    frames = torch.randn(6, 32, 32, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    return Training(run, tmp_path, DenoisingScoreMatching(run, frames.numpy(), "global"), processes)


def test_a_compiled_step_is_compiled_for_each_size_and_learns_the_same(tmp_path, monkeypatch):
    compile, asked = torch.compile, []

    def with_eager(network, **settings):  # the backend that needs no compiler
        asked.append(settings)
        return compile(network, backend="eager", **settings)

    plain = training(tmp_path / "plain")
    plain.run()
    monkeypatch.setattr(torch, "compile", with_eager)
    compiled = training(tmp_path / "compiled", compile=True)
    compiled.run()
    assert asked == [{"dynamic": False}]  # else inductor fails at the second size of scans
    for one, other in zip(plain.parameters, compiled.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot be split over 3 process.*use at least 6\."):
        training(tmp_path, Processes(0, 3, torch.device("cpu")), accumulation=2)


def test_bfloat16_learns_as_float32_does(tmp_path):
    """Autocast changes the loss by rounding alone; weights, average and optimizer stay float32."""
    losses = {}
    for precision in ("fp32", "bf16"):
        run = training(tmp_path / precision, precision=precision)
        run.run()
        kept = state(tmp_path, precision)
        assert all(tensor.dtype == torch.float32 for tensor in [*kept["model"].values(), *kept["ema"]["shadow_params"]])
        assert all(moments["exp_avg"].dtype == torch.float32 for moments in kept["optimizer"]["state"].values())
        losses[precision] = kept["mean_loss"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=5e-3) and losses["bf16"] != losses["fp32"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
def test_data_made_beforehand_by_workers_are_the_same(tmp_path):
    runs = [training(tmp_path / str(workers), workers=workers) for workers in (0, 2)]
    for run in runs:
        run.run()
    assert all(torch.equal(a, b) for a, b in zip(runs[0].parameters, runs[1].parameters, strict=True))


def test_frame_file_keeps_what_was_written_when_the_disk_is_full(tmp_path):
    path, frames = tmp_path / "frames.npy", np.arange(12.0).reshape(3, 4)
    append_frames(path, frames)
    program = (
        "import resource, signal, sys, numpy as np; from utils.frame_file import append_frames\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"append_frames({str(path)!r}, np.zeros((4000, 4)))"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert np.array_equal(open_frames(path), frames)
    append_frames(path, frames[:1])
    assert np.array_equal(open_frames(path), frames[[0, 1, 2, 0]])


class Holding(torch.nn.Module):
    """A network on a machine that holds a number of frames."""

    def __init__(self, network, frames):
        super().__init__()
        self.network, self.frames = network, frames
        self.divisor, self.architecture = network.divisor, network.architecture

    def forward(self, x, sigma, neighbours=None):
        if len(x) > self.frames:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.network(x, sigma, neighbours)


def test_training_says_which_accumulation_fits(tmp_path):
    run = training(tmp_path / "full")
    whole = Holding(run.network, 3)
    run.network = run.score = whole
    frames = run.settings.training.batch_size
    with pytest.raises(InputError, match=rf"{frames} frames .* fit") as caught:
        run.run()
    parts = int(re.search(r"training.accumulation=(\d+)", str(caught.value))[1])
    assert parts >= frames / 3
    again = training(tmp_path / "parts", accumulation=parts)
    again.score = Holding(again.network, 3)
    again.run()
    assert again.step == again.settings.training.n_iters


ENDING = """
import os, sys, torch
from torch.nn.parallel import DistributedDataParallel
from utils.processes import process_group

def threads():
    names = (open(f"/proc/self/task/{number}/comm").read().strip() for number in os.listdir("/proc/self/task"))
    return [name for name in names if "gloo" in name]

with process_group("gloo"):
    network = DistributedDataParallel(torch.nn.Linear(3, 3), forward_sync_buffers=False)
    network(torch.ones(2, 3)).sum().backward()
    assert threads()
    del network
assert not threads(), threads()


def stopped():
    network = DistributedDataParallel(torch.nn.Linear(3, 3), forward_sync_buffers=False)
    sys.exit(143)


try:
    with process_group("gloo"):
        stopped()
except SystemExit:
    assert not threads(), threads()  # though the exception has been through frames that know of the network
"""


def test_the_threads_of_a_process_group_end_with_it():
    """A thread of gloo that outlives the interpreter aborts the process, rarely; here it is seen always."""
    environment = {**ENVIRONMENT, "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    environment["MASTER_PORT"] = str(free_port())
    done = subprocess.run([sys.executable, "-c", ENDING], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr


@pytest.mark.parametrize(
    "theirs,ours",
    [
        (Context((-1, 1), merge=True, own=True), Context((-2, -1, 1, 2))),  # as many images, but others
        (Context((1, -1)), Context((-1, 1))),  # in another order
        (None, Context((-1, 1))),
    ],
)
def test_weights_of_an_unlike_context_are_refused(tmp_path, theirs, ours):
    def network(context):
        return NCSNpp(nf=8, ch_mult=(1, 2), num_res_blocks=1, in_channels=2 + (context.channels if context else 0))

    more = {"context": theirs.to_dict()} if theirs else {}
    save_model(network(theirs), tmp_path / "model.safetensors", **more)
    with pytest.raises(InputError, match="another architecture or context"):
        start_from(network(ours), ours, str(tmp_path / "model.safetensors"))
