"""The process group of `torchrun`, begun and ended in order."""

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

PATIENCE = timedelta(hours=24)  # one process prepares the data, or finishes a scan, while the others wait


@contextmanager
def process_group(backend: str) -> Iterator[None]:
    """The default process group, whose threads have ended when the block is left.

    A thread of gloo that takes Python's lock while the interpreter ends is killed, and C++ then aborts the process
    ("terminate called without an active exception") although all work is done. The threads end with the last reference
    to the group. Default arguments of `torch.distributed.nn.functional`, which DDP imports, keep one for good if that
    module is first imported while a group exists; so it is imported before. DDP keeps others: it is dropped first,
    whether it lies in cycles or in the frames of an exception (a training that was asked to stop exits by one).
    """
    import torch.distributed.nn.functional  # noqa: F401

    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        gc.collect()
        dist.destroy_process_group()
