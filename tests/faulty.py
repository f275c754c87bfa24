"""Scans as users save them by mistake, and what a reader must answer: refuse, warn, or take them rightly.

The first twenty were written before the checks that they test, the others after a user met them. `faulty(folder)`
writes each into `folder` and yields it; `good(folder)` yields scans that must pass without a warning.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mri.fourier import fft2c
from mri.masks import make_mask
from mri.phantom import make_phantom
from mri.phantom.scan import simulate_scan

FRAMES, SIZE = 8, 64


@dataclass
class Case:
    """An input and what must come of it.

    Attributes
    ----------
    answer
        `refused`, `warned`, or `taken`: then the images are `truth`.
    words
        of the sentence that refuses or warns.
    """

    name: str
    path: Path
    answer: str
    words: str = ""
    truth: np.ndarray | None = None
    flags: dict[str, Any] = field(default_factory=dict)
    mask: Path | None = None


def heart() -> np.ndarray:
    """Complex images of the built-in heart, one coil without noise: `(frames, height, width)`."""
    return simulate_scan("heart", FRAMES, SIZE, 3, 1, 0.0).image.to(torch.complex64).numpy()


def kspace_of(image: np.ndarray) -> np.ndarray:
    return fft2c(torch.from_numpy(image)).numpy()


def lines(frames: int = FRAMES, height: int = SIZE) -> np.ndarray:
    """Sampled lines `(frames, height, 1)`, R = 4 with 8 ACS lines."""
    return make_mask("uniform", (frames, height, 4), 4, 8).numpy()[:, :, :1]


def good(folder: Path) -> Iterator[Case]:
    """Scans without a fault."""
    image = heart()
    kspace, mask = kspace_of(image), lines()
    generator = np.random.default_rng(0)
    noise = 0.01 * (generator.standard_normal((2, *image.shape)) * [[[[1]]], [[[1j]]]]).sum(0)
    for name, array in {
        "full": kspace, "lines": np.where(mask, kspace, 0), "lines_with_noise": np.where(mask, kspace + noise, 0),
        "images": image, "magnitudes": np.abs(image).astype(np.float32),
        "integers": np.round(1000 * np.abs(image)).astype(np.uint16),
        "phantom": make_phantom(FRAMES, SIZE, 5).numpy(),
        "columns": np.where(mask.transpose(0, 2, 1), kspace, 0),
        "radial": np.where(make_mask("radial", image.shape, 4, 0).numpy(), kspace, 0),
        "odd": np.where(lines(FRAMES, 63), kspace_of(image[:, :63, :61]), 0),
    }.items():  # fmt: skip
        kind = "image" if name in ("images", "magnitudes", "integers", "phantom") else "kspace"
        yield Case(name, _saved(folder / f"good_{name}", array), "taken", flags={"kind": kind, "key": kind})


def faulty(folder: Path) -> Iterator[Case]:
    """Inputs with a fault each, of other kinds than the cases of users that the project was given."""
    image = heart()
    kspace, mask = kspace_of(image), lines()
    measured = np.where(mask, kspace, 0).astype(np.complex64)
    k, pictures = {"kind": "kspace", "key": "kspace"}, {"kind": "image", "key": "image"}

    filled = measured.copy()
    for frame in range(1, FRAMES):
        filled[frame] = np.where(mask[frame], kspace[frame], filled[frame - 1])
    yield Case("filled_by_the_vendor", _saved(folder / "filled", np.where(filled == 0, kspace, filled)), "refused",
               "filled in after the measurement", flags=k)  # fmt: skip

    between = kspace.copy()
    for frame in range(1, FRAMES - 1, 2):
        between[frame] = np.where(mask[frame], kspace[frame], (kspace[frame - 1] + kspace[frame + 1]) / 2)
    yield Case("interpolated_in_time", _saved(folder / "between", between), "refused",
               "filled in after the measurement", flags=k)  # fmt: skip

    within = kspace.copy()
    for line in range(0, SIZE - 4, 4):
        for after in (1, 2, 3):
            within[:, line + after] = (1 - after / 4) * kspace[:, line] + after / 4 * kspace[:, line + 4]
    within[:, SIZE // 2 - 4 : SIZE // 2 + 4] = kspace[:, SIZE // 2 - 4 : SIZE // 2 + 4]
    own = np.broadcast_to(np.arange(SIZE)[:, None] % 4 == 0, (FRAMES, SIZE, SIZE)).copy()
    own[:, SIZE // 2 - 4 : SIZE // 2 + 4] = True
    yield Case("interpolated_within_frames", _saved(folder / "within", within), "refused",
               "name the measured samples with --mask", flags=k)  # fmt: skip
    yield Case("interpolated_and_the_mask", _saved(folder / "within", within), "taken", truth=image, flags=k,
               mask=_saved(folder / "mask_within", own.astype(np.uint8)))  # fmt: skip

    padded = np.pad(measured, ((0, 0), (16, 16), (16, 16)))
    smaller = SIZE / (SIZE + 32)  # the images of the padded matrix have this brightness, which is kept
    yield Case("padded_with_zeros", _saved(folder / "padded", padded), "taken", truth=image * smaller, flags=k)

    copied = image.copy()
    copied[4] = copied[3]
    yield Case("a_frame_twice", _saved(folder / "twice", copied), "warned", "identical", flags=pictures)
    yield Case("no_motion", _saved(folder / "still", np.repeat(image[:1], FRAMES, 0)), "warned", "all frames are "
               "identical", flags=pictures)  # fmt: skip

    bright = measured.copy()
    bright[5] *= 10
    yield Case("a_frame_in_other_units", _saved(folder / "bright", bright), "warned", "frame 4 to frame 5",
               flags=k)  # fmt: skip

    clipped = np.round(400 * np.abs(image) / np.abs(image).max()).clip(max=255).astype(np.uint8)
    yield Case("clipped_bytes", _saved(folder / "clipped", clipped), "warned", "clipped", flags=pictures)

    rolled = np.roll(image, (SIZE // 2, SIZE // 2), (1, 2))
    yield Case("images_without_fftshift", _saved(folder / "rolled", rolled), "warned", "around the edges",
               flags=pictures)  # fmt: skip

    centred = (np.abs(image) - np.abs(image).mean()).astype(np.float32)
    yield Case("mean_removed", _saved(folder / "centred", centred), "refused", "negative", flags=pictures)

    damaged = measured.copy()
    damaged[2, np.flatnonzero(mask[2, :, 0])[3], 7] = np.nan
    yield Case("not_a_number", _saved(folder / "nan", damaged), "refused", "NaN", flags=k)

    decentred = measured.copy()
    decentred[:, SIZE // 2 - 2 : SIZE // 2 + 2] = 0
    yield Case("without_its_centre", _saved(folder / "decentred", decentred), "warned", "sampled in no frame, so",
               flags=k)  # fmt: skip
    bytes_that_wrapped = np.round(400 * np.abs(image) / np.abs(image).max()).astype(np.uint16) % 256
    yield Case("wrapped_bytes", _saved(folder / "wrapped", bytes_that_wrapped.astype(np.uint8)), "warned",
               "wrapped around", flags=pictures)  # fmt: skip

    pairs = np.stack([measured.real, measured.imag], axis=-1)
    yield Case("pairs_last", _saved(folder / "pairs_last", pairs), "taken", truth=image, flags=k)
    scale = 30000 / np.abs(pairs).max()
    whole = np.round(pairs * scale).astype(np.int16)
    yield Case("pairs_of_integers", _saved(folder / "pairs_integers", whole), "taken", truth=image * scale, flags=k)
    apart = folder / "apart.npz"
    np.savez(apart, kspace_real=measured.real, kspace_imag=measured.imag)
    yield Case("real_and_imaginary_apart", apart, "taken", truth=image, flags={})

    magnitude = np.abs(kspace).astype(np.float32)
    yield Case("magnitude_of_kspace", _saved(folder / "abs", magnitude), "refused", "complex", flags=k)

    other = make_mask("uniform", image.shape, 4, 8).numpy()
    turned = Case("mask_transposed", _saved(folder / "turned", measured), "taken", truth=image, flags=k,
                  mask=_saved(folder / "mask_turned", other.transpose(0, 2, 1).astype(np.uint8)))  # fmt: skip
    yield turned
    fewer = other.copy()
    fewer[:, 1::5] = False
    yield Case("mask_leaves_lines_out", _saved(folder / "fewer", measured), "warned", "omits", flags=k,
               mask=_saved(folder / "mask_fewer", fewer.astype(np.uint8)))  # fmt: skip
    first = np.repeat(other[:1], FRAMES, 0)
    yield Case("mask_of_one_frame_for_all", _saved(folder / "one", measured), "refused", "mask of frame 0", flags=k,
               mask=_saved(folder / "mask_one", first.astype(np.uint8)))  # fmt: skip

    gaps = np.arange(SIZE)[:, None] % 4 == 0
    yield Case("same_gaps_and_no_centre", _saved(folder / "gaps", np.where(gaps, kspace, 0)), "refused",
               "the aliasing cannot be resolved", flags=k)  # fmt: skip
    gaps = gaps | (np.abs(np.arange(SIZE)[:, None] - SIZE // 2) <= 4)
    yield Case("same_gaps_in_every_frame", _saved(folder / "same", np.where(gaps, kspace, 0)), "warned",
               "gaps inside the sampled range", flags=k)  # fmt: skip
    coils = np.stack([kspace[0] * (1 + i) for i in range(4)])[None]
    yield Case("one_frame_of_coils", _saved(folder / "coils", coils), "refused", "1 frame of 4 coils", flags=k)
    for axis, sign in (("rows", np.arange(SIZE)[:, None]), ("columns", np.arange(SIZE))):
        changed = measured * (-1.0) ** sign
        yield Case(f"alternating_sign_along_{axis}", _saved(folder / f"sign_{axis}", changed), "warned",
                   "around the edges", flags=k)  # fmt: skip
    yield Case("mean_of_kspace_removed", _saved(folder / "mean", np.where(mask, kspace - kspace.mean(0), 0)), "warned",
               "averages to almost zero", flags=k)  # fmt: skip
    turns = np.exp(2j * np.pi * np.random.default_rng(3).random(FRAMES))[:, None, None]
    yield Case("phase_at_random", _saved(folder / "phases", measured * turns), "warned", "to almost zero", flags=k)
    limit = 0.1 * np.abs(measured).max()
    clipped = measured.real.clip(-limit, limit) + 1j * measured.imag.clip(-limit, limit)
    yield Case("clipped_kspace", _saved(folder / "clipped_k", clipped), "warned", "k-space was clipped", flags=k)
    no_dc = measured.copy()
    no_dc[:, SIZE // 2, SIZE // 2] = 0
    yield Case("dc_removed", _saved(folder / "no_dc", no_dc), "warned", "is zero in all frames", flags=k)
    for name, array in (("kspace", image + noise_of(image, 0.02)), ("image", measured)):
        np.savez(folder / f"named_{name}.npz", **{name: array.astype(np.complex64)})
        yield Case(f"named_{name}_and_is_not", folder / f"named_{name}.npz", "refused", "the values look like")
    np.savez(folder / "with_mask.npz", kspace=kspace.astype(np.complex64), mask=mask)
    yield Case("mask_beside_full_kspace", folder / "with_mask.npz", "taken", truth=image, flags={})

    generator = np.random.default_rng(1)
    noise = generator.standard_normal(image.shape) + 1j * generator.standard_normal(image.shape)
    yield Case("nothing_but_noise", _saved(folder / "noise", np.where(mask, noise, 0)), "warned", "SNR", flags=k)


def noise_of(image: np.ndarray, level: float) -> np.ndarray:
    """Complex noise of this share of the brightest pixel."""
    pair = np.random.default_rng(2).standard_normal((2, *image.shape))
    return level * np.abs(image).max() * (pair[0] + 1j * pair[1])


def _saved(path: Path, array: np.ndarray) -> Path:
    path = path.with_suffix(".npy")
    if array.dtype == np.complex128:
        array = array.astype(np.complex64)
    np.save(path, array)
    return path
