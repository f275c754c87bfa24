"""How a network is run: compiled, and in bfloat16 where that is safe."""

from collections.abc import Callable

import torch

Tensor = torch.Tensor

Score = Callable[..., Tensor]  # of x, σ and, where the network is temporal, the neighbours of every frame

PRECISIONS = ("fp32", "bf16")


def compiled(network: torch.nn.Module, device: torch.device | str) -> Score:
    """`torch.compile` for inference at few shapes; on a GPU the kernels are replayed as one CUDA graph a shape."""
    if torch.device(device).type != "cuda":
        return torch.compile(network, dynamic=False)
    graph = torch.compile(network, mode="reduce-overhead", dynamic=False)

    def replay(*inputs: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return graph(*inputs).clone()  # the next replay writes over it

    return replay


def in_precision(score: Score, precision: str, device: torch.device | str) -> Score:
    """`score` in `fp32`, or with its layers under autocast to `bf16`; its result is float32.

    Weights stay float32, and with them optimizer and average. The embedding of σ and the statistics of the
    normalisation stay float32 inside the network.
    """
    if precision == "fp32":
        return score

    def in_bfloat16(*inputs: Tensor) -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            return score(*inputs).float()

    return in_bfloat16
