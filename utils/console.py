"""The installed commands: `gldm-reconstruct`, `gldm-train` and `gldm-formats` run what the package folder holds.

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


def formats() -> None:
    """`gldm-formats`: mri/formats/cli.py, as `python -m mri.formats`."""
    _run("mri/formats/__main__.py")


def _run(script: str) -> None:
    sys.path.insert(0, str(FOLDER))
    from utils import arguments  # the module of the script, which gldm.utils.arguments is not

    arguments.installed = Path(sys.argv[0]).stem  # the script's path takes its place
    runpy.run_path(str(FOLDER / script), run_name="__main__")
