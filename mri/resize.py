"""The frames and the matrix of a scan that are asked for, and what belongs to it cut alike."""

from dataclasses import replace

import torch

from mri.formats import Stored
from mri.fourier import fft2c, ifft2c
from mri.oversampling import cropped_matrix
from utils.errors import InputError

Tensor = torch.Tensor

MOST_CYCLES = 16  # a scan is repeated to make a longer one; more than this is a typing error


def resized(stored: Stored, frames: int, size: int) -> tuple[Stored, float]:
    """The frames and the centre of k-space that are asked for (0: all), and the gain of k-space that goes with it.

    With oversampling `size` counts the samples without it, and the oversampled axes are cropped in proportion.

    Raises
    ------
    InputError
        for more frames or samples than the scan has.
    """
    found, gain, values, image = stored.found, 1.0, stored.data, stored.image
    mask, averages, geometry = stored.mask, stored.averages, stored.geometry
    held, wanted = len(values), frames
    if wanted > held and stored.kind == "kspace":
        raise InputError(
            f"{stored.path} has {held} frames of k-space, {wanted} were requested; measured k-space is not repeated: "
            f"give --frames {held} or fewer."
        )
    if wanted > MOST_CYCLES * held:
        raise InputError(
            f"--frames {wanted} would repeat the {held} frames of the scan more than {MOST_CYCLES} times; give fewer."
        )
    if wanted and wanted != held:
        index = torch.arange(wanted) % held
        values, image = values[index], None if image is None else image[index]
        mask, averages = (None if one is None else one[index] for one in (mask, averages))
        geometry = geometry.first_frames(index.tolist())
        found += f"; its first {wanted} frames" if wanted <= held else f"; its cycle repeated to {wanted}"
    full_height, full_width = values.shape[-2:]
    oversampling, phase_oversampling = stored.oversampling, stored.phase_oversampling
    height, width = cropped_matrix(full_height, phase_oversampling), cropped_matrix(full_width, oversampling)
    if size and (size, size) != (height, width):
        if size > min(height, width) or size % 2:
            raise InputError(f"{stored.path}: --size {size} must be even and at most the scan's {height}×{width}.")
        tall, wide = round(size * phase_oversampling), round(size * oversampling)
        oversampling, phase_oversampling = wide / size, tall / size
        gain = (tall * wide / (full_height * full_width)) ** 0.5  # image intensities stay
        if stored.kind == "kspace":
            values = cropped(values, tall, wide) * gain
        else:
            values = ifft2c(cropped(fft2c(values), tall, size) * gain)
            if stored.kind == "magnitude":
                values = values.abs().to(torch.complex64)
        if image is not None:
            image = ifft2c(cropped(fft2c(image), tall, size) * gain)
        mask, averages = (None if one is None else cropped(one, tall, wide) for one in (mask, averages))
        geometry = geometry.resampled((full_height, width), (tall, size))
        found += f"; the centre of its k-space cropped to {size}×{size}"
    return replace(
        stored, data=values, image=image, found=found, mask=mask, averages=averages, geometry=geometry,
        oversampling=oversampling, phase_oversampling=phase_oversampling,
    ), gain  # fmt: skip


def cropped(kspace: Tensor, height: int, width: int) -> Tensor:
    """The centre of k-space `(..., ky, kx)`."""
    top, left = kspace.shape[-2] // 2 - height // 2, kspace.shape[-1] // 2 - width // 2
    return kspace[..., top : top + height, left : left + width]


def interpolated(maps: Tensor, height: int, width: int) -> Tensor:
    """Smooth maps `(coils, …, …)` on a coarser grid with the same field of view and centre."""
    found = maps
    for axis, size in ((1, height), (2, width)):
        held = found.shape[axis]
        place = (held // 2 + (torch.arange(size) - size // 2) * (held / size)).clamp(0, held - 1)
        low = place.floor().long().clamp(max=held - 2)
        share = (place - low).reshape([-1 if i == axis else 1 for i in range(3)])
        found = torch.lerp(found.index_select(axis, low), found.index_select(axis, low + 1), share.to(found.dtype))
    return found


def resized_mask(mask: Tensor, asked_frames: int, size: int, shape: tuple[int, int, int]) -> Tensor:
    """A mask file's first frames and centre, where the scan itself was cut to frames or size."""
    frames, height, width = shape
    if mask.ndim == 2 and mask.shape[1] < mask.shape[0] and mask.shape != (height, width):
        mask = mask.T  # lines per frame, frames first
    if asked_frames and mask.shape[0] > frames and mask.shape != (height, width):
        mask = mask[:frames]
    if size and mask.ndim == 2 and mask.shape[1] > height and len(mask) == frames:
        mask = cropped(mask[..., None], height, 1)[..., 0]
    if size and mask.ndim == 3 and mask.shape[1] >= height and mask.shape[2] >= width:
        mask = cropped(mask, height, width)
    return mask
