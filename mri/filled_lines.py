"""Recognises k-space lines that were filled in after the measurement, from neighbouring frames or lines."""

import torch

from utils.errors import InputError

Tensor = torch.Tensor

SEVERAL, ALL = 0.05, 0.95  # share of the lines from which it is no chance; a simple object predicts all
EXACT = 1e-10  # of the power of a line: rounding of single precision
PREDICTED = 1e-9  # likewise; without noise and four times the field of view measured lines have 1e-7 and more
FRAMES = 4  # looked at for interpolation within a frame
LARGEST_STEP = 8  # from one measured line to the next


def filled_lines(kspace: Tensor) -> str:
    """How lines or columns of k-space `(frames, coils, ky, kx)` were filled in; empty where they were not.

    Copies and means of the neighbouring frames, copies of the line beside, and interpolation of the neighbouring lines.
    """
    for axis, name in ((-1, "lines"), (-2, "columns")):
        held = (kspace != 0).any(dim=axis).any(dim=1)  # (frames, lines)
        before = (kspace == torch.roll(kspace, 1, 0)).all(dim=axis).all(dim=1) & held
        whole = (before | ~held).all(dim=1)
        copied = before[1:][~whole[1:]]
        mean = (torch.roll(kspace, 1, 0) + torch.roll(kspace, -1, 0)) / 2
        error = (kspace - mean).abs().square().sum(dim=axis).sum(dim=1)
        power = kspace.abs().square().sum(dim=axis).sum(dim=1)
        between = ((error < EXACT * power) & held)[1:-1][~(whole[1:-1] | whole[2:])]
        lengthwise = 2 if axis == -1 else 3  # along ky or kx
        beside = (kspace == torch.roll(kspace, 1, lengthwise)).all(dim=axis).all(dim=1) & held
        kinds = (
            (copied, "equal those of the frame before"), (between, "are the mean of both neighbouring frames"),
            (beside, "equal the line beside them"),
        )  # fmt: skip
        for lines, what in kinds:
            share = lines.double().mean().item() if lines.numel() else 0.0
            if share > SEVERAL:
                return f"{share:.0%} of the k-space {name} {what}, value by value"
        share = _interpolated(kspace if axis == -1 else kspace.mT)
        if SEVERAL < share < ALL:
            return f"{share:.0%} of the k-space {name} are interpolated from the {name} around them"
    return ""


def _interpolated(kspace: Tensor) -> float:
    """Share of the lines of k-space `(frames, coils, lines, samples)` that two or four others predict exactly.

    These are the nearest of lines that are 2, 3, … apart, as of linear and cubic interpolation. Measured lines have
    noise of their own.
    """
    found = count = 0
    for frame in kspace[:: -(-len(kspace) // FRAMES)]:
        lines = frame.movedim(1, 0).flatten(1).to(torch.complex128)
        length = lines.norm(dim=1, keepdim=True)
        held = (length > 0)[:, 0]
        lines = lines / length.clamp(min=1e-300)
        products = lines.conj() @ lines.mT
        exact = torch.zeros_like(held)
        for step in range(2, LARGEST_STEP + 1):
            for after in range(1, step):
                for places in ((0, step), (-step, 0, step, 2 * step)):
                    exact |= _predicted(products, held, [place - after for place in places])
        found, count = found + int(exact.sum()), count + int(held.sum())
    return found / max(count, 1)


def _predicted(products: Tensor, held: Tensor, offsets: list[int]) -> Tensor:
    """Which lines a combination of those at `offsets` from them predicts, by the scalar products of all lines."""
    first, end = max(0, -offsets[0]), len(held) - max(0, offsets[-1])
    line = torch.arange(first, max(first, end), device=held.device)
    index = line[:, None] + torch.tensor(offsets, device=held.device)
    usable = held[line] & held[index].all(dim=1)
    line, index = line[usable], index[usable]
    matrix = products[index[:, :, None], index[:, None]]
    matrix = matrix + 1e-13 * torch.eye(len(offsets), device=matrix.device)
    against = products[index, line[:, None]]
    explained = (against.conj() * torch.linalg.solve(matrix, against)).sum(dim=1).real
    exact = torch.zeros_like(held)
    exact[line[1 - explained < PREDICTED]] = True
    return exact


def refuse_filled_lines(kspace: Tensor, where: str) -> None:
    """Refuse k-space `(frames, coils, ky, kx)` whose lines were filled in after the measurement.

    Raises
    ------
    InputError
        see `filled_lines`; `where` names the file.
    """
    if how := filled_lines(kspace):
        raise InputError(
            f"{where}: {how}: k-space was filled in after the measurement. Export the measured samples alone, with "
            "zeros elsewhere, or name the measured samples with --mask."
        )
