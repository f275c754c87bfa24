"""Command-line flags: --config with its fields, and one sentence for what cannot be used."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from absl import app, flags
from ml_collections.config_flags import config_flags

from configs.default import PARTS
from configs.renamed import current_arguments
from utils import arguments
from utils.errors import InputError

CODE = Path(__file__).parents[1]


def define_config(default: Path) -> None:
    """The flag --config, a configuration file, and --config.<part>.<field> for its fields."""
    words = "Configuration; any field: --config.<part>.<field>=value."
    with _one_sentence():  # fields are looked up when the flag is defined
        sys.argv = _with_config_found(current_arguments(sys.argv))
        config_flags.DEFINE_config_file("config", str(default), words)


def _with_config_found(argv: list[str]) -> list[str]:
    """`argv`; a relative --config missing from the current folder is replaced by the file beside the code."""
    found = list(argv)
    for number, argument in enumerate(found):
        flag, equals, path = argument.partition("=") if argument.startswith("-") else (found[number - 1], "", argument)
        if flag in ("--config", "-config") and path and not Path(path).exists() and (CODE / path).is_file():
            found[number] = f"{flag}={CODE / path}" if equals else str(CODE / path)
    return found


def _help(script: str, about: str) -> str:
    """The text `about` a script, for the installed command that runs it, if one does."""
    return about.replace(f"python {script}", arguments.installed) if arguments.installed else about


def run_command(main: Callable[[list[str]], None]) -> None:
    """`absl.app.run(main)`, with one sentence for a configuration or a flag that cannot be used."""

    def parse(argv: list[str]) -> list[str]:
        if {"--help", "-help", "-h"} & set(argv[1:]):  # absl would exit with 1
            script = sys.modules["__main__"]
            script.__doc__ = _help(Path(argv[0]).name, script.__doc__ or "")
            app.usage(shorthelp=True, writeto_stdout=True)
            print("\n--config.<part>.<field>=value sets any other option: docs/options.md lists them.")
            sys.exit(0)
        with _one_sentence():
            rest = flags.FLAGS(argv)
            if len(rest) > 1:
                raise flags.Error(f"unexpected argument {rest[1]}; give it with a flag, e.g. --data {rest[1]}")
        return rest

    app.run(main, flags_parser=parse)


def _elsewhere(words: str) -> str:
    """Where a field of this name is, for one who named another part or none."""
    name = words.split("'")[1] if words.count("'") > 1 else words
    places = [f"config.{part.part}.{one.name}" for part in PARTS for one in fields(part) if one.name == name]
    return f"; there is {' and '.join(places)}" if places else ""


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Exit with one sentence when flags or a configuration file, which is code and may raise anything, fail."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        unknown = isinstance(error, (AttributeError, KeyError))
        words = " ".join(str(error).split())
        if unknown:
            # a KeyError of a KeyError's text, quoted each time
            words = " ".join(words.replace("\\n", " ").replace("\\", "").strip("\"'").replace("' Did", ". Did").split())
            words = f"the configuration has no field {words}{_elsewhere(words)}"
        mend = "docs/options.md lists them" if unknown else "--help lists the flags"
        if not unknown and not isinstance(error, flags.Error) or "onfig" in words:
            mend = (
                "give --config=FILE.py, a file that defines get_config(), before any --config.<part>.<field>=value; "
                "docs/options.md lists the fields"
            )
        print(f"error: {words} ({mend}).", file=sys.stderr)
        sys.exit(2)
