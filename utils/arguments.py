"""Command lines: types of their arguments, and the one that is running."""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

LARGEST_SEED = 2**32 - 1
installed = ""  # name of the installed command that is running, if one is (`utils.console`)


def integer_between(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: a whole number from low to high, both included."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text}")
        return value

    return parse


def command_line() -> str:
    """The command that is running, as one would type it."""
    if installed:
        return shlex.join([installed, *sys.argv[1:]])
    script = Path(sys.argv[0])
    if script.is_absolute() and script.is_relative_to(Path.cwd()):
        script = script.relative_to(Path.cwd())
    return shlex.join(["python", str(script), *sys.argv[1:]])
