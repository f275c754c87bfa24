"""One sentence for bad input, and a non-zero exit."""

import signal
import sys
from collections.abc import Callable

from absl import app, flags


class InputError(ValueError):
    """Something the user gave cannot be used; the message names the file and the mend."""


def exit_on_input_error(job: Callable[[], None]) -> None:
    """Run `job`; when it cannot go on, print one sentence to stderr and exit: 2 for bad input, 130 for Ctrl-C.

    What the operating system refuses (no permission, no space, no folder) is bad input too. A request to end
    (SIGTERM) unwinds as Ctrl-C does, so that no temporary file stays.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
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


def run_command(main: Callable[[list[str]], None]) -> None:
    """`absl.app.run(main)`, with one sentence for a configuration or a flag that cannot be used."""

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
        except (flags.Error, SystemExit):
            raise  # absl says these well
        except Exception as error:  # a configuration file is code and may raise anything
            words = str(error.args[0] if error.args else error).strip().splitlines()[0]
            print(
                f"error: --config or one of its fields cannot be used ({words}); give a Python file with "
                "get_config(), and fields of configs/default.py.",
                file=sys.stderr,
            )
            sys.exit(2)
        if len(rest) > 1:
            print(
                f"error: {rest[1]} is not a flag; name what it is, e.g. --data {rest[1]} (--help lists the flags).",
                file=sys.stderr,
            )
            sys.exit(2)
        return rest

    app.run(main, flags_parser=parse)
