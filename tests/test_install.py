"""The wheel: one top-level name, commands that run from anywhere, nobody's modules shadowed."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mri.phantom import make_phantom

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
LEFT_OUT = {"tests", "benchmarks", "docs", "examples", "results"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder where the wheel and a package `datasets` of somebody else are installed."""
    folder = tmp_path_factory.mktemp("install")
    source, site = folder / "source", folder / "site"
    ignored = shutil.ignore_patterns(".*", "tests", "results", "benchmarks", "__pycache__", "build", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=ignored, symlinks=True)
    wheel = [*PIP, "wheel", str(source), "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run(wheel, check=True, stdout=subprocess.DEVNULL)
    (path,) = folder.glob("*.whl")
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(site), str(path)], check=True)
    (site / "datasets").mkdir()
    (site / "datasets" / "__init__.py").write_text("WHOSE = 'another project'\n")
    return path, site


def run(site, cwd, *command):
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_every_package_of_the_tree_is_in_the_wheel(installed):
    path, _ = installed
    names = zipfile.ZipFile(path).namelist()
    assert {name.split("/")[0] for name in names} == {"gldm", path.name.split("-py3")[0] + ".dist-info"}
    tracked = {str(file.relative_to(ROOT)) for file in ROOT.rglob("*.py")}
    tracked = {name for name in tracked if not name.startswith(".") and name.split("/")[0] not in LEFT_OUT | {"build"}}
    assert {f"gldm/{name}" for name in tracked} == {name for name in names if name.endswith(".py")}
    checkpoints = {str(file.relative_to(ROOT)) for file in (ROOT / "checkpoints").rglob("*.safetensors")}
    assert {f"gldm/{name}" for name in checkpoints} <= set(names) and checkpoints


def test_commands_run_from_an_empty_folder_beside_other_packages(installed, tmp_path):
    _, site = installed
    np.save(tmp_path / "scan.npy", make_phantom(4, 64, 3).numpy())
    whose = run(site, tmp_path, sys.executable, "-c", "import datasets; print(datasets.WHOSE)")
    assert whose.stdout.strip() == "another project"
    reconstructed = run(
        site, tmp_path, str(site / "bin" / "gldm-reconstruct"), "--data", "scan.npy", "--kind=image", "--out", "out",
        "--config.ou.motion_patches=(4,)", "--config.ou.motion_steps=5",
    )  # fmt: skip
    assert reconstructed.returncode == 0, reconstructed.stderr[-2000:]
    assert (tmp_path / "out" / "reconstruction.npy").is_file()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["command"].startswith("gldm-reconstruct --data")
    read = run(site, tmp_path, str(site / "bin" / "gldm-formats"), "scan.npy", "--kind=image")
    assert read.returncode == 0 and "4 frames of 64 x 64" in read.stdout, read.stderr[-2000:]
    trained = run(
        site, tmp_path, str(site / "bin" / "gldm-train"), "--config=configs/ve/cpu_demo.py", "--model=global",
        "--config.model.nf=8", "--config.model.ch_mult=(1,2)", "--config.model.image_size=64",
        "--config.training.n_iters=2", "--config.data.phantoms=1", "--config.data.frames=4",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr[-2000:]
    assert (tmp_path / "exp" / "global" / "model.safetensors").is_file()


def test_the_wheel_asks_for_what_the_tree_imports():
    """Its dependencies are those that requirements.txt pins, but for what only tests need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {text.split(">")[0].split("=")[0].lower().replace("_", "-") for text in project["dependencies"]}
    lines = (ROOT / "requirements.txt").read_text().split("\n")
    pinned = {line.split("=")[0].split(">")[0].strip().lower().replace("_", "-") for line in lines if line.strip()}
    tools = {"triton", "pytest", "pytest-xdist", "ruff", "mypy", "setuptools"}
    assert asked == pinned - tools
