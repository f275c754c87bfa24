"""From a scan file to images for a viewer: `python -m examples.from_file [FILE] [FOLDER]`, in the project's folder.

Without a file, one is made: the built-in heart with four coils and noise, R = 4.
"""

import sys
from pathlib import Path

import numpy as np

from mri.formats.export import write_series
from mri.intake import scan_from_file
from mri.intake_settings import Intake
from mri.masks import make_mask
from mri.phantom import simulate_scan
from reconstruction.prepare import prepare
from reconstruction.settings import OUSettings, SamplingSettings
from sampling import reconstruct_problem
from utils.errors import InputError

path, folder = (Path(text) for text in (sys.argv[1:] + ["heart.npz", "heart"][len(sys.argv) - 1 :]))
if len(sys.argv) == 1 and not path.exists():
    simulated = simulate_scan("heart", frames=8, size=64, seed=0, coils=4, noise=0.01)
    mask = make_mask("uniform", (8, 64, 64), acceleration=4, acs=8)[:, None]
    np.savez(path, kspace=(simulated.kspace * mask).numpy(), noise=simulated.noise.numpy())

try:
    scan, _ = scan_from_file(Intake(), path)  # any format of docs/formats.md
except InputError as error:
    sys.exit(f"error: {error}")  # several slices: Intake(DataSettings(slice=0))
problem = prepare(scan)  # whitening, coil maps, scale, noise: y = A x + n
result = reconstruct_problem(problem, (None, None), OUSettings(), SamplingSettings(sampler="cascade"))
print(scan, *result.notes, sep="\n")

folder.mkdir(exist_ok=True)
print(*write_series(folder, ("nifti",), result.image.numpy(), scan.geometry, scan.name), sep="\n")
print(f"wrote {folder / 'reconstruction.nii.gz'}")
