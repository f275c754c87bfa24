"""The examples run as their first lines say."""

from pathlib import Path

import nibabel
import pytest

from tests.commands import ROOT, command

EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path):
    done = command("-m", f"examples.{name}", cwd=tmp_path)
    written = Path(tmp_path) / {"reconstruct": "reconstruct.png", "from_file": "heart/reconstruction.nii.gz"}[name]
    assert written.stat().st_size > 1000 and "optimization unit: low rank along the motion" in done.stdout
    if name == "from_file":
        assert nibabel.load(written).shape == (64, 64, 1, 8)
