"""Two jobs at once: two cores are used better by a job each than by both on one job after the other."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Result = TypeVar("Result")


class Stopped(Exception):
    """Nobody waits for the job of this thread any more."""


_own = threading.local()  # of the thread of a job: the event that asks it to stop


def leave_if_stopped() -> None:
    """To be called at every step of a job of `beside`: raises `Stopped` when its result is no longer wanted."""
    stop = getattr(_own, "stop", None)
    if stop is not None and stop.is_set():
        raise Stopped


@contextmanager
def beside(job: Callable[[], Result], device: torch.device) -> Iterator[Callable[[], Result]]:
    """Run `job` on half of PyTorch's threads, while the body of the `with` statement runs on the other half.

    Yields
    ------
    a function that waits for the job and returns its result, or raises what the job raised. On a GPU, or with one
    thread, there is nothing to share: it then runs the job itself, so a result that is not asked for costs nothing.

    When the body ends, or is interrupted by the user, a job whose result nobody has asked for is asked to stop, and
    waited for: it ends at its next `leave_if_stopped`.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads < 2:
        yield job
        return
    stop = threading.Event()

    def on_its_share() -> Result | None:
        _own.stop = stop
        torch.set_num_threads(threads // 2)  # of this thread
        try:
            leave_if_stopped()
            return job()
        except Stopped:  # here, so that no traceback keeps its images
            return None

    try:
        torch.set_num_threads(threads - threads // 2)
        with ThreadPoolExecutor(1) as pool:
            try:
                yield pool.submit(on_its_share).result  # type: ignore[misc]  # None of a stopped job alone
            finally:
                stop.set()
    finally:
        torch.set_num_threads(threads)
