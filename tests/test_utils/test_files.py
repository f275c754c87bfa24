import subprocess
import sys
from pathlib import Path

import pytest

from utils.errors import InputError, exit_on_input_error
from utils.files import atomic_folder, atomic_path, numbered_folder, refuse_existing, refuse_unwritable


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "table.csv"
    with atomic_path(path) as temporary:
        temporary.write_text("old")
        assert temporary.suffix == ".csv" and not path.exists()
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_a_folder_is_whole_or_not_there(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), atomic_folder(out) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    out.mkdir()
    (out / "mine").write_text("stays")
    (out / "a").write_text("old")
    with atomic_folder(out) as folder:
        (folder / "a").write_text("new")
    assert {p.name: p.read_text() for p in out.iterdir()} == {"mine": "stays", "a": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_numbered_folders_and_refusal(tmp_path):
    first, second = numbered_folder(tmp_path / "result"), numbered_folder(tmp_path / "result")
    assert (first.name, second.name) == ("0000", "0001")
    refuse_existing(first, overwrite=False)
    (first / "x").write_text("")
    with pytest.raises(InputError, match="--overwrite"):
        refuse_existing(first, overwrite=False)
    refuse_existing(first, overwrite=True)


def test_a_dangling_link_is_refused(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    for path in (tmp_path / "out", tmp_path / "out" / "here"):
        with pytest.raises(InputError, match="out is a symbolic link to .*gone, which is missing; repair the link"):
            refuse_unwritable(path)
    (tmp_path / "gone").mkdir()
    refuse_unwritable(tmp_path / "out" / "here")


@pytest.mark.parametrize(
    "error,code,words",
    [
        (InputError("scan.mat is empty."), 2, "error: scan.mat is empty."),
        (OSError(28, "No space left on device", "out/x"), 2, "error: out/x: No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_one_sentence_and_an_exit_code(error, code, words, capsys):
    def job():
        raise error

    with pytest.raises(SystemExit) as ended:
        exit_on_input_error(job)
    assert ended.value.code == code
    assert words in capsys.readouterr().err


def test_ctrl_c_while_importing_is_one_sentence():
    code = "import utils.interrupt, os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr.strip() == "interrupted before anything started."
