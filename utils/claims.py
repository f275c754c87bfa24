"""Claims on scans: of the processes that share a folder of results, one at a time works on each scan."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def claim(out: Path, name: str, wait: bool = False) -> Iterator[bool]:
    """Whether this process may work on a scan: while it does, no other may. `wait` until nobody does."""
    path = out / f".{name}.lock"
    while True:
        with open(path, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            # who had it removed it: a lock on a file that is gone keeps nobody out
            if not (path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat())):
                continue
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
            return
