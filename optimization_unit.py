"""The optimization unit (OU): low rank with data consistency, and the settings it finds in the scan."""

from collections.abc import Sequence

import torch
from tqdm import tqdm

from mri.consistency import data_consistency, scan_scale
from mri.fourier import fft2c, ifft2c
from mri.holdout import hide
from mri.interleave import looks_periodic, pseudo_reference
from mri.locally_low_rank import LocallyLowRank, fista_locally_low_rank
from mri.lowrank import HankelLowRank
from mri.masks import lines_along_rows
from mri.weighting import DISTANCE_TO_DC
from utils.errors import InputError

Tensor = torch.Tensor

NOISE_FLOORS = (2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3)  # units of the scan's scale, see `with_noise_floor`
# a gain of 3 % on hidden samples, which lie near DC, has come with a loss of 0.4 dB in truth
FLOOR_MARGIN = 0.05


class OptimizationUnit:
    """Low rank, as `config.ou` says: `hankel` (structured, published), `llr` (locally low rank), or `both` in turn.

    `auto` is `hankel` with the published sampler and `llr`, which benchmarks/quality.py finds better, otherwise.
    """

    def __init__(self, config, seed: int = 0) -> None:
        ou = config.ou
        if ou.operator not in ("auto", "hankel", "llr", "both"):
            raise InputError(f"ou.operator '{ou.operator}' is unknown; choose auto, hankel, llr or both.")
        if ou.after not in ("both", "last", "never"):
            raise InputError(f"ou.after '{ou.after}' is unknown; choose both, last or never.")
        self.settings, self.seed = ou, seed
        automatic = "hankel" if config.sampling.sampler == "published" else "llr"
        self.operator = automatic if ou.operator == "auto" else ou.operator
        self.hankel = HankelLowRank(ou.window, ou.rank, ou.sweeps) if self.operator in ("hankel", "both") else None
        self.llr = None
        if self.operator in ("llr", "both"):
            self.llr = LocallyLowRank(ou.noise_floor, ou.patches, seed, ou.hard)

    def follows(self, last: bool) -> bool:
        """Whether the OU comes after this model, the last of its turn or not."""
        return self.settings.after == "both" or (last and self.settings.after == "last")

    def __call__(self, image: Tensor, strength: float = 1.0) -> Tensor:
        """One step on the images of a scan of unit scale, complex `(frames, height, width)`.

        `strength` 0 … 1 weakens it: the threshold of `llr` and the step of `hankel` towards low rank.
        """
        if self.llr is not None:
            image = self.llr(image, strength)
        if self.hankel is not None:
            image = image + strength * (self.hankel(image) - image)
        return image

    def alone(self, measured: Tensor, mask: Tensor, periodic: bool) -> Tensor:
        """k-space of a scan of unit scale by the OU without any network, from the nearest-in-time start.

        `llr`: FISTA. `hankel`: projection and data consistency in turn. `both`: the one after the other.
        """
        kspace, _ = pseudo_reference(measured, mask, "nearest", periodic=periodic)
        ou = self.settings
        if self.llr is not None:
            kspace = fista_locally_low_rank(
                kspace, measured, mask, ou.noise_floor, ou.patches, ou.llr_iterations, ou.anneal, self.seed, ou.hard
            )
        if self.hankel is not None:
            for _ in tqdm(range(ou.hankel_iterations), desc="OU (hankel)", leave=False, disable=None):
                kspace = data_consistency(fft2c(self.hankel(ifft2c(kspace))), measured, mask)
        return kspace

    def check(self, frames: int, height: int, width: int) -> None:
        """Raise `InputError` for a window, rank or patch that does not fit a scan of this shape."""
        if self.hankel is not None:
            self.hankel.check(frames, height, width)
        patches = self.settings.patches
        if self.llr is not None and not (patches and all(1 <= patch <= min(height, width) for patch in patches)):
            raise InputError(f"ou.patches {tuple(patches)} must lie between 1 and {min(height, width)} pixels.")


def optimization_unit_alone(kspace: Tensor, mask: Tensor, config, seed: int = 0) -> Tensor:
    """Image `(frames, height, width)` by the OU of `config` without any network; arguments as `reconstruct`."""
    if lines_along_rows(mask) is not mask:
        return optimization_unit_alone(kspace.mT, mask.mT, config, seed).mT
    scale = scan_scale(kspace, mask)
    measured = torch.where(mask, kspace, 0) / scale
    config = with_periodicity(config, measured, mask)
    config = with_noise_floor(config, measured, mask, seed)
    return ifft2c(OptimizationUnit(config, seed).alone(measured, mask, config.data.periodic)) * scale


def with_periodicity(config, measured: Tensor, mask: Tensor):
    """The configuration with `data.periodic`, where it is left open (None), found in the data."""
    if config.data.periodic is not None:
        return config
    found = config.copy_and_resolve_references()
    found.data.periodic = looks_periodic(measured, mask)
    return found


def with_noise_floor(config, measured: Tensor, mask: Tensor, seed: int):
    """The configuration with the `llr` noise floor, where it is left open (0), found on hidden samples.

    Of the floors tried, the one whose OU predicts the hidden samples best, errors weighted by their distance to
    DC: without that weight the ACS, which is never missing, would decide.
    """
    if config.ou.noise_floor > 0 or OptimizationUnit(config).llr is None:
        return config
    errors = _hidden_errors(NOISE_FLOORS, config, measured, mask, seed)
    if not errors:
        raise InputError("ou.noise_floor = 0 asks to find it, but the mask leaves no sample to hide; give a value.")
    return _with_floor(config, min(errors, key=errors.get))


def with_adapted_noise_floor(config, measured: Tensor, mask: Tensor, seed: int):
    """The configuration with another noise floor of `llr`, where it takes away FLOOR_MARGIN of the error.

    Of the OU on hidden samples, as `with_noise_floor` compares them; a mask that leaves none changes nothing.
    """
    if OptimizationUnit(config).llr is None:
        return config
    given = config.ou.noise_floor
    errors = _hidden_errors((given, *NOISE_FLOORS), config, measured, mask, seed)
    best = min(errors, key=errors.get, default=given)
    if not errors or errors[best] >= (1 - FLOOR_MARGIN) * errors[given]:
        return config
    return _with_floor(config, best)


def _hidden_errors(
    floors: Sequence[float], config, measured: Tensor, mask: Tensor, seed: int
) -> dict[float, float]:
    """What the OU of each noise floor leaves on hidden samples; nothing when the mask leaves none to hide."""
    config = with_periodicity(config, measured, mask)
    kept, hidden = hide(mask, seed=seed)
    if not hidden.any():
        return {}
    known, errors = torch.where(kept, measured, 0), {}
    for floor in floors:
        unit = OptimizationUnit(_with_floor(config, floor), seed)
        predicted = unit.alone(known, kept, config.data.periodic)
        errors[floor] = DISTANCE_TO_DC(predicted - measured)[hidden].norm().item()
    return errors


def _with_floor(config, floor: float):
    found = config.copy_and_resolve_references()
    found.ou.noise_floor = floor
    return found
