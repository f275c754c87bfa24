"""`python -m mri.formats FILE`."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mri.formats.cli import main
from mri.fourier import fft2c
from mri.phantom import make_coil_maps, make_phantom


def run(capsys, *arguments):
    """Exit code, output and error."""
    code = 0
    try:
        main([str(one) for one in arguments])
    except SystemExit as ended:
        code = ended.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def signals():
    """`main` changes what SIGINT and SIGTERM do."""
    import signal

    held = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    yield
    for one, handler in held.items():
        signal.signal(one, handler)


def test_what_is_in_a_file(tmp_path, capsys, signals):
    image = make_phantom(6, 64, 3).numpy()
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["image"], file["tr"] = image, [2.5]
        file["elsewhere"] = h5py.ExternalLink("other.h5", "x")
    code, out, _ = run(capsys, tmp_path / "scan.h5")
    assert code == 0
    for words in ("image (6, 64, 64) complex64", "tr (1,)", "'elsewhere' is a link", "a complex image", "mask: net"):
        assert words in out
    np.savez(tmp_path / "scan.npz", image=image, other=np.ones(3))
    code, out, _ = run(capsys, tmp_path / "scan.npz", "--frames_axis", 0)
    assert code == 0 and "other (3,) float64" in out and "frames along axis 0" in out


def test_pairs_of_coils_and_slices(tmp_path, capsys, signals):
    kspace = fft2c(make_phantom(6, 64, 3)[:, None] * make_coil_maps(4, 64, 64))
    np.save(tmp_path / "scan.npy", torch.view_as_real(kspace).numpy())
    code, out, _ = run(capsys, tmp_path / "scan.npy")
    assert code == 0 and "joined along axis 4" in out and "6 frames of 4 coils, 64 x 64" in out
    np.save(tmp_path / "scan.npy", torch.view_as_real(torch.stack([kspace, kspace])).numpy())
    code, out, _ = run(capsys, tmp_path / "scan.npy", "--frames_axis", 1, "--coils_axis", 2)
    assert code == 0 and "2 slices" in out and "slice 0 of 2 along axis 0" in out and "6 frames of 4 coils" in out


def test_a_bad_file_is_one_sentence(tmp_path, capsys, signals):
    torch.save({"a": 1}, tmp_path / "scan.npy")
    (tmp_path / "empty.h5").write_bytes(b"")
    for name in ("scan.npy", "empty.h5", "none.mat"):
        code, _, err = run(capsys, tmp_path / name)
        assert code == 2 and err.count("\n") == 1 and str(tmp_path / name) in err


def test_as_a_module(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "mri.formats", str(tmp_path / "none.mat")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "does not exist" in done.stderr
