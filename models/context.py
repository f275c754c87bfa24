"""Context channels: what a prior sees besides the noisy frame, from other frames and from the measured samples."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mri.operators import ForwardModel
from mri.view_sharing import fill_nearest
from mri.weighting import to_channels

Tensor = torch.Tensor

LIMIT = 10.0  # σ; larger differences are compressed towards it


@dataclass(frozen=True)
class Context:
    """Context channels of a network in the image domain, two (real, imaginary) for each complex image.

    Attributes
    ----------
    offsets
        neighbouring frames, as differences (neighbour − frame). Beyond the ends of a scan that is not periodic, the
        outermost frame is repeated.
    mean
        temporal mean of the scan, as difference.
    merge
        the frame with its missing samples from the nearest frames that measured them, as difference.
    own
        the image of the frame's own measured samples.
    near
        the image of the missing samples that a neighbour in time measured: of all missing samples, these are known
        best.

    Differences are divided by σ and softly limited to 10, because the error to be found has the size of σ.
    """

    offsets: tuple[int, ...] = ()
    mean: bool = False
    merge: bool = False
    own: bool = False
    near: bool = False

    @classmethod
    def from_mapping(cls, fields: Mapping[str, Any]) -> "Context":
        """From a mapping of the attributes, as the metadata of a checkpoint hold it."""
        return cls(tuple(fields["offsets"]), *(bool(fields[name]) for name in ("mean", "merge", "own", "near")))

    def to_dict(self) -> dict:
        return {**asdict(self), "offsets": list(self.offsets)}

    @property
    def images(self) -> list[str]:
        """Names of the complex images, in the order of their channels."""
        flags = {"mean": self.mean, "merge": self.merge, "own": self.own, "near": self.near}
        return [f"{offset:+d}" for offset in self.offsets] + [name for name, used in flags.items() if used]

    @property
    def channels(self) -> int:
        return 2 * len(self.images)

    def __call__(self, image: Tensor, model: ForwardModel, sigma: float, periodic: bool = False) -> Tensor:
        """Channels of all frames.

        Parameters
        ----------
        image
            complex `(frames, height, width)`, data consistent: A x is what was measured.
        model
            A: what of each frame was measured, by which coils.
        sigma
            standard deviation of the image's error per real channel.

        Returns
        -------
        float32 `(frames, channels, height, width)`.
        """
        count, mask = len(image), model.mask
        index = torch.arange(count, device=image.device)
        kspace = model.kspace(image) if self.merge or self.own or self.near else image[:, None]
        differences = [image[_at(index + d, count, periodic)] - image for d in self.offsets]
        if self.mean:
            differences.append(image.mean(dim=0) - image)
        if self.merge:
            merged, _ = fill_nearest(kspace, mask, kspace, mask, periodic)
            differences.append(model.combine(merged) - image)
        parts = [_limited(difference / sigma) for difference in differences]
        if self.own:
            parts.append(model.adjoint(kspace))
        if self.near:
            beside = mask[_at(index - 1, count, periodic)] | mask[_at(index + 1, count, periodic)]
            parts.append(model.combine(torch.where((beside & ~mask)[:, None], kspace, 0)))
        if not parts:
            return torch.zeros(count, 0, *image.shape[1:], device=image.device)
        return torch.cat([to_channels(part) for part in parts], dim=1)


def neighbours(count: int, periodic: bool, device: torch.device | str = "cpu") -> Tensor:
    """Index of the frame before and after each of a scan: `(2, count)`; beyond the ends the frame itself."""
    index = torch.arange(count, device=device)
    return torch.stack([_at(index - 1, count, periodic), _at(index + 1, count, periodic)])


def _limited(x: Tensor) -> Tensor:
    """x, its magnitude bent towards the limit."""
    return x / torch.sqrt(1 + (x.abs() / LIMIT) ** 2)


def _at(index: Tensor, count: int, periodic: bool) -> Tensor:
    return index % count if periodic else index.clamp(0, count - 1)
