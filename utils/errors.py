"""One sentence for bad input, and a non-zero exit."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something the user gave cannot be used; the message names the file and the mend."""


def exit_on_input_error(job: Callable[[], None]) -> None:
    """Run `job`; on `InputError` print its one sentence to stderr and exit with code 2."""
    try:
        job()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
