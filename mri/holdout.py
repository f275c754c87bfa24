"""Measured samples set aside, so that a setting can be chosen from the scan itself and never from a reference."""

import torch

from mri.masks import acs_rows, is_lines

Tensor = torch.Tensor


def hide(mask: Tensor, fraction: float = 0.15, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split the measured samples of every frame into kept and hidden ones.

    Lines are hidden whole. Half of them come from the ACS, whose other samples are one frame away, as those
    of a truly missing line are; the other half from the rest, whose other samples are a whole period away.
    Hiding lines of one kind alone would misjudge the error of a missing line. A mask that does not consist of
    lines (radial) loses single samples.

    Parameters
    ----------
    mask
        boolean `(frames, height, width)`.
    fraction
        of each frame's samples to hide.

    Returns
    -------
    kept, hidden: boolean masks of that shape, disjoint, together `mask`. Every frame keeps at least half of
    its samples; nothing is hidden of a frame with fewer than four lines.
    """
    generator = torch.Generator().manual_seed(seed)
    if not is_lines(mask):
        hidden = mask & (torch.rand(mask.shape, generator=generator) < fraction).to(mask.device)
        return mask & ~hidden, hidden
    lines, acs = mask[..., 0], acs_rows(mask)
    hidden_lines = torch.zeros_like(lines)
    for t, own in enumerate(lines):
        count = int(fraction * own.sum())
        for rows, share in ((own & acs, count // 2), (own & ~acs, count - count // 2)):
            rows = rows.nonzero().flatten()
            order = torch.randperm(len(rows), generator=generator)
            hidden_lines[t, rows[order[: min(share, len(rows) // 2)]]] = True
    hidden = hidden_lines[:, :, None] & mask
    return mask & ~hidden, hidden
