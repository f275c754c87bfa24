"""Types of command-line arguments."""

import argparse
from collections.abc import Callable

LARGEST_SEED = 2**32 - 1


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
