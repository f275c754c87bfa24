"""Helpers of the tests: run a benchmark's command, read its tables."""

import csv
import os
import subprocess
import sys
from pathlib import Path

from utils.errors import exit_on_input_error

ROOT = Path(__file__).parents[2]
FAST = [
    "--set", "sampling.num_scales=8", "--set", "sampling.iterations=1", "--set", "ou.llr_iterations=3",
    "--set", "ou.motion_patches=(4,)", "--set", "ou.motion_steps=2",
]  # fmt: skip


def run_here(monkeypatch, module, *arguments):
    """Run the command of `module` in this process."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    exit_on_input_error(module.main)


def command(module, *arguments, cwd):
    """Run `python -m module` from another folder; returns the lines of its output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def table(path):
    """Columns and rows of a CSV file."""
    rows = list(csv.DictReader(path.read_text().splitlines()))
    return list(rows[0]), rows


def checkpoints(paths):
    """The flags that give GM and LM."""
    return ["--checkpoint_global", paths[0], "--checkpoint_local", paths[1]]
