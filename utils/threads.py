"""Two jobs at once, which use two cores better than one job after the other with two threads each."""

import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import get_ident
from typing import TypeVar

import torch

Result = TypeVar("Result")


@contextmanager
def beside(job: Callable[[], Result], device: torch.device) -> Iterator[Callable[[], Result]]:
    """Run `job` on half of PyTorch's threads, while the body of the `with` statement runs on the other half.

    Yields
    ------
    a function that waits for the job and returns its result, or raises what the job raised. On a GPU, or with one
    thread, there is nothing to share: it then runs the job itself, so a result that is not asked for costs nothing.

    When the body ends, or is interrupted by the user, a job whose result nobody has asked for is stopped.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads < 2:
        yield job
        return
    thread: Future[int] = Future()

    def on_its_share() -> Result:
        thread.set_result(get_ident())
        torch.set_num_threads(threads // 2)  # of this thread
        return job()

    torch.set_num_threads(threads - threads // 2)
    try:
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(on_its_share)
            try:
                yield future.result
            finally:
                if not future.cancel() and not future.done():
                    # raised there as soon as the operation that is running has ended
                    stopped = ctypes.c_ulong(thread.result())
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(stopped, ctypes.py_object(SystemExit))
    finally:
        torch.set_num_threads(threads)
