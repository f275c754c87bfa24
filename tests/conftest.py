"""Shared data are optional: tests that want them skip with a reason when they are not there."""

import os
from pathlib import Path

import pytest
import scipy.io
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton's kernels run on the CPU; read when Triton is imported
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores: one thread each, of their commands too
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

from configs.default import get_default_configs
from models.checkpoint import save_model
from models.context import Context
from models.ncsnpp import NCSNpp
from mri.fourier import fft2c
from mri.masks import make_mask
from mri.phantom import make_phantom
from mri.scan import Reference, Scan, Source
from mri.weighting import KspaceWeight

# a minute to ten seconds each: they begin first, so that none is left over when the others are done
LONGEST = {
    "test_the_gpu_script_at_small_size", "test_speed_tables", "test_trains_judges_and_replaces",
    "test_twenty_steps_of_training", "test_processes_of_torchrun_share_the_scans",
    "test_two_processes_and_accumulated_parts_train_as_one", "test_quality_of_a_heart_with_coils", "test_example",
    "test_commands_run_from_an_empty_folder_beside_other_packages",
}  # fmt: skip
SHARED = Path(os.environ.get("GLDM_SHARED", Path(__file__).parents[2] / "shared"))


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.originalname not in LONGEST)


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
    config.model.image_size, config.data.frames, config.data.phantoms = 64, 4, 2
    config.model.nf, config.model.ch_mult, config.model.num_res_blocks = 8, (1, 2), 1
    config.model.attn_resolutions = ()
    config.training.batch_size, config.training.n_iters = 2, 6
    config.training.snapshot_freq, config.training.snapshot_freq_for_preemption = 4, 2
    config.optim.warmup = 2
    config.sampling.num_scales, config.sampling.iterations = 8, 2
    config.ou.rank, config.ou.window = 12, 4
    config.ou.motion_patches, config.ou.motion_steps = (4,), 5
    return config


@pytest.fixture
def tiny():
    return tiny_config()


def tiny_network(seed: int = 0, **fields) -> NCSNpp:
    """An untrained network that does something: its last layers are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        known = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (), "init_scale": 1.0}
        return NCSNpp(image_size=64, centered=True, **{**known, **fields})


@pytest.fixture
def magnitude(tmp_path):
    """A scan file of magnitude images, (row, column, frame)."""
    path = tmp_path / "scan.mat"
    scipy.io.savemat(path, {"image": make_phantom(4, 64, 0).abs().permute(1, 2, 0).numpy()})
    return path


@pytest.fixture(scope="session")
def priors(tmp_path_factory):
    """Paths of an untrained GM and LM of the published kind (weighted k-space)."""
    folder, paths = tmp_path_factory.mktemp("priors"), []
    for seed, name in enumerate(("global", "local")):
        paths.append(folder / f"{name}.safetensors")
        weight = KspaceWeight(power=1.0, gain=0.2, data_std=0.5)
        save_model(tiny_network(seed), paths[-1], weight=weight.to_dict())
    return paths


@pytest.fixture(scope="session")
def context_priors(tmp_path_factory):
    """Paths of an untrained GM and LM with context, as the cascade uses them."""
    folder, paths = tmp_path_factory.mktemp("context_priors"), []
    for seed, (name, offsets) in enumerate((("global", (-2, -1, 1, 2)), ("local", (-1, 1)))):
        context = Context(offsets, mean=name == "global", merge=True, own=True, near=True)
        network = tiny_network(seed, in_channels=2 + context.channels, temporal=True, sigma_min=1e-4, sigma_max=1.0)
        paths.append(folder / f"{name}.safetensors")
        metadata = {"weight": KspaceWeight(0.0, 1.0, 1.0).to_dict(), "context": context.to_dict(), "loss": [0.9]}
        save_model(network, paths[-1], prior=name, **metadata)
    return paths


def simple_scan(
    frames: int = 4, size: int = 64, pattern: str = "uniform", acceleration: float = 4, acs: int = 8, seed: int = 0
) -> tuple[Scan, Reference]:
    """The simple phantom, one coil without noise, under-sampled; and the truth."""
    image = make_phantom(frames, size, seed)
    mask = make_mask(pattern, tuple(image.shape), acceleration, acs)
    scan = Scan.from_arrays(fft2c(image), mask, source=Source(f"phantom{seed}", f"phantom {seed}"))
    return scan, Reference(image=image)
