"""From a scan to the problem y = A x + n: every decision is made once, here, and said in one sentence."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from mri import coils
from mri.checks import edge_remarks, without_spikes
from mri.fourier import ifft2c
from mri.holdout import HeldOut, copies_of, hold_out_sets, repeats_of
from mri.masks import lines_along_rows
from mri.noise import estimate_noise_std, std_of
from mri.operators import ForwardModel
from mri.oversampling import crop_rows
from mri.scan import Reference, Scan
from mri.view_sharing import looks_periodic, share_views, temporal_mean
from reconstruction.settings import PrepareSettings
from utils.errors import InputError

Tensor = torch.Tensor


@dataclass(frozen=True)
class Problem:
    """What the stages of a reconstruction solve, at unit scale.

    Attributes
    ----------
    model
        A: mask `(frames, ky, kx)`, sampled lines along kx, and maps `(virtual coils, height, width)`.
    measured
        y: complex64 `(frames, virtual coils, ky, kx)`, 0 outside the mask.
    scale
        y and x times this are in the units of the input.
    periodic
        whether the last frame is followed by the first.
    noise_std
        σ of a complex sample of y.
    noise_known
        whether σ was measured or given; False: estimated from the edge of k-space.
    noise_bound
        σ as estimated from the scan, which contains noise of simulated images, too: an upper bound.
    turned
        whether rows and columns of the scan are exchanged here.
    rows
        of the finished images, in the scan's orientation: fewer than the model has where the phase was oversampled.
    matrix
        complex64 `(virtual coils, coils)`: whitening and compression of the scan's coils.
    notes
        one sentence for each decision.
    """

    model: ForwardModel
    measured: Tensor
    scale: float
    periodic: bool
    noise_std: float
    noise_known: bool
    noise_bound: float
    turned: bool
    rows: int
    matrix: Tensor
    notes: tuple[str, ...]

    @property
    def frames(self) -> int:
        return len(self.measured)

    @property
    def snr(self) -> float:
        """Brightest tissue (the scale) over σ."""
        return 1 / self.noise_std if self.noise_std else float("inf")

    @property
    def held_out_noise(self) -> float:
        """σ that is subtracted from errors at held-out samples: none where it is but an upper bound."""
        return self.noise_std if self.noise_known else 0.0

    def held_out(self, seed: int) -> HeldOut:
        """The sets of samples to hold out, see `mri.holdout.hold_out_sets`.

        Frames that are copies or repeats of each other are held out together; repeats only if that leaves enough.
        """
        mask = self.model.mask
        copies = copies_of(self.measured, mask)
        found = hold_out_sets(mask, seed, copies | repeats_of(self.measured, mask, self.noise_std))
        return found if found.settings.any() else hold_out_sets(mask, seed, copies)

    def restricted(self, kept: Tensor) -> "Problem":
        """The problem of the samples in `kept`, boolean `(frames, ky, kx)`."""
        model = self.model.restricted(kept)
        return replace(self, model=model, measured=torch.where(model.mask[:, None], self.measured, 0))

    def view_sharing(self, window: str = "nearest", local_window: int = 4) -> Tensor:
        """Images `(frames, height, width)` of the shared views, see `mri.view_sharing.share_views`."""
        if (window, local_window) == ("nearest", 4):
            return self._nearest_views
        return self._views(window, local_window)

    @cached_property
    def _nearest_views(self) -> Tensor:
        """Asked for several times in a reconstruction, and slow where no frame has all samples."""
        return self._views("nearest", 4)

    def _views(self, window: str, local_window: int) -> Tensor:
        filled, _ = share_views(self.measured, self.model.mask, window, local_window, self.periodic)
        return self.model.combine(filled)

    def finished(self, image: Tensor) -> Tensor:
        """An image of the problem in the input's units and orientation, on the CPU."""
        image = (image * self.scale).cpu()
        return crop_rows(image.mT if self.turned else image, self.rows).contiguous()

    def finished_maps(self) -> Tensor:
        """The maps in the input's orientation, on the CPU."""
        maps = self.model.maps.cpu()
        return crop_rows(maps.mT if self.turned else maps, self.rows).contiguous()

    def reference_image(self, reference: Reference) -> Tensor:
        """The fully sampled images, in the input's units: `(frames, height, width)`.

        Of several coils the root of the sum of squares of the same whitened, compressed coils, less the mean power of
        their noise where it is known, which would brighten the background.
        """
        return crop_rows(self._reference_image(reference), self.rows)

    def _reference_image(self, reference: Reference) -> Tensor:
        if reference.image is not None:
            return reference.image
        if reference.kspace is None:
            raise ValueError("a reference is an image or k-space")
        if reference.kspace.shape[1] == 1:
            return ifft2c(reference.kspace[:, 0])
        virtual = coils.apply_matrix(self.matrix, reference.kspace, axis=1)
        power = coils.root_sum_of_squares(ifft2c(virtual)).square()
        noise = self.noise_std * self.scale if self.noise_known else 0.0
        return (power - len(self.matrix) * noise**2).clamp(min=0).sqrt()


# share of the temporal mean that given maps leave unexplained beyond estimated ones: of true maps 0.03 at most, rolled
# by 3 of 64 pixels 0.11, by 10 of 64 0.48, by 10 of 96 0.3 (tests/test_reconstruction/test_prepare.py)
DOUBTFUL_MAPS, WRONG_MAPS = 0.06, 0.2
NOISY_COIL = 6.0  # times the noise of the other coils
HARDLY_ANY = 3  # peak SNR
ROUNDING = 1e-6  # of the scale: an estimate below it is single precision, not noise
NOISE_EXCESS = 1.5  # given σ over the estimate at the edge of k-space, which signal raises but nothing lowers


def prepare(scan: Scan, settings: PrepareSettings | None = None, device: torch.device | str = "cpu") -> Problem:
    """Whiten, compress and combine the coils, find scale, orientation, periodicity and noise.

    The image is normalised so that |x| is the root of the sum of squares of the whitened coils times their mean noise.

    Raises
    ------
    InputError
        for maps or noise samples that do not fit the scan, or a scan without signal.
    """
    settings = settings or PrepareSettings()
    scan, notes, alive = _without_dead_coils(scan)
    scan, more = without_spikes(scan)
    if scan.readout_oversampling != 1:
        notes.append(
            f"readout oversampling ({scan.readout_oversampling:.3g}) removed: {scan.kspace.shape[-1]} samples become "
            f"{scan.matrix[1]}"
        )
        scan = scan.without_oversampling()
    rows = scan.matrix[0]
    if scan.phase_oversampling != 1:
        notes.append(
            f"phase oversampling ({scan.phase_oversampling:.3g}): the finished images are cropped from "
            f"{scan.kspace.shape[2]} rows to {rows}"
        )
    notes += more + scan.check()
    turned = lines_along_rows(scan.mask) is not scan.mask
    if turned:
        scan = scan.turned()
    scan, matrix, noise_std, known, more = _white_coils(scan.to(device), settings)
    notes += more
    matrix = torch.zeros(len(matrix), len(alive), dtype=matrix.dtype).index_copy_(1, alive.nonzero().flatten(), matrix)
    kspace, mask, maps = scan.kspace, scan.mask, scan.coil_maps
    if scan.coils > 1:
        maps, sentences = _maps(kspace, mask, maps, settings.maps)
        notes += sentences.splitlines()
        model = ForwardModel(mask, maps)
    else:
        model = ForwardModel.of_one_coil(mask)
    scale = scan_scale(kspace, model)
    notes += edge_remarks(model.combine(temporal_mean(kspace, mask)[None])[0].abs())
    periodic, said = _is_periodic(scan, settings.periodic)
    notes += said
    estimate = estimate_noise_std(kspace, mask)
    if estimate < ROUNDING * scale:
        estimate = 0.0
    if noise_std is None:
        noise_std = estimate
    elif noise_std > NOISE_EXCESS * estimate > 0:
        notes.append(
            f"warning: σ = {noise_std:.3g} exceeds the upper bound estimated from the scan, {estimate:.3g}, which is "
            "used instead. Check that the noise samples (or --noise_std) and k-space have the same units and bandwidth."
        )
        noise_std, known = estimate, False
    if noise_std:
        sampled = scan.noise_samples is not None and scan.noise_std is None
        origin = "estimated from the scan, usually an upper bound"
        hint = "; give --noise_std or noise samples if you have them: with an estimate, thresholds and decisions are "
        hint += "more cautious"
        if known:
            origin, hint = "from noise samples" if sampled else "as given", ""
        notes.append(
            f"noise: σ = {noise_std:.3g} per complex k-space sample ({origin}); peak SNR {scale / noise_std:.0f}{hint}"
        )
        if scale < HARDLY_ANY * noise_std:
            notes.append(
                f"warning: the peak SNR is below {HARDLY_ANY}; expect little more than the temporal mean of the images"
            )
    else:
        notes.append("noise: none")
    return Problem(
        model, kspace / scale, scale, periodic, noise_std / scale, known, estimate / scale, turned, rows, matrix,
        tuple(notes),
    )  # fmt: skip


def _is_periodic(scan: Scan, asked: bool | None) -> tuple[bool, list[str]]:
    """Whether the last frame is followed by the first, and why not where the file itself rules it out."""
    if asked is not None:
        return asked, []
    if scan.real_time:
        return False, ["the frames are a real-time series, so the series is not treated as cyclic"]
    if scan.geometry.irregular:
        return False, ["the frame times are irregular, so the series is not treated as cyclic"]
    return looks_periodic(scan.kspace, scan.mask), []


def scan_scale(kspace: Tensor, model: ForwardModel) -> float:
    """The number that a scan is divided by: 99.9th percentile of |image of its temporal mean k-space|.

    From the measured samples alone, `(frames, coils, ky, kx)`.

    Raises
    ------
    InputError
        when every measured sample is zero.
    """
    magnitude = model.combine(temporal_mean(kspace, model.mask)[None]).abs().flatten()
    scale = torch.quantile(magnitude, 0.999).item()
    if scale == 0:
        raise InputError("every measured sample of the scan is zero; check the mask and the k-space.")
    return scale


def _without_dead_coils(scan: Scan) -> tuple[Scan, list[str], Tensor]:
    """Leave out coils that are zero everywhere, and name them; also which are left, boolean `(coils,)`."""
    power = scan.kspace.abs().amax(dim=(0, 2, 3))
    alive = power > 0
    if scan.coils == 1 or alive.all():
        return scan, [], torch.ones(scan.coils, dtype=torch.bool)
    if not alive.any():
        raise InputError("every measured sample of the scan is zero; check the mask and the k-space.")
    keep = alive.nonzero().flatten()
    dead = (~alive).nonzero().flatten().tolist()
    names = ", ".join(map(str, dead))
    noise = None if scan.noise_samples is None else scan.noise_samples[keep.cpu()]
    maps = None if scan.coil_maps is None else scan.coil_maps[keep]
    scan = replace(scan, kspace=scan.kspace[:, keep], noise_samples=noise, coil_maps=maps)
    plural = "s" if len(dead) > 1 else ""
    has, are = ("have", "are") if plural else ("has", "is")
    return scan, [f"coil{plural} {names} (counting from 0) {has} no signal and {are} left out"], alive.cpu()


def _white_coils(
    scan: Scan, settings: PrepareSettings
) -> tuple[Scan, Tensor, float | None, bool, list[str]]:
    """The scan in white virtual coils, the matrix to them, σ where it is known, and sentences."""
    notes: list[str] = []
    given = scan.noise_std
    noise_std, matrix = given, torch.eye(scan.coils, dtype=torch.complex64)
    if scan.noise_samples is not None:
        if len(scan.noise_samples) != scan.coils:
            raise InputError(
                f"the noise samples are of {len(scan.noise_samples)} coils and the scan has {scan.coils}; give the "
                "noise scan of the same coils."
            )
        if scan.coils > 1:
            matrix, measured = coils.whitening_matrix(scan.noise_samples)
            notes.append(f"coils pre-whitened with {scan.noise_samples.shape[1]} noise samples per coil")
        else:
            measured = std_of(scan.noise_samples)
        if scan.averages is not None:  # which the samples are the mean of
            measured *= (1 / scan.averages[scan.mask].clamp(min=1)).mean().sqrt().item()
        noise_std = measured if given is None else given
    kspace, maps = scan.kspace, scan.coil_maps
    if scan.coils == 1:
        if maps is not None and len(maps) > 1:
            raise InputError(
                f"{len(maps)} coil maps were given for k-space of one coil; give the k-space of all coils, "
                "(frames, coils, height, width), or no maps."
            )
        return scan, matrix, noise_std, noise_std is not None, notes
    kspace = coils.apply_matrix(matrix, kspace, axis=1)
    level = estimate_noise_std(kspace, scan.mask)
    if noise_std is not None and not noise_std > NOISE_EXCESS * level > 0:  # else it is refused below
        level = noise_std
    if scan.noise_samples is None:
        notes += _noisy_coils(kspace, scan.mask)
    if settings.virtual_coils > scan.coils:
        raise InputError(f"{settings.virtual_coils} virtual coils are more than the {scan.coils} coils of the scan.")
    compressed = coils.compression(kspace, scan.mask, level, settings.virtual_coils)
    kspace = coils.apply_matrix(compressed.matrix, kspace, axis=1)
    matrix = compressed.matrix.cpu() @ matrix
    notes.append(
        f"{scan.coils} coils compressed to {len(matrix)} virtual coils retaining {compressed.energy:.1%} of the signal "
        "energy"
    )
    kind = "coils" if scan.noise_samples is None else "pre-whitened coils, rescaled"
    notes.append(f"image intensity: root sum of squares of the {kind}, in input units")
    if maps is not None:
        maps = coils.apply_matrix(matrix, maps, axis=0)
    return replace(scan, kspace=kspace, coil_maps=maps), matrix, noise_std, noise_std is not None, notes


def _noisy_coils(kspace: Tensor, mask: Tensor) -> list[str]:
    """Coils with much more noise than the others, which compression would take for signal."""
    levels = [estimate_noise_std(kspace[:, coil : coil + 1], mask) for coil in range(kspace.shape[1])]
    usual = sorted(levels)[len(levels) // 2 - (len(levels) + 1) % 2]
    return [
        f"warning: coil {coil} (counting from 0) has {level / usual:.0f} times the noise of the others; remove "
        "it from the file, or give noise samples, so that pre-whitening down-weights it"
        for coil, level in enumerate(levels) if level > NOISY_COIL * usual > 0
    ]  # fmt: skip


def _given_maps(given: Tensor, images: Tensor, name: str) -> tuple[Tensor, str]:
    """Maps that came with the scan, completed where they are zero and checked against the coil images of its mean.

    `name` of their file begins an error.
    """
    given = coils.normalised(given)
    estimated = coils.refined_maps(images, coils.walsh_maps(images))
    empty = ~given.abs().square().sum(dim=0).bool()
    share = empty.double().mean().item()
    if share == 1:
        raise InputError(f"{name}the coil maps are zero everywhere; give the maps of this scan, or omit --maps.")
    # the object must not be cut at a support mask: lungs and motion ghosts carry signal, too
    maps = torch.where(empty, estimated, given)
    left, least = coils.unexplained(maps, images), coils.unexplained(estimated, images)
    excess = math.sqrt(max(left**2 - least**2, 0))
    compared = f"they leave {left:.0%} of the temporal mean unexplained, maps estimated from the scan {least:.0%}"
    if excess > WRONG_MAPS:
        raise InputError(
            f"{name}the coil maps do not belong to this scan: {compared}. They may be shifted, flipped, or in another "
            "order of coils; correct them, or omit --maps to estimate them from the scan."
        )
    note = "coil maps: as given, normalised to ΣS*S = 1"
    if share:
        note += f"; estimated from the scan at the {share:.0%} of the pixels where they are zero"
    if excess > DOUBTFUL_MAPS:
        note = f"warning: the coil maps fit this scan poorly: {compared}. Omit --maps to estimate them.\n{note}"
    return coils.with_smooth_phase(maps, images.abs().square().sum(dim=0)), note


def _maps(kspace: Tensor, mask: Tensor, given: Tensor | None, method: str) -> tuple[Tensor, str]:
    """Coil maps of white virtual coils, and how they were found."""
    mean, measured = temporal_mean(kspace, mask), mask.any(dim=0)
    images = ifft2c(mean)
    if given is not None:
        if given.shape != images.shape:
            raise InputError(
                f"the coil maps are {tuple(given.shape)} and the scan needs (coils, height, width) = "
                f"{tuple(images.shape)}; give maps of the same coils and matrix."
            )
        return _given_maps(given, images, "" if method in ("auto", "walsh", "espirit") else f"{method}: ")
    rows, columns = (measured.any(dim=axis).nonzero().flatten() for axis in (1, 0))
    # a partial echo or partial Fourier lowers the resolution of the maps alone, gaps alias them
    complete = bool(measured[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())
    region = coils.calibration_region(measured)
    if method == "auto":
        method = "walsh" if complete or region < coils.SMALLEST_CENTRE else "espirit"
    if method == "walsh":
        note = "" if complete else f"; {(~measured).double().mean():.0%} of k-space is measured in no frame"
        maps = coils.refined_maps(images, coils.walsh_maps(images))
        return maps, f"coil maps: Walsh's method on the temporal mean at full resolution, refined by a local fit{note}"
    if method != "espirit":
        raise InputError(f"--maps {method}: choose walsh, espirit or an existing file.")
    if region < coils.SMALLEST_CENTRE:
        return coils.refined_maps(images, coils.walsh_maps(images)), (
            f"coil maps: the fully sampled centre of k-space is {region} samples wide, too small for ESPIRiT (at least "
            f"{coils.SMALLEST_CENTRE}); Walsh's method on the temporal mean is used instead"
        )
    side = min(region, coils.ESPIRIT_REGION)
    words = f"coil maps: ESPIRiT on the central {side} x {side} samples of the temporal mean"
    return coils.espirit_maps(mean, side), words

