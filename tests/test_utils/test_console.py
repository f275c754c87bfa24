"""What the installed commands do before the scripts that they run."""

import sys

import pytest

from configs.flags import run_command
from utils import arguments, console


@pytest.mark.parametrize(
    "entry,name,script",
    [(console.reconstruct, "gldm-reconstruct", "PCsampling_demo_svd.py"), (console.train, "gldm-train", "main.py")],
)
def test_commands_name_themselves(entry, name, script, monkeypatch, capsys):
    """In the command of the report, and in --help."""
    said = []

    def run_path(path, run_name):
        monkeypatch.setattr(sys, "argv", [path, "--seed", "3"])
        monkeypatch.setattr(sys.modules["__main__"], "__doc__", f"Does it: `python {script} --flag`.")
        said.append(arguments.command_line())
        monkeypatch.setattr(sys, "argv", [path, "--help"])
        with pytest.raises(SystemExit):
            run_command(lambda argv: None)

    monkeypatch.setattr(console.runpy, "run_path", run_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", [f"/venv/bin/{name}"])
    monkeypatch.setattr(arguments, "installed", "")
    entry()
    assert said == [f"{name} --seed 3"] and f"Does it: `{name} --flag`." in capsys.readouterr().out
