"""Imported before anything else by the commands: Ctrl-C while they import is one sentence, and no traceback."""

import os
import signal
import sys


def _leave(*_: object) -> None:
    sys.stderr.write("\ninterrupted before anything started.\n")
    os._exit(130)


signal.signal(signal.SIGINT, _leave)
