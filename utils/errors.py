"""One sentence for bad input, and a non-zero exit."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from absl import app, flags
from ml_collections.config_flags import config_flags


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
    except torch.OutOfMemoryError as error:
        words = str(error).split(". ")[0]
        print(f"error: the GPU's memory is full ({words}); free it, or take a smaller scan.", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        # some libraries raise it with words only
        words = f"{error.filename}: {error.strerror}; give another place." if error.filename else str(error)
        print(f"error: {' '.join(words.split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted: what was not finished is not written.", file=sys.stderr)
        sys.exit(130)


def define_config(default: Path) -> None:
    """The flag --config, a configuration file, and --config.<part>.<field> for its fields."""
    words = "Configuration; any field: --config.<part>.<field>=value."
    with _one_sentence():  # fields are looked up when the flag is defined
        config_flags.DEFINE_config_file("config", str(default), words)


def run_command(main: Callable[[list[str]], None]) -> None:
    """`absl.app.run(main)`, with one sentence for a configuration or a flag that cannot be used."""

    def parse(argv: list[str]) -> list[str]:
        with _one_sentence():
            rest = flags.FLAGS(argv)
            if len(rest) > 1:
                raise flags.Error(f"{rest[1]} is not a flag; name what it is, e.g. --data {rest[1]}")
        return rest

    app.run(main, flags_parser=parse)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Exit with one sentence when flags or a configuration file, which is code and may raise anything, fail."""
    try:
        yield
    except Exception as error:
        unknown = isinstance(error, (AttributeError, KeyError))
        words = " ".join(str(error).split())
        if unknown:
            # a KeyError of a KeyError's text, quoted each time
            words = " ".join(words.replace("\\n", " ").replace("\\", "").strip("\"'").replace("' Did", ". Did").split())
            words = f"the configuration has no field {words}"
        mend = "configs/default.py lists them" if unknown else "--help lists the flags"
        if not unknown and not isinstance(error, flags.Error) or "onfig" in words:
            mend = (
                "--config=FILE.py, a file with get_config(), comes first, then --config.<part>.<field>=value with "
                "the fields of configs/default.py"
            )
        print(f"error: {words} ({mend}).", file=sys.stderr)
        sys.exit(2)
