"""One sentence for bad input, and a non-zero exit."""

import signal
import sys
from collections.abc import Callable

import torch


class InputError(ValueError):
    """Something the user gave cannot be used; the message names the file and the mend."""


def exit_on_input_error(job: Callable[[], None]) -> None:
    """Run `job`; when it cannot go on, print one sentence to stderr and exit: 2 for bad input, 130 for Ctrl-C.

    What the operating system refuses (no permission, no space, no folder) is bad input too. A request to end
    (SIGTERM) unwinds as Ctrl-C does, so that no temporary file stays.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on Ctrl-C unwinds, see `utils.interrupt`
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        job()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except torch.OutOfMemoryError as error:
        words = str(error).split(". ")[0]
        print(f"error: out of GPU memory ({words}); free some, or use a smaller scan.", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        # some libraries raise it with words only
        words = f"{error.filename}: {error.strerror}; choose another path." if error.filename else str(error)
        print(f"error: {' '.join(words.split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted: unfinished results were not written.", file=sys.stderr)
        sys.exit(130)
