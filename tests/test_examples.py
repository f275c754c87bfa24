"""The examples run as their first lines say."""

import subprocess
import sys
from pathlib import Path

import nibabel
import pytest

from tests.commands import ROOT

EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path):
    run = f"runpy.run_module('examples.{name}', run_name='__main__')"
    code = f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); {run}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    written = Path(tmp_path) / {"reconstruct": "reconstruct.png", "from_file": "heart/reconstruction.nii.gz"}[name]
    assert written.stat().st_size > 1000 and "optimization unit: low rank along the motion" in done.stdout
    if name == "from_file":
        assert nibabel.load(written).shape == (64, 64, 1, 8)
