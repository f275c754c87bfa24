"""Scripts of the project run as a user runs them, without the seconds that every start of PyTorch takes."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from mri.phantom import make_phantom

ROOT = Path(__file__).parents[1]
# flags of a configuration that trains and samples in seconds
TINY = (
    "--config.model.image_size=64 --config.data.frames=4 --config.data.phantoms=2 --config.model.nf=8 "
    "--config.model.ch_mult=(1,2) --config.model.num_res_blocks=1 --config.training.batch_size=2 "
    "--config.training.n_iters=6 "
    "--config.training.snapshot_freq=4 --config.training.snapshot_freq_for_preemption=2 "
    "--config.sampling.num_scales=8 --config.sampling.iterations=2 --config.ou.rank=12 --config.ou.window=4 "
    "--config.ou.motion_patches=(4,) --config.ou.motion_steps=5"
).split()

# The server has imported what the scripts import, at once or late, and does nothing else; each script gets a fork of it
# of its own.
LATE = [
    "mri.lowrank.fused", "numba.typed", "skimage.metrics", "scipy.io", "scipy.stats", "report.page", "jinja2",
    "matplotlib", "training.loop", "torch.utils.tensorboard", "torch._dynamo", "configs.flags",
]  # fmt: skip
_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(["run_lib", *LATE])


def command(*arguments, cwd, succeeds=True, **environment):
    """Run a script of the project, or a module after `-m`, from another folder, in a process of its own.

    With more environment variables, perhaps. Returns the finished process.
    """
    with tempfile.TemporaryDirectory() as folder:
        process = begun(*arguments, cwd=cwd, told=Path(folder), **environment)
        process.join()
        told = ((Path(folder) / name).read_text() for name in ("stdout", "stderr"))
        done = subprocess.CompletedProcess(arguments, process.exitcode, *told)
    if succeeds:
        assert done.returncode == 0, done.stderr
    return done


def begun(*arguments, cwd, told: Path, **environment):
    """The process of such a command, which runs and writes to the files `stdout` and `stderr` in the folder `told`."""
    script, *rest = map(str, arguments)
    files = told / "stdout", told / "stderr"
    process = _fork.Process(target=_run, args=(script, rest, str(cwd), environment, *files))
    process.start()
    return process


def _run(script: str, arguments: list[str], cwd: str, environment: dict, stdout: Path, stderr: Path) -> None:
    os.environ.update(environment)
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    # of the server, they may be of the terminal or closed
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    torch.set_num_threads(1)
    os.chdir(cwd)
    sys.path.insert(0, str(ROOT))
    if script == "-m":
        module, *sys.argv[1:] = arguments
        sys.modules.pop(module, None)  # else there is a warning that it is loaded already
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [str(ROOT / script), *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")


def demo(*arguments, cwd, priors, succeeds=True):
    """The reconstruction command at a tiny size, with these GM and LM."""
    checkpoints = ["--checkpoint_global", priors[0], "--checkpoint_local", priors[1]]
    return command("PCsampling_demo_svd.py", *TINY, *checkpoints, *arguments, cwd=cwd, succeeds=succeeds)


def array():
    """Images of a small scan."""
    return make_phantom(4, 64, 0).numpy()


def assert_one_sentence(done: subprocess.CompletedProcess, words: str) -> None:
    """A command that failed said one sentence, which holds these words, and no traceback."""
    assert done.returncode != 0
    assert words in done.stderr, done.stderr
    last = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(last) == 1 and "Traceback" not in done.stderr


def names(folder) -> set[str]:
    """Names of the files in a folder."""
    return {path.name for path in Path(folder).iterdir()}
