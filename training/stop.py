"""How a training run is stopped: by SIGTERM or Ctrl-C."""

import contextlib
import os
import threading
import time
from signal import SIGINT, SIGTERM, signal


class StopRequest:
    """SIGTERM or Ctrl-C: finish the current step, write a checkpoint, stop. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked, self.status, self.first = False, 128 + SIGTERM, 0.0

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python gives signals to no other
            self.before = {number: signal(number, self._ask) for number in (SIGTERM, SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self.before.items():
                signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        again = self.asked and time.monotonic() - self.first > 0.2  # one request may arrive twice
        if number == SIGINT and again:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self.status, self.first = True, 128 + number, time.monotonic()
            with contextlib.suppress(OSError):  # of a pipe whose reader has ended; print is not safe in a handler
                os.write(2, b"\nstopping after this step; press Ctrl-C again to stop at once\n")


def leave_signals_to_parent(_: int) -> None:
    """Ctrl-C and torchrun signal a whole process group; loader workers leave it and go on until the step is done."""
    os.setpgid(0, 0)
