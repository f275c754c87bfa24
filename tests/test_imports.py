"""The house has one direction: who may import whom (docs/design.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# every part, and what of the project it may import
ALLOWED = {
    "utils": {"utils"},
    "mri": {"mri", "utils"},
    "op": {"op", "utils"},
    "sde_lib": {"utils"},
    "models": {"models", "op", "mri", "utils"},
    "losses": {"models", "sde_lib", "mri", "utils"},
    "datasets": {"losses", "models", "mri", "utils"},
    "reconstruction": {"reconstruction", "models", "losses", "sde_lib", "op", "mri", "utils"},
    "sampling": {"reconstruction", "models", "sde_lib", "op", "mri", "utils"},
    "training": {"training", "datasets", "losses", "reconstruction", "models", "sde_lib", "op", "mri", "utils"},
    "report": {"report", "mri", "utils"},
    "configs": {"configs", "training", "reconstruction", "mri", "utils"},
    "run_lib": {"configs", "training", "sampling", "report", "reconstruction", "models", "op", "mri", "utils"},
    "main": {"run_lib", "configs", "reconstruction", "utils"},
    "PCsampling_demo_svd": {"run_lib", "configs", "report", "mri", "utils"},
}
CONFIG_DICT = {"configs", "run_lib", "main", "PCsampling_demo_svd"}  # who may hold one


def files(part):
    folder = ROOT / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [ROOT / f"{part}.py"]


def imported(path):
    """Names of the modules that a file imports anywhere, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_go_one_way(part):
    own = set(ALLOWED) | {"benchmarks", "tests", "examples"}
    for path in files(part):
        parts = {name.split(".")[0] for name in imported(path)} & own
        assert parts <= ALLOWED[part], f"{path.relative_to(ROOT)} imports {parts - ALLOWED[part]}"


def test_every_file_belongs_to_a_part_and_the_top_level_has_seven():
    top = {path.stem for path in ROOT.glob("*.py")}
    fixed = {"main", "run_lib", "PCsampling_demo_svd", "sde_lib", "sampling", "losses", "datasets"}
    assert top == fixed and top <= set(ALLOWED)
    for folder in ROOT.iterdir():
        if folder.is_dir() and not folder.name.startswith(".") and list(folder.glob("*.py")):
            assert folder.name in {*ALLOWED, "benchmarks", "tests", "examples"}, folder.name


@pytest.mark.parametrize("part", sorted(set(ALLOWED) - CONFIG_DICT))
def test_configurations_stay_at_the_edge(part):
    for path in files(part):
        assert "ml_collections" not in imported(path) and "ConfigDict" not in path.read_text(), path.name


def test_no_file_is_longer_than_400_lines():
    for part in (*ALLOWED, "benchmarks", "examples"):
        for path in files(part):
            assert len(path.read_text().splitlines()) <= 400, path.relative_to(ROOT)


def test_readers_are_not_named_as_the_libraries_they_use():
    libraries = {"ismrmrd", "nibabel", "pydicom", "h5py", "scipy", "numpy", "twixtools", "sigpy"}
    assert not {path.stem for path in files("mri")} & libraries
    assert not list((ROOT / "tests").rglob("__init__.py"))  # tests that mirror the source would shadow it


def in_a_new_process(program):
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_reconstruction_imports_nothing_of_training():
    in_a_new_process(
        "import sys, torch\n"
        "sys.modules['numba'] = None\n"  # its kernels are used where it is there
        "import mri.lowrank.along_motion as along_motion\n"
        "along_motion.FUSED = False\n"
        "from dataclasses import asdict\n"
        "from sampling import reconstruct, stage_settings\n"
        "from mri.phantom import make_phantom\n"
        "from mri.fourier import fft2c\n"
        "from mri.masks import make_mask\n"
        "mask = make_mask('uniform', (5, 64, 64), 4, 8)\n"
        "config = {part.part: asdict(part) for part in stage_settings(None)}\n"
        "config['ou'] |= {'motion_patches': (4,), 'motion_steps': 5}\n"
        "reconstruct(fft2c(make_phantom(5, 64)) * mask, mask, config=config)\n"
        "names = {name.split('.')[0] for name in sys.modules}\n"
        "unwanted = {'training', 'datasets', 'configs', 'absl', 'ml_collections', 'tensorboard', 'sigpy'}\n"
        "assert not names & unwanted, names & unwanted"
    )


def test_physics_networks_and_operations_need_no_absl():
    in_a_new_process(
        "import sys\n"
        "for name in ('absl', 'ml_collections', 'sigpy', 'tensorboard'):\n"
        "    sys.modules[name] = None\n"
        "import mri.intake, mri.coils, mri.noise, mri.scenes\n"
        "import models.prior, models.convert, op.fused, reconstruction.prepare"
    )


def test_the_command_that_reconstructs_loads_no_training_code():
    in_a_new_process(
        "import sys\n"
        "import PCsampling_demo_svd\n"
        "loaded = {name for name in sys.modules if name.split('.')[0] in ('training', 'datasets', 'tensorboard')}\n"
        "assert loaded <= {'training', 'training.settings'}, loaded  # the declarations of the fields\n"
    )
