"""One sentence for bad input, and a non-zero exit."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something the user gave cannot be used; the message names the file and the mend."""


def exit_on_input_error(job: Callable[[], None]) -> None:
    """Run `job`; when it cannot go on, print one sentence to stderr and exit: 2 for bad input, 130 for Ctrl-C.

    What the operating system refuses (no permission, no space, no folder) is bad input too.
    """
    try:
        job()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        # some libraries raise it with words only
        words = f"{error.filename}: {error.strerror}; give another place." if error.filename else str(error)
        print(f"error: {words}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted: what was not finished is not written.", file=sys.stderr)
        sys.exit(130)
