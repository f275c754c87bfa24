"""A batch that the memory does not hold: which one it would hold."""

from collections.abc import Callable
from typing import TypeVar

import torch

from utils.errors import InputError

Result = TypeVar("Result")


def within_memory(
    job: Callable[[], Result],
    attempt: Callable[[int], object],
    frames: int,
    mend: Callable[[int], str],
    least: int = 1,
    otherwise: str = "use",
) -> Result:
    """`job()`, on `frames` frames at once.

    Parameters
    ----------
    attempt
        the same work on so many frames, to find how many the memory holds.
    mend
        what to do when it holds so many.
    least
        frames that belong together; only multiples are tried.
    otherwise
        what to do when not even these fit, before "a smaller network or scan".

    Raises
    ------
    InputError
        when the memory does not hold them: half, a quarter, … of them are tried to say how many it does.
    """
    try:
        return job()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # here, the exception is gone, and with it all that the job held
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else "this machine"
    told = f"out of memory on {place}: {frames} frames per network pass do not fit"
    count = frames
    while count > least:
        count = max(count // 2 // least, 1) * least
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            attempt(count)
            raise InputError(f"{told}, {count} do: {mend(count)}.")
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
    raise InputError(f"{told}, nor do fewer; free memory, or {otherwise} a smaller network or scan.")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch found no memory, on a GPU or on a CPU, where it has no type of exception for that."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
