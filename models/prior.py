"""GM and LM as the samplers use them: a network, what it sees of a scan, and its file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.checkpoint import load_model
from models.completion import STEP_SHARE, State, denoise_consistently, tweedie_changes
from models.context import Context
from models.convert import load_published
from models.ncsnpp import NCSNpp
from models.precision import Score, compiled, in_precision
from mri.operators import ForwardModel
from mri.weighting import KspaceWeight
from op import dispatch
from utils.errors import InputError
from utils.memory import within_memory

Tensor = torch.Tensor

MODELS = ("global", "local")


def shipped(name: str, sampler: str) -> Path:
    """The shipped checkpoint of GM or LM (`name`): of moving scenes for `cascade`, the paper's kind for `published`."""
    folder = Path(__file__).parents[1] / "checkpoints"
    return (folder / "dsm" if sampler == "published" else folder) / f"{name}.safetensors"


@dataclass(frozen=True)
class Prior:
    """A score network, and how it sees a scan: weighted k-space (published), or images with context."""

    network: NCSNpp
    weight: KspaceWeight
    path: str
    batch_size: int = 16  # frames per network pass; a temporal network takes all
    context: Context | None = None  # None: k-space, frame by frame
    shares: tuple[float, ...] = (1.0,)  # with context: share of the error left after each step in training
    role: str | None = None  # global or local, where the file says it
    run: Score | None = None  # the network compiled or in another precision; None: as it is
    of_scenes: bool = False  # does not see the sampling: `change` is independent of the mask

    @property
    def sigma_min(self) -> float:
        """Smallest noise level that the network was trained for, per real channel."""
        return self.network.architecture["sigma_min"]

    @property
    def sigma_max(self) -> float:
        """Largest one."""
        return self.network.architecture["sigma_max"]

    @property
    def passes(self) -> int:
        """Network passes per frame of `denoise`."""
        return len(self.shares)

    @property
    def remaining(self) -> float:
        """Share of the error's deviation that is left after it, as in its training."""
        return self.shares[-1]

    def denoise(self, image: Tensor, model: ForwardModel, sigma: float, periodic: bool) -> Tensor:
        """D(x; σ): the data-consistent mean of clean images given noisy ones, by a prior with context.

        Takes as many steps as the prior was trained through, each with the σ of that step in training.

        Parameters
        ----------
        image
            complex `(frames, height, width)` of unit scale, data consistent.
        model, periodic
            as of `models.completion.State`.
        sigma
            standard deviation of the image's error per real channel.
        """
        if self.context is None:
            raise ValueError("a prior without context denoises weighted k-space, see `score`")
        if self.of_scenes:
            known = min(max(sigma, self.sigma_min), self.sigma_max)
            return image + model.unmeasured(self.change(image, known, periodic))
        state = State(image, model, periodic)
        for _ in range(self.passes):
            (state,) = denoise_consistently(self._run, [state], self.context, [sigma], self.sigma_min)
            sigma *= STEP_SHARE
        return state.image

    def change(self, image: Tensor, sigma: float, periodic: bool) -> Tensor:
        """D(x; σ) − x of a whole scan, independent of the sampling: a prior of moving scenes.

        Parameters
        ----------
        image
            complex `(frames, height, width)` of unit scale.
        sigma
            standard deviation of its error per real channel.
        """
        if self.context is None:
            raise ValueError("a prior without context denoises weighted k-space, see `score`")
        return change_of(self._run, self.context, image, sigma, periodic)

    def score(self, x: Tensor, sigma: float) -> Tensor:
        """∇ log p_σ of frames of weighted k-space, real `(frames, 2, ky, kx)`: a prior without context."""
        return self._run(x, torch.full((len(x),), sigma, device=x.device))

    @torch.no_grad()
    def _run(self, x: Tensor, levels: Tensor, neighbours: Tensor | None = None) -> Tensor:
        """The network's output; a temporal network sees all frames in one pass, another `batch_size` at a time.

        Raises
        ------
        InputError
            when the frames of a pass do not fit into the memory; suggests a number that does.
        """
        run = self.network if self.run is None else self.run
        if self.network.architecture["temporal"]:
            parts: list[Any] = [(x, levels, neighbours)]
            field = "data.frames"
        else:
            parts = list(zip(x.split(self.batch_size), levels.split(self.batch_size), strict=True))
            neighbours, field = None, "sampling.batch_size"

        def attempt(count: int) -> Tensor:
            some = () if neighbours is None else (neighbours[:, :count].clamp(max=count - 1),)
            return self.network(x[:count], levels[:count], *some)

        scores = within_memory(
            lambda: [run(*part) for part in parts], attempt, len(parts[0][0]), lambda count: f"set {field}={count}"
        )
        return torch.cat(scores)


def change_of(score: Score, context: Context, image: Tensor, sigma: float, periodic: bool) -> Tensor:
    """D(x; σ) − x of a whole scan `(frames, height, width)` by the network `score`; nothing is said to be measured."""
    (change,) = tweedie_changes(score, [State(image, nothing_measured(image), periodic)], context, [sigma])
    return change


def nothing_measured(image: Tensor) -> ForwardModel:
    """The forward model of images without measured samples."""
    return ForwardModel.of_one_coil(torch.zeros(image.shape, dtype=torch.bool, device=image.device))


def load_prior(
    path: str | Path,
    device: torch.device | str = "cpu",
    batch_size: int = 16,
    precision: str = "fp32",
    compile: bool = False,
) -> Prior:
    """A prior from our `.safetensors` or a published `.pth` (which then has the published weight).

    Parameters
    ----------
    batch_size
        frames per network pass of a network that is not temporal.
    precision, compile
        see `models.precision`.

    Raises
    ------
    InputError
        when the file is missing, truncated, or of another architecture.
    """
    dispatch.check(torch.device(device).type == "cuda")
    shares = (1.0,)
    if Path(path).suffix == ".pth":
        network, weight, context = load_published(path), KspaceWeight.published(), None
        metadata: dict[str, Any] = {}
    elif Path(path).suffix == ".safetensors":
        network, metadata = load_model(path)
        try:
            weight = KspaceWeight(**metadata["weight"])
            context = Context.from_mapping(metadata["context"]) if "context" in metadata else None
            if context is not None:  # of one step, as of several
                losses = metadata["loss"] if isinstance(metadata["loss"], list) else [metadata["loss"]]
                shares = tuple(loss**0.5 for loss in losses)
        except (KeyError, TypeError):
            raise InputError(
                f"{path} has no k-space weight or loss; use a checkpoint that main.py --mode=train wrote."
            ) from None
    else:
        raise InputError(f"{path}: a checkpoint is a .safetensors of main.py or a published .pth; give one of these.")
    channels = network.architecture["num_channels"]
    if channels != 2:
        raise InputError(
            f"{path} is a network of {channels} channels; k-space has 2, real and imaginary: "
            "use a checkpoint of this project or a published one."
        )
    network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = network.eval().requires_grad_(False)
    run = None
    if compile or precision != "fp32":
        run = in_precision(compiled(network, device) if compile else network, precision, device)
    of_scenes = metadata.get("objective") in ("scenes", "cascade")
    return Prior(network, weight, str(path), batch_size, context, shares, metadata.get("prior"), run, of_scenes)


def load_shipped(name: str, sampler: str, *run) -> Prior:
    """The shipped GM or LM (`name`); `run` as of `load_prior`."""
    return load_prior(shipped(name, sampler), *run)
