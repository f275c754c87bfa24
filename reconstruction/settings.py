"""What a user may set of a reconstruction; each field is declared once, with its range, unit and meaning."""

from dataclasses import dataclass
from typing import ClassVar

from models.precision import PRECISIONS
from utils.errors import InputError
from utils.settings import Settings, setting

OPERATORS = ("auto", "hankel", "llr", "motion")
SAMPLERS = ("cascade", "published")
MODELS = ("global", "local")


@dataclass(frozen=True)
class PrepareSettings(Settings):
    """How a scan becomes a problem to solve; fields of `config.data`."""

    part: ClassVar[str] = "data"

    periodic: bool | None = setting(
        None, "cyclic series: the last frame is followed by the first; None: detected", optional=bool
    )
    maps: str = setting("auto", "coil maps: walsh, espirit, or a file; auto: walsh where the temporal mean is complete")
    virtual_coils: int = setting(0, "virtual coils; 0: the fewest with 99 % of the signal energy, at most 16", least=0)


@dataclass(frozen=True)
class OUSettings(Settings):
    """The optimization unit: low rank with data consistency."""

    part: ClassVar[str] = "ou"

    after: str = setting(
        "both", "when the OU runs: after GM and LM (both; paper, Fig. 1), after the last (its code), or never; with "
        "priors of scenes, which are interleaved with it, only never has an effect",
        choices=("both", "last", "never"),
    )  # fmt: skip
    operator: str = setting(
        "auto", "hankel: structured (published); llr: locally low rank; motion: low rank along the motion; auto: "
        "hankel for the published sampler, else motion", choices=OPERATORS
    )  # fmt: skip
    window: int = setting(8, "hankel: k-space window, samples", least=1)
    rank: int = setting(0, "hankel: singular vectors kept; 0: as published, 6 per frame", least=0)
    llr_iterations: int = setting(100, "llr: FISTA iterations of the OU alone", least=1)
    motion_patches: tuple = setting((12, 8, 6, 4), "motion: patch sizes in turn, pixels", least=1)
    motion_steps: int = setting(0, "motion: steps; 0: 12 times the net acceleration, limited to 24 to 80", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.motion_steps == 1:
            raise InputError("ou.motion_steps must be 2 or more, or 0 to follow the acceleration.")
        if not self.motion_patches:
            raise InputError("ou.motion_patches must name at least one size.")


@dataclass(frozen=True)
class SamplingSettings(Settings):
    """The cascade of the two models."""

    part: ClassVar[str] = "sampling"

    sampler: str = setting("published", "published: the paper's; cascade: GM, then LM, interleaved with the OU",
                           choices=SAMPLERS)  # fmt: skip
    order: tuple = setting(MODELS, "the models of the cascade, in their order", choices=None)
    start: str = setting(
        "zero_filled", "published: initial images", choices=("zero_filled", "pseudo_reference")
    )
    num_scales: int = setting(1000, "published: N, noise levels over the range the networks were trained for", least=2)
    iterations: int = setting(300, "published: noise levels used, from the largest down", least=1)
    batch_size: int = setting(16, "frames per network pass; temporal networks take the whole scan", least=1)
    precision: str = setting("fp32", "of the network passes", choices=PRECISIONS)
    compile: bool = setting(False, "torch.compile the networks; on a GPU with CUDA graphs")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.order or not set(self.order) <= set(MODELS):
            raise InputError(f"sampling.order {tuple(self.order)} must name global, local or both.")
        if self.iterations > self.num_scales:
            raise InputError(f"sampling.iterations must be at most sampling.num_scales = {self.num_scales}.")
