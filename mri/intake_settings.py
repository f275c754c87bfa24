"""What a user may say of a scan and its mask; each field is declared once, with its range and meaning."""

from dataclasses import dataclass, field
from typing import ClassVar

from mri.formats.stored import TIMES
from mri.masks import PATTERNS
from utils.settings import Settings, setting

EMBEDDED_SIZE = 96
Block = tuple[slice, slice]


@dataclass(frozen=True)
class DataSettings(Settings):
    """Which scan, and how its file is read."""

    part: ClassVar[str] = "data"

    path: str = setting("", "scan file or folder of scans; empty: the built-in heart phantom")
    key: str = setting("", "variable in the file; empty: detected")
    kind: str = setting("", "image | kspace; empty: detected", choices=("", "image", "kspace"))
    frames_axis: int | None = setting(None, "axis of time in the file, e.g. -1; None: detected", optional=int)
    coils_axis: int | None = setting(None, "axis of the coils in the file; None: detected", optional=int)
    time: str = setting("", "dimension or counter used as time; empty: detected", choices=("", *TIMES))
    slice: int | None = setting(None, "slice of a file with several, from 0", least=0, optional=int)
    set: int | None = setting(None, "set (such as a velocity encoding) of a file with several", least=0, optional=int)
    dc: str = setting("center", "where zero frequency lies in k-space files", choices=("center", "corner"))
    phase: str = setting("smooth", "phase given to magnitude images", choices=("smooth", "none"))
    frames: int = setting(0, "frames used; 0: all (built-in heart phantom: 16); image series with "
                          "fewer are repeated cyclically, k-space is not", least=0, most=1024)  # fmt: skip
    size: int = setting(0, "matrix size, the centre of k-space; 0: all (built-in heart phantom: model.image_size)",
                        least=0, most=4096)  # fmt: skip
    phantoms: int = setting(16, "built-in heart phantoms to train on, seeds 1, 2, … (the demo uses seed 0)", least=0)
    noise_std: float | None = setting(
        None, "σ of a complex k-space sample of one coil, E|n|² = σ², in the units of the file; None: from noise "
        "samples, else estimated", least=0, optional=float
    )  # fmt: skip


@dataclass(frozen=True)
class MaskSettings(Settings):
    """The sampling mask of fully sampled data, or the one that was used."""

    part: ClassVar[str] = "mask"

    path: str = setting("", "mask file; empty: detected from the zeros of k-space, or generated")
    key: str = setting("", "variable in the mask file; empty: detected")
    pattern: str = setting("uniform", "mask to generate", choices=PATTERNS)
    acceleration: float = setting(4.0, "nominal acceleration R, not counting the ACS lines", least=1)
    acs: int = setting(8, "fully sampled central lines", least=0)


@dataclass(frozen=True)
class Intake:
    """All that decides how a scan is taken."""

    data: DataSettings = field(default_factory=DataSettings)
    mask: MaskSettings = field(default_factory=MaskSettings)
    maps: str = "auto"  # a file of coil maps, or how they are estimated (`reconstruction.prepare`)
    seed: int = 0  # of masks, image phases and the noise of the built-in phantom
    embedded_size: int = EMBEDDED_SIZE
    own_mask: bool = True  # whether a mask beside the scan in its file is used, where none is named
    block: Block | None = None  # of zero-padded k-space, the part that was measured; masks and maps are cut to it
