"""Held-out samples: measured samples set aside, to choose settings from the scan and never from a reference."""

import torch

from mri.masks import acs_rows, is_lines, lines_along_rows
from mri.weighting import RAMP_FILTER

Tensor = torch.Tensor


def hold_out(mask: Tensor, fraction: float = 0.15, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split the measured samples into kept and held-out ones, the same in every coil.

    For masks of lines, the outer half of the ACS is thinned in time to the density of the other rows. The nearest kept
    sample of the same row is then as many frames away as for a missing sample. (Lines drawn at random would mislead:
    those of the ACS are still measured one frame away, the others a whole period away.) For other masks (radial),
    single samples are drawn at random.

    Parameters
    ----------
    mask
        boolean `(frames, height, width)`.
    fraction
        of the samples to hold out, for masks that do not consist of lines.
    seed
        chooses them; of lines, the frames that keep theirs.

    Returns
    -------
    kept, held_out: boolean masks of that shape, disjoint, together `mask`. Nothing is held out with fewer than two ACS
    lines, or where only the ACS was measured.
    """
    if (rows_first := lines_along_rows(mask)) is not mask:
        kept, held_out = hold_out(rows_first, fraction, seed)
        return kept.mT, held_out.mT
    if not is_lines(mask):
        generator = torch.Generator().manual_seed(seed)
        held_out = mask & (torch.rand(mask.shape, generator=generator) < fraction).to(mask.device)
        return mask & ~held_out, held_out
    acs = acs_rows(mask)
    rows = acs.nonzero().flatten().tolist()
    lines = mask.any(dim=-1)
    density = lines[:, ~acs].double().mean().item() if not acs.all() else 0.0
    held_out = torch.zeros_like(mask)
    if len(rows) < 2 or density == 0:
        return mask, held_out
    period = max(2, round(1 / density))
    quarter = max(1, len(rows) // 4)
    outer = [*rows[:quarter], *rows[len(rows) - quarter :]] if len(rows) >= 4 else rows[:1]
    frames = torch.arange(len(mask), device=mask.device)
    for row in outer:
        held_out[(frames + row + seed) % period != 0, row] = True
    held_out &= mask
    return mask & ~held_out, held_out


def hold_out_for_training(mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """As `hold_out`; for masks of lines, one in eight of the lines outside the ACS is held out too.

    Held-out ACS lines resemble missing lines in their distance in time, but cover low frequencies only; the other lines
    cover all frequencies, but their nearest neighbour is a whole period away. Training needs both.
    """
    kept, held_out = hold_out(mask, seed=seed)
    if (rows_first := lines_along_rows(mask)) is not mask:
        kept, held_out = hold_out_for_training(rows_first, seed)
        return kept.mT, held_out.mT
    if not is_lines(mask) or not held_out.any():
        return kept, held_out
    generator = torch.Generator().manual_seed(seed)
    outside = ~acs_rows(mask)
    chosen = torch.rand(mask.shape[:2], generator=generator).to(mask.device) < 1 / 8
    held_out = held_out | (mask & (chosen & outside)[:, :, None])
    return mask & ~held_out, held_out


def missing_error(error: Tensor, held_out: Tensor, mask: Tensor) -> float:
    """Standard deviation per real channel and pixel of the image error in the missing samples.

    Estimated from the error at the held-out samples. Its mean square is assumed to fall as 1/r² with the distance r to
    DC, as that of the signal does.

    Parameters
    ----------
    error
        error of the k-space, complex `(frames, coils, ky, kx)`.
    held_out, mask
        boolean `(frames, ky, kx)`.
    """
    level = RAMP_FILTER(error).abs().square().sum(dim=1)[held_out].mean()
    falling = RAMP_FILTER.on(error).expand(mask.shape)[~mask].square().reciprocal().sum()
    return (level * falling / (2 * mask.numel())).sqrt().item()
