"""The data types of a scan: what was measured, and the reference that a score may use afterwards."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from mri.geometry import Geometry
from mri.masks import fit_mask
from mri.oversampling import crop_readout, cropped_matrix
from utils.errors import InputError

Tensor = torch.Tensor

ARRAYS = ("noise_samples", "averages", "coil_maps")
SMALLEST = 1e-12  # largest k-space sample of a scan at least: squares and products of samples stay within float32


@dataclass(frozen=True)
class Source:
    """Where a scan comes from."""

    name: str  # names the folder of its results
    found: str = ""  # what was read and how it is taken, for a person
    path: str = ""
    format: str = ""
    sha256: str = ""  # of the file; empty for the embedded scan
    header_file: str = ""  # DICOM: one of the images that were read


@dataclass(frozen=True)
class Scan:
    """What the scanner gives, y = A x + n. The coil axis is always there.

    Attributes
    ----------
    kspace
        complex64 `(frames, coils, ky, kx)`, centred, 0 where nothing was measured; one coil for combined data.
    mask
        boolean `(frames, ky, kx)`, the same for every coil.
    noise_samples
        complex64 `(coils, n)` measured without signal, scaled to the bandwidth of the imaging samples; or None.
    noise_std
        σ of a complex sample of one coil, E|n|² = σ², in the units of `kspace`; None where unknown.
    averages
        `(frames, ky, kx)`: the variance of a sample is σ²/averages; None for 1 everywhere.
    coil_maps
        complex64 `(coils, height, width)` of the coils as stored; None to estimate them.
    readout_oversampling
        factor by which the readout, kx, is oversampled; `reconstruction.prepare` crops it.
    phase_oversampling
        factor by which the field of view along ky exceeds the prescribed one; the finished images are cropped to that,
        k-space is not: aliasing along ky is resolved in the whole field of view.
    real_time
        whether the frames follow each other in time and are not the phases of one heartbeat.
    remarks
        what is doubtful in how the scan was stored; `check` repeats it.
    """

    kspace: Tensor
    mask: Tensor
    noise_samples: Tensor | None = None
    noise_std: float | None = None
    averages: Tensor | None = None
    coil_maps: Tensor | None = None
    readout_oversampling: float = 1.0
    phase_oversampling: float = 1.0
    real_time: bool = False
    remarks: tuple[str, ...] = ()
    geometry: Geometry = field(default_factory=Geometry)
    source: Source = field(default_factory=lambda: Source("scan"))

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def coils(self) -> int:
        return self.kspace.shape[1]

    @property
    def matrix(self) -> tuple[int, int]:
        """Height and width of the finished images."""
        height, width = self.kspace.shape[2:]
        return cropped_matrix(height, self.phase_oversampling), cropped_matrix(width, self.readout_oversampling)

    def without_oversampling(self) -> "Scan":
        """The scan of the central field of view along the readout."""
        if self.readout_oversampling == 1:
            return self
        kspace, mask = crop_readout(self.kspace, self.mask, self.readout_oversampling)
        averages = self.averages
        if averages is not None:  # a line was measured as often at each of its samples
            averages = averages.amax(dim=-1, keepdim=True).expand(mask.shape).contiguous()
        return replace(self, kspace=kspace, mask=mask, averages=averages, readout_oversampling=1.0)

    def __str__(self) -> str:
        remark = ""
        if self.mask.all():
            remark = "; fully sampled"
        elif (self.mask == self.mask[0]).all():
            remark = "; the same in every frame, so view sharing cannot fill what is missing"
        net = 1.0 / self.mask.double().mean().item()
        return f"{self.source.found}\nmask: net acceleration {net:.2f}{remark}"

    def check(self) -> list[str]:
        """What is unusual or doubtful in the samples, one sentence each; see `mri.checks`."""
        from mri.checks import scan_remarks  # which knows this class

        return [*self.remarks, *scan_remarks(self)]

    @classmethod
    def from_arrays(cls, kspace: Tensor, mask: Tensor, **more) -> "Scan":
        """A scan of plain arrays.

        Parameters
        ----------
        kspace
            complex `(frames, height, width)` or `(frames, coils, height, width)`, orthonormal and centred; values
            outside `mask` are ignored.
        mask
            boolean, or 0 and 1, `(frames, height, width)`, or any shape that `mri.masks.fit_mask` takes.
        more
            other attributes of a `Scan`.

        Arrays are torch tensors of any device, or what `torch.as_tensor` takes, such as NumPy arrays; the scan is on
        the CPU.

        Raises
        ------
        InputError
            when they are no scan: other shapes or types, a value that is not finite, a frame without a sample.
        """
        kspace, mask = as_tensor(kspace), as_tensor(mask)
        more = {k: as_tensor(more[k]) if k in ARRAYS and more[k] is not None else more[k] for k in more}
        if kspace.ndim not in (3, 4) or not kspace.is_complex() or len(kspace) < 2:
            raise InputError(
                "k-space is complex (frames, height, width) or (frames, coils, height, width) of 2 frames or more, not "
                f"{kspace.dtype} {tuple(kspace.shape)}."
            )
        kspace = kspace if kspace.ndim == 4 else kspace[:, None]
        shape = (len(kspace), *kspace.shape[2:])
        if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
            raise InputError("the mask has values other than 0 and 1; give 1 where sampled and 0 elsewhere.")
        mask = fit_mask(mask != 0, shape)
        kspace = torch.where(mask[:, None], kspace, 0).to(torch.complex64)
        bad = (~kspace.isfinite()).flatten(2).any(dim=2).any(dim=0).nonzero().flatten().tolist()
        if bad:
            where = f" of coil {bad[0]} (counting from 0)" if kspace.shape[1] > 1 else ""
            raise InputError(f"a sample{where} is NaN or infinite; repair the scan, or leave that coil out.")
        largest = kspace.abs().max().item()
        if largest and not SMALLEST < largest < 1 / SMALLEST:
            source = more.get("source")
            where = f"{source.path}: " if source is not None and source.path else ""
            raise InputError(
                f"{where}the largest k-space sample is {largest:.1e}, beyond the range of single precision when "
                "squared; rescale the scan to values of about 1."
            )
        noise_std = more.get("noise_std")
        if noise_std is not None:
            try:
                more["noise_std"] = noise_std = float(noise_std)
            except (TypeError, ValueError):
                raise InputError(f"noise_std is {noise_std!r}; give a number.") from None
        if more.get("noise_samples") is not None and not more["noise_samples"].is_complex():
            raise InputError("the noise samples are real-valued, but noise is complex; give complex (coils, samples).")
        if noise_std is not None and not (math.isfinite(noise_std) and noise_std >= 0):
            raise InputError(f"noise_std is {noise_std}; give the standard deviation of a k-space sample, 0 or more.")
        return cls(kspace, mask, **more)

    def turned(self) -> "Scan":
        """The scan with rows and columns exchanged."""
        maps = None if self.coil_maps is None else self.coil_maps.mT.contiguous()
        averages = None if self.averages is None else self.averages.mT.contiguous()
        return replace(
            self, kspace=self.kspace.mT.contiguous(), mask=self.mask.mT.contiguous(), coil_maps=maps, averages=averages
        )

    def to(self, device: torch.device | str) -> "Scan":
        """With k-space, mask and maps on `device`."""
        maps = None if self.coil_maps is None else self.coil_maps.to(device)
        return replace(self, kspace=self.kspace.to(device), mask=self.mask.to(device), coil_maps=maps)


@dataclass(frozen=True)
class Reference:
    """The fully sampled scan. It is never given to a reconstruction; scores use it when the result is final.

    Exactly one of the two is given.

    Attributes
    ----------
    image
        complex or real `(frames, height, width)`, in the units of the reconstruction.
    kspace
        complex64 `(frames, coils, ky, kx)`, fully sampled, of the scan's own coils: the reference is the root of the
        sum of squares of these coils, whitened and compressed as the scan is.
    noisy
        whether the reference has noise of its own, which then limits every score.
    apart
        whether it was stored beside under-sampled k-space. It was then not measured by this scan, and is used for
        scores only.
    found
        what was read, for a person, where it came from a file of its own.
    """

    image: Tensor | None = None
    kspace: Tensor | None = None
    noisy: bool = False
    apart: bool = False
    found: str = ""


def as_tensor(array: Any) -> Tensor:
    """A tensor on the CPU without gradients, of a tensor or any NumPy array."""
    if isinstance(array, np.ndarray):  # PyTorch knows neither foreign byte orders nor negative strides
        array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
    return torch.as_tensor(array).detach().cpu()
