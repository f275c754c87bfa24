"""Measured samples set aside, so that a setting can be chosen from the scan itself and never from a reference."""

import torch

from mri.masks import acs_rows, is_lines, lines_along_rows
from mri.weighting import DISTANCE_TO_DC

Tensor = torch.Tensor


def hide(mask: Tensor, fraction: float = 0.15, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split the measured samples into kept and hidden ones.

    Of lines, the outer half of the ACS is thinned in time to the density of the other rows: a hidden sample then has
    its nearest kept sample of the same row as many frames away as a missing one does. (Single lines hidden at random
    would mislead: those of the ACS are still measured one frame away, and in the next heartbeat; the others a whole
    period away.) A mask that does not consist of lines (radial) loses single samples at random.

    Parameters
    ----------
    mask
        boolean `(frames, height, width)`.
    fraction
        of the samples to hide, of a mask that does not consist of lines.
    seed
        chooses them; of lines, the frames that keep theirs.

    Returns
    -------
    kept, hidden: boolean masks of that shape, disjoint, together `mask`. Nothing is hidden of lines with fewer than
    two ACS lines, or where the ACS is all that was measured.
    """
    if (rows_first := lines_along_rows(mask)) is not mask:
        kept, hidden = hide(rows_first, fraction, seed)
        return kept.mT, hidden.mT
    if not is_lines(mask):
        generator = torch.Generator().manual_seed(seed)
        hidden = mask & (torch.rand(mask.shape, generator=generator) < fraction).to(mask.device)
        return mask & ~hidden, hidden
    acs = acs_rows(mask)
    rows = acs.nonzero().flatten().tolist()
    lines = mask.any(dim=-1)
    density = lines[:, ~acs].double().mean().item() if not acs.all() else 0.0
    hidden = torch.zeros_like(mask)
    if len(rows) < 2 or density == 0:
        return mask, hidden
    period = max(2, round(1 / density))
    quarter = max(1, len(rows) // 4)
    outer = [*rows[:quarter], *rows[len(rows) - quarter :]] if len(rows) >= 4 else rows[:1]
    frames = torch.arange(len(mask), device=mask.device)
    for row in outer:
        hidden[(frames + row + seed) % period != 0, row] = True
    hidden &= mask
    return mask & ~hidden, hidden


def hide_for_training(mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """As `hide`, and of lines also one in eight of those beside the ACS.

    The lines of the ACS have the nearest measured sample as near in time as missing ones have, but tell of low
    frequencies alone; the others tell of all, but have it a whole period away. To learn from, both are needed.
    """
    kept, hidden = hide(mask, seed=seed)
    if (rows_first := lines_along_rows(mask)) is not mask:
        kept, hidden = hide_for_training(rows_first, seed)
        return kept.mT, hidden.mT
    if not is_lines(mask) or not hidden.any():
        return kept, hidden
    generator = torch.Generator().manual_seed(seed)
    outside = ~acs_rows(mask)
    chosen = torch.rand(mask.shape[:2], generator=generator).to(mask.device) < 1 / 8
    hidden = hidden | (mask & (chosen & outside)[:, :, None])
    return mask & ~hidden, hidden


def missing_error(error: Tensor, hidden: Tensor, mask: Tensor) -> float:
    """Standard deviation per real channel and pixel of the image error in the missing samples.

    Estimated from the error on the hidden ones, whose mean square is taken to fall as 1/r² with the distance r to
    DC, as that of the signal itself does.
    """
    level = DISTANCE_TO_DC(error)[hidden].abs().square().mean()
    falling = DISTANCE_TO_DC.on(error).expand(error.shape)[~mask].square().reciprocal().sum()
    return (level * falling / (2 * error.numel())).sqrt().item()
