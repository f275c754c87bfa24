"""A batch that the memory does not hold."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from models.context import neighbours
from models.ncsnpp import NCSNpp
from models.prior import Prior
from mri.weighting import KspaceWeight
from tests.commands import ROOT
from utils.errors import InputError, exit_on_input_error
from utils.memory import within_memory


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


@pytest.fixture
def network():
    return NCSNpp(image_size=64, nf=8, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=())


@pytest.mark.parametrize(("holds", "told"), [(5, 4), (4, 4), (3, 2), (1, 1)])
def test_sampling_says_how_many_frames_fit(network, holds, told):
    prior = Prior(Holding(network, holds), KspaceWeight.published(), "", batch_size=8)
    x = torch.randn(10, 2, 64, 64)
    with pytest.raises(InputError, match=rf"8 frames .* {told} do: set sampling.batch_size={told}\."):
        prior.score(x, 0.5)
    expected = Prior(network, KspaceWeight.published(), "").score(x, 0.5)
    assert torch.allclose(replace(prior, batch_size=told).score(x, 0.5), expected, atol=1e-5)


def test_a_temporal_network_sees_all_frames_at_once_or_says_how_many():
    network = NCSNpp(image_size=64, nf=8, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), temporal=True)
    x, near = torch.randn(6, 2, 64, 64), neighbours(6, True)
    prior = Prior(Holding(network, 6), KspaceWeight.published(), "", batch_size=2)
    levels = torch.full((6,), 0.5)
    assert prior._run(x, levels, near).shape == x.shape
    with pytest.raises(InputError, match=r"6 frames .* 3 do: set data.frames=3\."):
        replace(prior, network=Holding(network, 4))._run(x, levels, near)


def test_nothing_fits(network):
    prior = Prior(Holding(network, 0), KspaceWeight.published(), "", batch_size=8)
    with pytest.raises(InputError, match=r"3 frames .* nor do fewer; free memory"):
        prior.score(torch.randn(3, 2, 64, 64), 0.5)


def test_other_errors_are_not_taken_for_memory():
    def broken():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        within_memory(broken, lambda count: None, 4, str)


def test_a_cpu_without_memory_too():
    """With an address space that holds some hundred MiB more than PyTorch itself."""
    program = """
import resource, torch
from utils.memory import within_memory
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
within_memory(lambda: torch.empty(2**30), lambda count: torch.empty(count * 2**24), 64, lambda count: f"take {count}")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert re.search(r"InputError: out of memory .*64 frames .* (\d) do: take \1\.", done.stderr), done.stderr


def test_a_full_gpu_elsewhere_is_one_sentence(capsys):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")

    with pytest.raises(SystemExit) as left:
        exit_on_input_error(full)
    told = capsys.readouterr().err
    assert left.value.code == 2 and "out of GPU memory (CUDA out of memory);" in told
