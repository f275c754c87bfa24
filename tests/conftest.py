"""Shared data are optional: tests that want them skip with a reason when they are not there."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton's kernels run on the CPU; read when Triton is imported
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores: one thread each, of their commands too
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

from configs.default import get_default_configs
from models import create_model
from models.checkpoint import save_model
from mri.weighting import KspaceWeight

SHARED = Path(os.environ.get("GLDM_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture
def shared_file():
    """Path of a file of the shared data; skips the test when it is not there."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs {name} of the shared data (set GLDM_SHARED to its folder)")
        return path

    return find


def tiny_config():
    """A configuration that trains and samples in seconds: 64×64×4, a network of 60 thousand parameters."""
    config = get_default_configs()
    config.data.image_size, config.data.frames, config.data.phantoms = 64, 4, 2
    config.model.nf, config.model.ch_mult, config.model.num_res_blocks = 8, (1, 2), 1
    config.model.attn_resolutions = ()
    config.training.batch_size, config.training.n_iters = 2, 6
    config.training.log_freq, config.training.image_freq = 2, 3
    config.training.snapshot_freq, config.training.snapshot_freq_for_preemption = 4, 2
    config.optim.warmup = 2
    config.sampling.num_scales, config.sampling.iterations = 8, 2
    config.ou.rank, config.ou.window = 12, 4
    config.ou.motion_patches, config.ou.motion_steps = (4,), 5
    return config


@pytest.fixture
def tiny():
    return tiny_config()


@pytest.fixture(scope="session")
def priors(tmp_path_factory):
    """Paths of an untrained GM and LM that do something: a network whose last layers are not zero."""
    folder, paths = tmp_path_factory.mktemp("priors"), []
    for seed, name in enumerate(("global", "local")):
        config = tiny_config()
        config.seed, config.model.init_scale = seed, 1.0
        paths.append(folder / f"{name}.safetensors")
        weight = KspaceWeight(power=1.0, gain=0.2, data_std=0.5)
        save_model(create_model(config), paths[-1], weight=weight.to_dict())
    return paths
