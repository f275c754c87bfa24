"""What the priors learn from, prepared once in memory-mapped files: merged frames, scenes, held-out samples."""

import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from losses import PreparedScene
from models.prior import Prior
from mri.fourier import fft2c, ifft2c
from mri.holdout import hold_out_for_training
from mri.intake import acquire, training_sources
from mri.lowrank.along_motion import motion_low_rank
from mri.lowrank.locally import fista_locally_low_rank
from mri.operators import ForwardModel
from mri.phantom import make_phantom
from mri.scan import Scan
from mri.scenes import Draw, acquire_scene, make_scene
from mri.view_sharing import share_views
from reconstruction.calibration import ERROR_GAIN
from reconstruction.optimization_unit import OptimizationUnit, schedule_for, with_operator
from reconstruction.prepare import Problem, prepare, scan_scale
from reconstruction.settings import OUSettings
from training.settings import RunSettings, plain
from utils.errors import InputError
from utils.files import atomic_path
from utils.frame_file import append_frames, open_frames

Tensor = torch.Tensor

# ------------------------------------------------------------------------------------- pseudo-references


def pseudo_reference_file(settings: RunSettings, folder: Path, model: str) -> Path:
    """Training frames of the global or the local model, all scans, in one memory-mapped file of `folder`.

    Made once: the file's name holds a checksum of all that it depends on. k-space of combined images, complex64
    `(N, height, width)`; every scan is divided by its own scale. The fill reports go to the progress bar.

    Raises
    ------
    InputError
        when the scans differ in size.
    """
    window = "global" if model == "global" else settings.pseudo_reference.window
    sources = training_sources(settings.intake)
    checksum = data_checksum(settings, sources, asdict(settings.pseudo_reference))
    path = folder / f"pseudo_references_{window}_{checksum}.npy"
    if path.exists():
        return path
    size = None
    with atomic_path(path) as temporary:
        bar = tqdm(sources, desc=f"pseudo-references ({window})", unit="scan")
        for source in bar:
            scan, problem = _problem(settings, source)
            size = _same_size(size, scan.name, tuple(scan.kspace.shape[2:]))
            frames, report = pseudo_reference_frames(problem, window)
            bar.set_postfix_str(str(report))
            append_frames(temporary, frames.numpy())
    return path


def pseudo_reference_frames(problem: Problem, window: str):
    """k-space of the combined pseudo-references of a scan, complex64 `(frames, height, width)`, and the fill report."""
    filled, report = share_views(problem.measured, problem.model.mask, window, periodic=problem.periodic)
    kspace = fft2c(problem.model.combine(filled)) if problem.model.coils > 1 else filled[:, 0]
    return (kspace.mT.contiguous() if problem.turned else kspace).to(torch.complex64), report


def _problem(settings: RunSettings, source: Path | int) -> tuple[Scan, Problem]:
    """A scan to train on; how it is taken is printed."""
    scan, _ = acquire(settings.intake, source)
    problem = prepare(scan, settings.prepare)
    tqdm.write("\n".join((f"{scan.name}: {scan}", *problem.notes)))
    return scan, problem


def _same_size(size: tuple | None, name: str, own: tuple) -> tuple:
    if size is not None and own != size:
        raise InputError(
            f"{name} is {own} and others are {size}; train on scans of one size (--config.data.size)."
        )
    return own


def data_checksum(settings: RunSettings, sources: Sequence[Path | int], *parts: Any) -> str:
    """Twelve hexadecimal digits of all that data made of `sources` with these settings depend on."""
    intake = settings.intake
    stamps = [(str(s), s.stat().st_size, s.stat().st_mtime_ns) if isinstance(s, Path) else s for s in sources]
    known = [settings.seed, asdict(intake), asdict(settings.prepare), *parts, stamps]
    return hashlib.sha256(json.dumps(plain(known), sort_keys=True).encode()).hexdigest()[:12]


def own_images(settings: RunSettings) -> list[tuple[Tensor, bool]]:
    """Images of the user's scans to learn from, of unit scale, and whether they are periodic.

    Of a fully sampled scan, its images; of an under-sampled one, its pseudo-references: views shared between the
    nearest frames.
    """
    found = []
    for source in training_sources(settings.intake):
        scan, reference = acquire(settings.intake, source)
        problem = prepare(scan, settings.prepare)
        image = problem.view_sharing() if reference is None else problem.reference_image(reference) / problem.scale
        kind = "pseudo-references" if reference is None else "images"
        tqdm.write(f"{scan.name}: {scan}\nlearns from its {kind}")
        found.append((image.to(torch.complex64), problem.periodic))
    return found


# ------------------------------------------------------------------------------------ synthetic scenes


def prepare_scene(number: int, size: int, operator: str) -> PreparedScene:
    """Training scene `number`: drawn, acquired, and what the OU makes of the acquisition.

    One scene in eight is a phantom heart of `mri.phantom` (seeds from 1000, which no test uses), the others are
    `mri.scenes`. `operator`: `motion` or `llr`, as of `reconstruction.optimization_unit.OptimizationUnit`.
    """
    draw = Draw(number)
    frames = draw.choice((6, 8, 12, 16, 16, 16, 20, 24))
    if number % 8 == 7:
        image, periodic = make_phantom(frames, size, 1000 + number).to(torch.complex64), True
        image = image / image.abs().max()
    else:
        image, periodic = make_scene(frames, size, size, number)
    measurement = acquire_scene(image, number)
    mask, kspace = measurement.mask, measurement.kspace[:, None]
    model = ForwardModel.of_one_coil(mask)
    scale = scan_scale(kspace, model)
    measured = kspace / scale
    start = model.combine(share_views(measured, mask, "nearest", periodic=periodic)[0])
    if operator == "motion":
        schedule, patches = schedule_for(mask.double().mean().item()), OUSettings().motion_patches
        (last,) = deque(motion_low_rank(start, model, measured, patches, schedule, periodic, number), maxlen=1)
        start = last.consistent
    else:
        start = fista_locally_low_rank(start, model, measured, 4e-4, (6, 8, 12), 100, 4.0, number)
    truth = (image / scale)[:, None]
    return PreparedScene(truth, start, mask, torch.ones_like(mask), model.maps, periodic)


def scene_file(folder: Path, operator: str, size: int) -> "SceneFile":
    """Where the synthetic scenes of this size, prepared by this OU, are kept."""
    return SceneFile(folder / f"scenes_{'' if operator == 'llr' else f'{operator}_'}{size}.npy")


def draw_scenes(
    scenes: "SceneFile", count: int, size: int, operator: str, workers: int, deadline: float = math.inf
) -> None:
    """Add synthetic scenes to `scenes` until it has `count`, drawn by `workers` processes (0: this one).

    No further one after `deadline`, in seconds of `time.monotonic`, but one in any case.
    """
    numbers = range(len(scenes) + 1, count + 1)
    loader = DataLoader(_Drawn(numbers, size, operator), batch_size=None, num_workers=workers)
    for scene in tqdm(loader, desc="scenes", unit="scene", disable=not numbers):
        scenes.append(scene)
        if time.monotonic() > deadline:
            break


@dataclass(frozen=True)
class _Drawn(Dataset):
    """Scenes by their place in `numbers`, made when they are asked for."""

    numbers: range
    size: int
    operator: str

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> PreparedScene:
        return prepare_scene(self.numbers[place], self.size, self.operator)


# ------------------------------------------------------------------------------------- held-out samples


def self_supervised_file(settings: RunSettings, folder: Path) -> "SceneFile":
    """The scans of `data.path` with samples held out in `training.splits` ways each, in one file, made once."""
    sources, training = training_sources(settings.intake), settings.training
    ou = settings.ou
    if ou.operator == "auto":  # as in the synthetic scenes
        ou = replace(ou, operator=training.ou)
    checksum = data_checksum(settings, sources, asdict(ou))
    path = folder / f"self_supervised_{training.splits}_{ou.operator}_{checksum}.npy"
    if path.exists():
        return SceneFile(path)
    with atomic_path(path) as temporary:
        written, size, coils = SceneFile(temporary), None, None
        for source in tqdm(sources, desc="scans", unit="scan"):
            scan, problem = _problem(settings, source)
            size = _same_size(size, scan.name, tuple(problem.model.mask.shape[1:]))
            coils = coils or problem.model.coils
            if problem.model.coils != coils:
                raise InputError(
                    f"{scan.name} has {problem.model.coils} virtual coils and others {coils}; give all the same "
                    f"number: --config.data.virtual_coils={max(coils, problem.model.coils)}, or fewer where "
                    "a scan has fewer coils."
                )
            for seed in range(training.splits):
                written.append(prepare_held_out(problem, ou, seed))
    return SceneFile(path)


def prepare_held_out(problem: Problem, ou: OUSettings, seed: int) -> PreparedScene:
    """A scan with samples held out, and what the OU makes of the others, to learn to predict them.

    Parameters
    ----------
    seed
        of what is held out, see `mri.holdout.hold_out_for_training`.

    Raises
    ------
    InputError
        when the mask leaves nothing to hold out.
    """
    mask = problem.model.mask
    kept, held_out = hold_out_for_training(mask, seed)
    if not held_out.any():
        raise InputError(
            "the mask leaves no samples to hold out, so self-supervised training is not possible; acquire at least 2 "
            "ACS lines, or use training.objective=synthetic."
        )
    start = OptimizationUnit(with_operator(ou, "cascade"), seed).solve(problem.restricted(kept))
    tensors = (tensor.cpu() for tensor in (ifft2c(problem.measured), start, kept, mask, problem.model.maps))
    return PreparedScene(*tensors, problem.periodic)


# ---------------------------------------------------------------------------------------- LM after GM


def advanced_file(scenes: "SceneFile", checksum: str) -> "SceneFile":
    """Where the results of the GM with this checksum on `scenes` are kept."""
    return SceneFile(scenes.path.with_name(f"{scenes.path.stem}_after_{checksum[:12]}.npy"))


def advance_scenes(
    scenes: "SceneFile", advanced: "SceneFile", count: int, prior: Prior, device: torch.device,
    deadline: float = math.inf,
) -> None:
    """Add to `advanced` what `prior` makes of the first `count` of `scenes`, as far as it is not there.

    `deadline` as of `draw_scenes`.
    """
    numbers = range(len(advanced), count)
    for number in tqdm(numbers, desc="scenes after GM", unit="scene", disable=not numbers):
        advanced.append(advance_scene(scenes[number], prior, device))
        if time.monotonic() > deadline:
            break


def advance_scene(scene: PreparedScene, prior: Prior, device: torch.device | str = "cpu") -> PreparedScene:
    """The scene with the start that `prior` makes of its own."""
    sigma = scene.error_std() * (1.0 if scene.known.all() else ERROR_GAIN)
    image, model, periodic = scene.state
    return replace(scene, start=prior.denoise(image.to(device), model.to(device), sigma, periodic).cpu())


class SceneFile:
    """Prepared scenes of one size in one memory-mapped file, in order, each whole or not there.

    Pickled (for the processes of a data loader) as its path alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._frames: np.ndarray | None = None

    def append(self, scene: PreparedScene) -> None:
        """Write one more scene."""
        coils, height, width = scene.maps.shape
        image, stack = (height, width), (coils, height, width)
        kind = np.dtype([
            ("scene", "<i8"), ("periodic", "?"), ("truth", "<c8", stack), ("start", "<c8", image), ("mask", "?", image),
            ("known", "?", image), ("maps", "<c8", stack),
        ])  # fmt: skip
        frames = np.zeros(len(scene.start), kind)
        frames["scene"], frames["periodic"] = len(self), scene.periodic
        for name in ("truth", "start", "mask", "known"):
            frames[name] = getattr(scene, name).numpy()
        frames["maps"] = scene.maps.numpy()
        append_frames(self.path, frames)
        self._frames = None

    def __len__(self) -> int:
        return len(self._bounds()) - 1 if self.path.exists() and self.path.stat().st_size else 0

    def __getitem__(self, number: int) -> PreparedScene:
        first, end = self._bounds()[number : number + 2]
        part = self._frames[first:end]
        tensors = {name: torch.from_numpy(np.array(part[name])) for name in ("truth", "start", "mask", "known")}
        maps = torch.from_numpy(np.array(part["maps"][0]))
        return PreparedScene(**tensors, maps=maps, periodic=bool(part["periodic"][0]))

    def __getstate__(self) -> dict:
        return {"path": self.path, "_frames": None}

    def _bounds(self) -> np.ndarray:
        """First frame of every scene, and one past the last."""
        if self._frames is None:
            self._frames = open_frames(self.path)
            if "truth" not in (self._frames.dtype.names or ()):
                raise InputError(f"{self.path} was made by an earlier version; remove it, and it is made again.")
            scene = self._frames["scene"]
            self._first = np.searchsorted(scene, np.arange(scene[-1] + 2))
        return self._first
