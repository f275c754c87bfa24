"""What is wrong, doubtful or unusual in a scan, found before any work: one sentence each, with the mend.

What cannot be right is refused (`InputError`); where a result is still possible, a sentence is returned, which begins
with "warning: " where images may mislead.
"""

from dataclasses import replace

import torch

from mri.masks import is_lines, lines_along_rows
from mri.scan import Scan
from utils.errors import InputError

Tensor = torch.Tensor

SPIKE, MOST_SPIKES = 10.0, 20  # times the largest sample within 3 samples, of any frame; replaced at most
NO_SPIKE = 4  # samples around DC, where the signal itself peaks
FEW_LINES, OFF_CENTRE = 0.5, 2  # share of the median; samples
JUMP = 2.0  # brightness of a frame over that of the next, from which units differ
PEAKED = 0.6  # share of the energy in the central quarter of ky and of kx; scenes and scans have 0.84 and more
NOISE_ONLY = 0.5  # power at the edge of k-space over that of all of it, from which there is no peak to look for
HOT_VOXEL, MOST_HOT = 5.0, 5  # times the largest voxel within 2 voxels and a frame; named at most
NEGATIVE, DEEP = 0.01, 0.02  # share of the voxels, and of the largest value, from which negative values are no rounding
CLIPPED = 0.005  # share of the voxels of integer images at their largest value
WRAPPED = 0.0003  # share of the neighbouring voxels that jump over the range of the integers; of other images 0 here
AT_THE_EDGE = 3.0  # brightness of the outer eighth over that of the middle half
EMPTY_MIDDLE = 0.2  # brightness of the middle eighth over that of the outer eighth, along one axis
GAPS, NARROW = 0.3, 4  # share of the lines between the outermost that no frame has; lines of a complete centre
CANCELS, OFTEN = 0.3, 4  # |sum|² over frames · sum of |·|²: 1 of equal frames, 0 of a removed mean; frames to tell
SAME, PLACES = 16, 3  # values at exactly the largest magnitude, and their places, from which k-space was clipped
AROUND = -0.2  # mean of cos(2π r/N) over the energy, along both axes: positive in the middle, -1 at the edges
PADDING = 4  # lines of zeros at the outside that are worth cropping


def scan_remarks(scan: Scan) -> list[str]:
    """What is unusual in the sampling of a scan and does not stop a reconstruction."""
    found = []
    mask, power = scan.mask, scan.kspace.abs().square().sum(dim=1)
    _, height, width = mask.shape
    lines = mask.any(dim=-1).sum(dim=1)
    for frame in (lines < FEW_LINES * lines.double().median()).nonzero().flatten().tolist():
        found.append(f"frame {frame} (counting from 0) has only {lines[frame]} sampled lines; the median is "
                     f"{lines.median()}")  # fmt: skip
    found += _lines_of_no_frame(scan)
    mean = power.sum(dim=0) / mask.sum(dim=0).clamp(min=1)
    row, column = divmod(int(mean.argmax()), width)
    edge = torch.ones_like(mean, dtype=torch.bool)
    edge[max(1, height // 8) : -max(1, height // 8), max(1, width // 8) : -max(1, width // 8)] = False
    edge &= mask.any(dim=0)
    # what hides in noise has words of its own
    is_noise = bool(edge.any() and mean[edge].mean() > NOISE_ONLY * mean[mask.any(dim=0)].mean())
    if not mask[:, height // 2, width // 2].any():
        found.append(
            f"warning: the centre of k-space (row {height // 2}, column {width // 2}) is sampled in no frame, so "
            "contrast and large structures are lost; include the central samples, or shift k-space so that DC lies "
            "there"
        )
    elif max(abs(row - height // 2), abs(column - width // 2)) > OFF_CENTRE and not is_noise:
        found.append(
            f"the k-space peak is at row {row}, column {column} instead of {height // 2}, {width // 2} (a "
            "linear phase in the image); the scan is used unchanged"
        )
    for words, axis in (("ky", 1), ("kx", 0)):
        energy = mean.sum(dim=axis)
        count = len(energy)
        energy = torch.roll(energy, count // 2 - int(energy.argmax()))  # a peak elsewhere has a sentence of its own
        central = energy[count * 3 // 8 : count * 5 // 8].sum() / energy.sum().clamp(min=1e-30)
        if central < PEAKED and energy.max() > 0 and not is_noise:
            found.append(
                f"warning: the energy has no peak along {words}, as k-space should have; was the inverse Fourier "
                "transform along this axis already applied (hybrid space)?"
            )
    found += _unfilled_lines(scan) + _identical_frames(scan.kspace) + _bright_frames(power, mask)
    found += _impossible_values(scan, row, column)
    return found


def _lines_of_no_frame(scan: Scan) -> list[str]:
    """Lines that no frame has: beyond the outermost (partial Fourier), or between them, where images stay aliased.

    Raises
    ------
    InputError
        when many lie between and neither maps nor a complete centre to find them tell the aliases apart.
    """
    mask, kspace = scan.mask, scan.kspace
    if (rows_first := lines_along_rows(mask)) is not mask:
        mask, kspace = rows_first, kspace.mT
    sampled = mask.any(dim=-1).any(dim=0)
    never = int((~sampled).sum())
    if not never or not sampled.any():
        return []
    places = sampled.nonzero().flatten()
    between = ~sampled[places[0] : places[-1] + 1]
    words = f"{never} of {len(sampled)} lines are sampled in no frame"
    if between.double().mean() <= GAPS:
        partial = " (partial Fourier?)" if sampled[len(sampled) // 2] else ""
        return [f"{words}{partial} and are filled in by low rank"]
    peak = int(kspace.abs().square().sum(dim=(0, 1, 3)).argmax())
    complete = 0
    for step in (-1, 1):
        line = peak if step < 0 else peak + 1
        while 0 <= line < len(sampled) and sampled[line]:
            complete, line = complete + 1, line + step
    if complete < NARROW and scan.coil_maps is None:
        raise InputError(
            f"{words}, and the centre of k-space is not fully sampled: the aliasing cannot be resolved. Interleave the "
            "lines from frame to frame, acquire ACS lines, or give coil maps with --maps."
        )
    return [f"warning: {words}, with gaps inside the sampled range; low rank fills them in, but aliasing may remain"]


def _impossible_values(scan: Scan, row: int, column: int) -> list[str]:
    """Clipped samples, a removed centre, and frames that cancel, around the peak of k-space (`row`, `column`)."""
    found = []
    parts = torch.view_as_real(scan.kspace).abs()
    largest = parts == parts.max()
    if parts.max() > 0 and int(largest.sum()) > SAME and int(largest.any(dim=0).sum()) > PLACES:
        found.append("warning: many k-space samples have exactly the largest value, so k-space was clipped; export it "
                     "as float32 or scaled down; if the receiver saturated, scan at a lower gain")  # fmt: skip
    height, width = scan.mask.shape[1:]
    own = scan.mask[:, height // 2, width // 2]
    beside = scan.kspace[:, :, height // 2, width // 2 - 1]
    if own.any() and beside.any() and not scan.kspace[:, :, height // 2, width // 2].any():
        found.append("warning: the sample at the centre of k-space is zero in all frames; if DC was removed, give "
                     "k-space as measured")  # fmt: skip
    around = (slice(max(0, row - 2), row + 3), slice(max(0, column - 2), column + 3))
    mask = scan.mask[(slice(None), *around)]
    often = (mask.sum(dim=0) >= OFTEN) & (len(mask) >= OFTEN)
    if often.any():
        kspace = scan.kspace[(slice(None), slice(None), *around)]
        total = kspace.sum(dim=0).abs().square()[:, often].sum()
        most = (kspace.abs().square().sum(dim=0) * mask.sum(dim=0))[:, often].sum()
        if total < CANCELS * most:
            found.append(
                "warning: the centre of k-space averages to almost zero over the frames: their temporal mean was "
                "probably subtracted, or their phase is random. Maps and view sharing need k-space as measured"
            )
    return found


def image_remarks(image: Tensor, where: str) -> list[str]:
    """What is doubtful in images `(frames, height, width)`, complex or real, that a scan is simulated from.

    Raises
    ------
    InputError
        for real images with negative values, which are no magnitude.
    """
    found = []
    if not image.is_complex() or not image.imag.any():
        real = image.real if image.is_complex() else image
        negative = (real < -DEEP * real.abs().max()).double().mean().item()
        if negative > NEGATIVE:
            raise InputError(
                f"{where} has negative values ({negative:.0%} of the voxels), and a magnitude image has none; save the "
                "complex images or their magnitude. If these are the real part of k-space, save k-space as complex."
            )
        if (real < 0).any():
            found.append(f"warning: {where} has small negative values; their magnitude is used")
        top = real.max()
        clipped = (real == top).double().mean().item()
        if clipped > CLIPPED and (real == real.round()).all():
            found.append(f"warning: {clipped:.1%} of the voxels have the largest value, {top:g}: images are clipped")
        if (wrapped := _wrapped(real)) > WRAPPED:
            found.append(
                f"warning: {wrapped:.2%} of neighbouring voxel pairs jump between about 0 and {top:g}: values probably "
                "wrapped around when they were saved as integers; save the images as float32"
            )
    size = image.abs()
    found += _hot_voxels(size)
    return found + edge_remarks(size.mean(dim=0)) + _identical_frames(image)


def _wrapped(real: Tensor) -> float:
    """Share of neighbouring voxels that jump over the range of 8 or 16 bits; 0 for images that do not fill it."""
    top = real.max().item()
    if not any(0.98 * most <= top <= most for most in (255, 65535)) or (real != real.round()).any():
        return 0.0
    high, low = real > 0.9 * top, real < 0.1 * top
    return max(
        (high.narrow(axis, 0, count - 1) & low.narrow(axis, 1, count - 1)).double().mean().item()
        + (low.narrow(axis, 0, count - 1) & high.narrow(axis, 1, count - 1)).double().mean().item()
        for axis, count in ((1, real.shape[1]), (2, real.shape[2]))
    )


def edge_remarks(mean: Tensor) -> list[str]:
    """Whether the object of a mean image `(height, width)` lies across its edges rather than in the middle."""
    height, width = mean.shape
    rows, columns = height // 8, width // 8
    middle = mean[height // 4 : -(height // 4), width // 4 : -(width // 4)].mean()
    inner = mean[rows : height - rows, columns : width - columns]
    border = (mean.sum() - inner.sum()) / (mean.numel() - inner.numel())
    power = mean.square()
    around = [
        (power.sum(dim=other) * torch.cos(2 * torch.pi * (torch.arange(n, device=mean.device) - n // 2) / n)).sum()
        / power.sum().clamp(min=1e-30)
        for n, other in ((height, 1), (width, 0))
    ]
    empty = []  # in the middle along one axis, and bright at both ends
    for n, other in ((height, 1), (width, 0)):
        profile, eighth = mean.mean(dim=other), max(1, n // 16)
        ends = torch.stack([profile[:eighth].mean(), profile[-eighth:].mean()])
        empty.append(profile[n // 2 - eighth : n // 2 + eighth].mean() < EMPTY_MIDDLE * ends.min())
    if border <= AT_THE_EDGE * middle and max(around) > AROUND and not any(empty):
        return []
    return [
        "warning: the object wraps around the edges of the image (a missing fftshift?); apply fftshift to the images, "
        "or multiply k-space by (-1)^(ky + kx)"
    ]


def measured_block(sampled: Tensor) -> tuple[slice, slice] | None:
    """The centred block of k-space outside which nothing was measured in any frame, where zeros pad it.

    `sampled` is boolean `(frames, ky, kx)`. None where it is all of k-space. Lines that are sampled in no frame are a
    matter of the sampling, unless the readout is padded, too; whole lines that are padded along the readout alone are
    cropped along it.
    """
    found = []
    readout = 2 if lines_along_rows(sampled) is sampled else 1
    for axis, other in ((1, 2), (2, 1)):
        length = sampled.shape[axis]
        places = sampled.any(dim=0).any(dim=other - 1).nonzero().flatten() - length // 2
        reach = max(-int(places.min()), int(places.max()) + 1)
        cut = length // 2 - reach
        found.append(slice(cut, length // 2 + reach) if cut >= PADDING else slice(0, length))
    rows, columns = found
    whole = [one == slice(0, length) for one, length in zip(found, sampled.shape[1:], strict=True)]
    if whole[readout - 1]:
        return None
    if any(whole) and not is_lines(lines_along_rows(sampled[:, rows, columns])):
        return None
    return rows, columns


def _unfilled_lines(scan: Scan) -> list[str]:
    """Lines that the mask calls sampled and that are zero in every coil, while others of the frame are not."""
    zero = scan.mask.any(dim=-1) & ~scan.kspace.abs().amax(dim=(1, 3)).bool()
    count = int(zero[(~zero & scan.mask.any(dim=-1)).any(dim=1)].sum())
    if not count:
        return []
    return [f"warning: {count} lines that the mask marks as sampled are zero in all coils; if they were not measured, "
            "the mask must leave them out"]  # fmt: skip


def _identical_frames(data: Tensor) -> list[str]:
    same = (data[1:] == data[:-1]).flatten(1).all(dim=1).nonzero().flatten().tolist()
    if len(same) == len(data) - 1:
        return ["warning: all frames are identical; there is no motion to reconstruct"]
    return [f"warning: frames {frame} and {frame + 1} (counting from 0) are identical; one may be a copy"
            for frame in same]  # fmt: skip


def _bright_frames(power: Tensor, mask: Tensor) -> list[str]:
    """Frames much brighter or darker than the one before, from k-space power `(frames, ky, kx)`."""
    mean = power.sum(dim=0) / mask.sum(dim=0).clamp(min=1)
    own = (power * mask).sum(dim=(1, 2)) / (mean * mask).sum(dim=(1, 2)).clamp(min=1e-30)
    level = own.clamp(min=1e-30).sqrt()
    ratio = level[1:] / level[:-1]
    return [
        f"warning: brightness changes by a factor of {ratio[frame]:.2g} from frame {frame} to frame {frame + 1} "
        "(counting from 0); are all frames in the same units?"
        for frame in ((ratio > JUMP) | (ratio < 1 / JUMP)).nonzero().flatten().tolist()
    ]


def _hot_voxels(size: Tensor) -> list[str]:
    """Single voxels far above all around them, in magnitudes `(frames, height, width)`."""
    found = []
    _, height, width = size.shape
    for place in size.flatten().topk(min(MOST_HOT, size.numel())).indices.tolist():
        frame, row, column = place // (height * width), place // width % height, place % width
        frames = slice(max(0, frame - 1), frame + 2)
        around = size[frames, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3].clone()
        around[min(frame, 1), min(row, 2), min(column, 2)] = 0
        if size[frame, row, column] > HOT_VOXEL * around.max():
            found.append(
                f"warning: the voxel at frame {frame}, row {row}, column {column} (counting from 0) is "
                f"{size[frame, row, column] / around.max().clamp(min=1e-30):.0f} times as bright as those around it"
            )
    return found


def without_spikes(scan: Scan) -> tuple[Scan, list[str]]:
    """Replace single samples that are SPIKE times all around them, in k-space and time, and name them.

    Such a sample is a failure of the receiver; its stripes would cover every frame. The mean of the other frames that
    measured the location takes its place, which keeps sampled lines whole.
    """
    power = scan.kspace.abs().square().sum(dim=1).sqrt()
    _, height, width = power.shape
    ky, kx = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    centre = (ky[:, None].abs() <= NO_SPIKE) & (kx.abs() <= NO_SPIKE)
    outside = power.masked_fill(centre.to(power.device), 0)
    kspace = scan.kspace
    notes: list[str] = []
    for place in outside.flatten().topk(min(MOST_SPIKES, outside.numel())).indices.tolist():
        frame, row, column = place // (height * width), place // width % height, place % width
        around = power[:, max(0, row - 3) : row + 4, max(0, column - 3) : column + 4].clone()
        around[frame, min(row, 3), min(column, 3)] = 0
        if power[frame, row, column] <= SPIKE * around.max() or around.max() == 0:
            continue
        if not notes:
            kspace = kspace.clone()
        others = scan.mask[:, row, column].clone()
        others[frame] = False
        mean = scan.kspace[others, :, row, column].mean(dim=0) if others.any() else 0
        kspace[frame, :, row, column] = mean
        power[frame, row, column] = 0
        notes.append(
            f"warning: a spike in k-space at frame {frame}, row {row}, column {column} (counting from 0) is replaced "
            "by the mean of the other frames that sampled it, or by zero if none did"
        )
    return replace(scan, kspace=kspace), notes
