"""Which form of an operation runs: Triton kernels for tensors on a GPU, PyTorch's own operations elsewhere.

The environment variable `GLDM_OPS` (`native` or `triton`) forces one. Triton is imported when it is first needed; no
import of this package compiles anything.
"""

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import TypeVar

import torch

from utils.errors import InputError
from utils.memory import is_out_of_memory

Tensor = torch.Tensor
Result = TypeVar("Result")

FORMS = ("native", "triton")
TYPES = (torch.float16, torch.bfloat16, torch.float32)  # of the kernels, which add up in float32

# module variables rather than calls of the system, so that torch.compile can trace what depends on them
_form = os.environ.get("GLDM_OPS", "")
_installed = importlib.util.find_spec("triton") is not None
_interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # on a CPU, for tests
_failed = False


def use_triton(x: Tensor) -> bool:
    """Whether an operation on `x` runs as a Triton kernel.

    Raises
    ------
    InputError
        for a `GLDM_OPS` that is unknown, or `triton` where it cannot run.
    """
    check(x.is_cuda)
    chosen = _form == "triton" or (_form == "" and x.is_cuda and _installed)
    return chosen and not _failed and x.dtype in TYPES


def check(gpu: bool) -> None:
    """Raise `InputError` for a `GLDM_OPS` that is unknown, or `triton` where it cannot run (`gpu`: on a GPU or not)."""
    if _form not in ("", *FORMS):
        raise InputError(f"GLDM_OPS is native or triton, or not set, not {_form!r}.")
    if _form == "triton":
        if not _installed:
            raise InputError("GLDM_OPS=triton, but Triton is not installed: pip install triton, or leave it unset.")
        if not (gpu or _interpreted):
            raise InputError("GLDM_OPS=triton needs a GPU (or, to test the kernels, TRITON_INTERPRET=1); unset it.")


@contextmanager
def forced(form: str) -> Iterator[None]:
    """`GLDM_OPS` set to `form` (empty: not set) within the block; for tests and benchmarks."""
    global _form
    before, _form = _form, form
    try:
        yield
    finally:
        _form = before


def run(kernel: Callable[[ModuleType], Result], native: Callable[[], Result]) -> Result:
    """`kernel(op.triton_kernels)`; when Triton fails, `native()`, and native from then on, with one warning."""
    global _failed
    if not _failed:
        try:
            return kernel(kernels())
        except Exception as error:  # whatever a compiler or a driver may raise
            if is_out_of_memory(error):
                raise
            _failed = True
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            warnings.warn(f"Triton fails here ({reason}); PyTorch's own operations are used instead.", stacklevel=2)
    return native()


@cache
def kernels() -> ModuleType:
    """`op.triton_kernels`, imported when first needed."""
    from op import triton_kernels

    return triton_kernels


def dense(x: Tensor) -> Tensor:
    """`x` `(batch, channels, height, width)` as the kernels read it: contiguous or channels-last, copied if need be."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()
