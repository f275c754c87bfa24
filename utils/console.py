"""The installed commands: `gldm-reconstruct` and `gldm-train` run the scripts of the package folder.

All modules keep the names they have in the project (`datasets`, `models`, …). To shadow nobody's, the wheel installs
them inside one package, `gldm`, and these commands put its folder first on the path of their own process.
"""

import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1]


def reconstruct() -> None:
    """`gldm-reconstruct`: PCsampling_demo_svd.py."""
    _run("PCsampling_demo_svd.py")


def train() -> None:
    """`gldm-train`: main.py."""
    _run("main.py")


def _run(script: str) -> None:
    sys.path.insert(0, str(FOLDER))
    runpy.run_path(str(FOLDER / script), run_name="__main__")
