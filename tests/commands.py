"""Scripts of the project run as a user runs them, without the seconds that every start of PyTorch takes."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]

# The server has imported what the scripts import, and does nothing else; each script gets a fork of it of its own.
_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(["run_lib"])


def command(*arguments, cwd, succeeds=True):
    """Run a script of the project from another folder, in a process of its own; returns the finished process."""
    script, *rest = map(str, arguments)
    with tempfile.TemporaryDirectory() as folder:
        told = [Path(folder) / name for name in ("stdout", "stderr")]
        process = _fork.Process(target=_run, args=(script, rest, str(cwd), *told))
        process.start()
        process.join()
        done = subprocess.CompletedProcess([script, *rest], process.exitcode, *(path.read_text() for path in told))
    if succeeds:
        assert done.returncode == 0, done.stderr
    return done


def _run(script: str, arguments: list[str], cwd: str, stdout: Path, stderr: Path) -> None:
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    # of the server, they may be of the terminal or closed
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    torch.set_num_threads(1)
    os.chdir(cwd)
    sys.path.insert(0, str(ROOT))
    sys.argv = [str(ROOT / script), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")
