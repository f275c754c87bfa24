"""What a user may set of a training; each field is declared once, with its range, unit and meaning."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from models.context import Context
from models.ncsnpp import NCSNpp
from mri.intake_settings import Intake
from mri.view_sharing import WINDOWS
from reconstruction.settings import PRECISIONS, PrepareSettings
from utils.errors import InputError
from utils.settings import Settings, setting

OBJECTIVES = ("dsm", "scenes", "cascade")


@dataclass(frozen=True)
class PseudoReferenceSettings(Settings):
    """What the local model learns from; the global one learns from all frames merged."""

    part: ClassVar[str] = "pseudo_reference"

    window: str = setting("nearest", "frames that missing samples are taken from, for LM", choices=WINDOWS)


@dataclass(frozen=True)
class ModelSettings(Settings):
    """The score network, NCSN++ (`models.ncsnpp`)."""

    part: ClassVar[str] = "model"

    image_size: int = setting(192, "matrix size of the network's design, and of built-in heart phantoms", least=16)
    nf: int = setting(128, "features at full resolution", least=1)
    ch_mult: tuple = setting((1, 1, 2, 2, 2, 2, 2), "multiples of nf per level, finest first", least=1)
    num_res_blocks: int = setting(2, "residual blocks per level", least=1)
    attn_resolutions: tuple = setting((16,), "sizes of feature maps with self-attention; the bottleneck always has it",
                                      least=1)  # fmt: skip
    sigma_min: float = setting(0.01, "smallest noise level, in the units of the data", above=0)
    sigma_max: float = setting(4.0, "largest noise level", above=0)
    dropout: float = setting(0.0, "probability, in training", least=0, most=0.9)
    ema_rate: float = setting(0.999, "decay of the running average of the weights", least=0, most=1)
    temporal: bool = setting(False, "every level sees the frames before and after; not with dsm")
    patch: int = setting(1, "side of the pixel blocks that form one network input (pixel unshuffle)", least=1)

    def network(self, context: Context | None) -> NCSNpp:
        """The network, freshly initialised."""
        fields = {name: value for name, value in asdict(self).items() if name != "ema_rate"}
        return NCSNpp(in_channels=2 + (context.channels if context else 0), num_channels=2, centered=True, **fields)


@dataclass(frozen=True)
class OptimSettings(Settings):
    """Adam."""

    part: ClassVar[str] = "optim"

    lr: float = setting(2e-4, "learning rate", least=0)
    schedule: str = setting("constant", "learning rate after the warm-up; cosine: falls to 0 at training.n_iters",
                            choices=("constant", "cosine"))  # fmt: skip
    warmup: int = setting(5000, "steps of linear warm-up", least=0)


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """Objective, batches and files of a training."""

    part: ClassVar[str] = "training"

    objective: str = setting(
        "dsm", "dsm: the paper's, on merged frames; scenes: on moving scenes, synthetic or from data.path; cascade: "
        "on scans simulated from these, through the sampler",
        choices=OBJECTIVES,
    )  # fmt: skip
    batch_size: int = setting(4, "frames per step, of all processes and accumulated parts together", least=1)
    accumulation: int = setting(1, "gradient accumulation steps per process", least=1)
    precision: str = setting("fp32", "of the network's layers; weights and average stay float32", choices=PRECISIONS)
    workers: int | None = setting(None, "processes that draw batches; None: 0 on a CPU, else up to 12", least=0,
                                  optional=int)  # fmt: skip
    n_iters: int = setting(2_000_001, "steps", least=1)
    snapshot_freq: int = setting(10000, "steps between checkpoints that are kept, and TensorBoard images", least=1)
    snapshot_freq_for_preemption: int = setting(1000, "steps between saves of the checkpoint to resume from", least=1)
    compile: bool = setting(False, "torch.compile the training step (needs a C++ compiler on a CPU)")
    init: str = setting("", "model.safetensors to start from, for GM and LM; empty: random weights")
    partner: str = setting("", "cascade: model.safetensors of the other prior, which is frozen and takes its own "
                           "turns; empty: the prior in training takes all turns")
    scene_frames: int = setting(16, "scenes, cascade: maximum frames of one scan in a batch", least=1)
    columns: int = setting(48, "scenes, cascade: side of the training crop, pixels; 0: model.image_size", least=0)


@dataclass(frozen=True)
class RunSettings:
    """All that a training run depends on."""

    seed: int
    intake: Intake
    prepare: PrepareSettings
    pseudo_reference: PseudoReferenceSettings
    model: ModelSettings
    training: TrainingSettings
    optim: OptimSettings

    def __post_init__(self) -> None:
        if self.model.temporal and self.training.objective == "dsm":
            raise InputError("training.objective dsm learns from single frames; set model.temporal=false.")
        if self.training.partner and self.training.objective != "cascade":
            raise InputError(
                "training.partner is used by objective cascade only; remove it for objective "
                f"{self.training.objective}."
            )

    def record(self) -> dict[str, Any]:
        """As JSON types, by the parts of a configuration."""
        parts = (self.pseudo_reference, self.model, self.training, self.optim)
        found: dict[str, Any] = {"seed": self.seed, "data": {**asdict(self.intake.data), **asdict(self.prepare)}}
        found["mask"] = asdict(self.intake.mask)
        found |= {part.part: asdict(part) for part in parts}
        return plain(found)


def plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples as lists."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value
