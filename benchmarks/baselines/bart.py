"""The Berkeley Advanced Reconstruction Toolbox, through its command line (Debian package `bart`)."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from mri.operators import ForwardModel
from reconstruction.optimization_unit import with_samples
from reconstruction.prepare import Problem
from utils.errors import InputError

Tensor = torch.Tensor

LLR_STRENGTHS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005)  # λ, in units of the scan's scale
TV_STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
TIME = 10  # of BART's 16 dimensions; 0 and 1 are the image's, 3 the coils'


def bart_llr(problem: Problem, strength: float, patch: int = 8, iterations: int = 200) -> Tensor:
    """min over x of ½‖A x − y‖² + g λ Σ ‖patch of x‖_*, by BART: `pics -R L:3:3:λ -b 8` (FISTA).

    BART multiplies λ by g = √M + √N + √log(B max(M, N)) for B patches of M pixels and N frames, about the largest
    singular value of a patch of noise. Otherwise parameters and result as for `benchmarks.baselines.llr`.
    """
    return _reconstruct(problem, ["-R", f"L:3:3:{strength}", "-b", str(patch), "-i", str(iterations)])


def bart_tv(problem: Problem, strength: float, iterations: int = 200) -> Tensor:
    """min over x of ½‖A x − y‖² + λ ‖D x‖₁, D the differences in time, by BART: `pics -R T:1024:0:λ` (ADMM).

    Parameters and result as for `benchmarks.baselines.temporal_tv`.
    """
    return _reconstruct(problem, ["-R", f"T:{2**TIME}:0:{strength}", "-i", str(iterations)])


def why_not() -> str | None:
    """Why BART cannot be run here, or None when it can."""
    if shutil.which("bart") is None:
        return "the command `bart` is not installed (Debian and Ubuntu: apt-get install bart)"
    return None


def _reconstruct(problem: Problem, options: list[str]) -> Tensor:
    image = pics(problem.measured, problem.model, options).to(problem.measured)
    return with_samples(problem, image)


def pics(measured: Tensor, model: ForwardModel, options: list[str]) -> Tensor:
    """`bart pics` with the coil maps of the model, BART's own scaling off: `(frames, height, width)`.

    BART's Fourier transform is orthonormal and centred as ours is; its dimensions run from the fastest in memory, so
    that `(frames, coils, height, width)` are its dimensions 10, 3, 1 and 0.

    Raises
    ------
    InputError
        when BART is not installed or fails; with its own words.
    """
    if reason := why_not():
        raise InputError(f"BART cannot be compared with: {reason}.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_cfl(folder / "kspace", measured)
        _write_cfl(folder / "pattern", model.mask[:, None])
        _write_cfl(folder / "maps", model.maps[None])
        command = ["bart", "pics", *options, "-w", "1", "-p", "pattern", "kspace", "maps", "image"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise InputError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}")
        image = np.fromfile(folder / "image.cfl", np.complex64)
    return torch.from_numpy(image).reshape(len(measured), *measured.shape[2:])


def _write_cfl(path: Path, array: Tensor) -> None:
    """`(frames, coils, height, width)` as BART's pair of files: a header in words, complex64 values."""
    frames, coils, height, width = array.shape
    dimensions = [width, height, 1, coils, *[1] * (TIME - 4), frames, *[1] * (15 - TIME)]
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{' '.join(map(str, dimensions))}\n")
    array.cpu().to(torch.complex64).numpy().tofile(path.with_suffix(".cfl"))
