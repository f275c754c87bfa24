"""How a training is asked to end: by SIGTERM or Ctrl-C."""

import os
import threading
import time
from signal import SIG_IGN, SIGINT, SIGTERM, signal


class StopRequest:
    """SIGTERM or Ctrl-C asks the training to write a checkpoint after the step at hand, and to end; a second Ctrl-C
    ends it at once.
    """

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
        again = self.asked and time.monotonic() - self.first > 1  # torchrun passes on what the terminal sent already
        if number == SIGINT and again:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self.status, self.first = True, 128 + number, time.monotonic()
            os.write(2, b"\nstopping after this step; Ctrl-C ends it at once\n")  # print is not safe in a handler


def leave_interrupts_to_parent(_: int) -> None:
    """Ctrl-C reaches all processes of a terminal; those that make data go on until the step at hand is done."""
    signal(SIGINT, SIG_IGN)
