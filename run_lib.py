"""The jobs behind the commands: train the priors, reconstruct a scan, reconstruct a folder of scans."""

import json
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import torch

from models.prior import Prior, load_prior, load_shipped
from mri.formats import sha256
from mri.formats.detect import result_names
from mri.formats.export import add_series, patient_header, series_record, write_series
from mri.formats.stored import SeveralSlices
from mri.intake import acquire, scan_files
from mri.intake_settings import DataSettings, Intake, MaskSettings
from mri.metrics import evaluate
from mri.scan import Reference, Scan
from reconstruction.notes import reference_notes, score_notes
from reconstruction.optimization_unit import expectation, run_optimization_unit, with_operator
from reconstruction.prepare import Problem, prepare
from reconstruction.settings import MODELS, OUSettings, PrepareSettings, SamplingSettings
from report.index import would_lose, write_index
from report.page import write_report
from report.results import remove_left_overs, write_pictures, write_reconstruction, write_scores, write_table
from sampling import Reconstruction, reconstruct_problem
from utils.arguments import command_line
from utils.claims import claim
from utils.errors import InputError
from utils.files import atomic_folder, refuse_existing, refuse_unwritable, remove_unfinished
from utils.processes import process_group
from utils.settings import flat

Tensor = torch.Tensor
Priors = tuple[Prior, Prior]


@dataclass(frozen=True)
class Job:
    """All that a reconstruction depends on besides the scan and the priors."""

    intake: Intake
    prepare: PrepareSettings
    ou: OUSettings
    sampling: SamplingSettings
    seed: int
    write: tuple[str, ...] = ()  # further formats of the result, of `mri.formats.export.FORMATS`
    keep_patient: bool = False  # in DICOM, from a DICOM source
    matrix: tuple[int, int] | None = None  # that these are interpolated to

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict, seed: int | None = None) -> "Job":
        """The job of a configuration; `seed` replaces its own."""
        seed = config.seed if seed is None else seed
        data, mask = DataSettings.from_mapping(config.data), MaskSettings.from_mapping(config.mask)
        intake = Intake(data, mask, config.data.maps, seed, config.model.image_size)
        prepare_settings = PrepareSettings.from_mapping(config.data)
        ou, sampling = OUSettings.from_mapping(config.ou), SamplingSettings.from_mapping(config.sampling)
        return cls(intake, prepare_settings, ou, sampling, seed)

    def of_slice(self, index: int) -> "Job":
        """The same job for one slice of a file."""
        return replace(self, intake=replace(self.intake, data=replace(self.intake.data, slice=index)))

    def request(self, scan_sha256: str, priors: Priors) -> dict[str, Any]:
        """What a result is made from, files by their checksums."""
        data = {**asdict(self.intake.data), **asdict(self.prepare)}
        mask = asdict(self.intake.mask)
        maps, mask_path = data.pop("maps"), mask.pop("path")
        data.pop("path")
        return json.loads(json.dumps({
            "scan_sha256": scan_sha256,
            "mask_sha256": sha256(mask_path) if mask_path else "",
            "maps": sha256(maps) if Path(maps).is_file() else maps,
            "checkpoints_sha256": [sha256(prior.path) for prior in priors],
            "seed": self.seed,
            "data": data, "mask": mask, "sampling": asdict(self.sampling), "ou": asdict(self.ou),
        }))  # fmt: skip


def train(config: ml_collections.ConfigDict, workdir: Path, models: tuple[str, ...]) -> None:
    """Train GM and LM for the configured objective; resume when `workdir` holds a run.

    Writes `workdir/<model>/`: `model.safetensors` (EMA weights, all that a reconstruction needs),
    `checkpoints/checkpoint_<step>.pth`, `checkpoints-meta/checkpoint.pth` (to resume) and `tensorboard/`; and
    `workdir/data/`, what the networks learn from. Under `torchrun` its processes share every batch.
    """
    # imported here: a reconstruction needs nothing of training
    from configs.renamed import current_record
    from op import dispatch
    from training import settings as parts
    from training.loop import Training, check_batch
    from training.objectives import frames_per_draw, make_objective
    from training.processes import processes

    job = Job.from_config(config)
    run = parts.RunSettings(
        config.seed, job.intake, job.prepare,
        *(part.from_mapping(config[part.part]) for part in (
            parts.PseudoReferenceSettings, parts.ModelSettings, parts.TrainingSettings, parts.OptimSettings)),
    )  # fmt: skip
    if run.training.partner and len(models) > 1:
        raise InputError(
            "with training.partner only one prior can be trained; choose it with --model=global or --model=local."
        )
    with processes() as group:
        group.refuse_differences(run.record())
        check_batch(run.training, frames_per_draw(run.training), group.count)
        dispatch.check(group.device.type == "cuda")
        refuse_unwritable(workdir)
        for name in models:
            Training(run, workdir / name, make_objective(run, workdir, name, group), group, current_record).run()
            group.wait()


def load_priors(
    sampling: SamplingSettings, global_path: Path | str | None, local_path: Path | str | None
) -> Priors:
    """GM and LM on the device at hand, run as the settings say; None stands for the shipped one."""
    run = (device(), sampling.batch_size, sampling.precision, sampling.compile)
    first, second = (
        load_prior(path, *run) if path else load_shipped(name, sampling.sampler, *run)
        for name, path in zip(MODELS, (global_path, local_path), strict=True)
    )
    return first, second


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def compare_methods(
    problem: Problem, job: Job, priors: Priors
) -> tuple[dict[str, Tensor], dict[str, float], Reconstruction]:
    """Images and seconds of every row of the table, and the reconstruction itself. Sees no reference."""
    begun = time.perf_counter()
    final = reconstruct_problem(problem, priors, job.ou, job.sampling, job.seed)
    seconds = {"gldm": time.perf_counter() - begun}
    methods: dict[str, Callable[[], Tensor]] = {
        "zero_filled": lambda: problem.model.adjoint(problem.measured),
        "global_merge": lambda: problem.view_sharing("global"),
        "nearest_merge": replace(problem).view_sharing,  # as if it had not been asked for: its seconds count
    }
    images = {}
    started = job.sampling.sampler == "cascade" and job.ou.after != "never"
    if not started:
        ou = with_operator(job.ou, job.sampling.sampler)
        methods["ou_only"] = lambda: run_optimization_unit(problem, ou, job.seed).image
    for name, method in methods.items():
        begun = time.perf_counter()
        images[name] = problem.finished(method())
        seconds[name] = time.perf_counter() - begun
    if started:  # the cascade began with it
        images["ou_only"], seconds["ou_only"] = final.start, final.start_seconds
    return {**images, "gldm": final.image}, seconds, final


def reconstruct_scan(
    scan: Scan, job: Job, priors: Priors, out: Path | Callable[[], Path], reference: Reference | None
) -> tuple[Path, list[dict], list[str]]:
    """Reconstruct one scan into a folder, which is there with all its files or not at all.

    Parameters
    ----------
    out
        the folder, or what names it once there is something to write.
    reference
        what the final images are scored against; no reconstruction sees it.

    Returns
    -------
    the folder, the table's rows (empty without a reference), and the notes of the reconstruction.
    """
    header = patient_header(scan.source) if job.keep_patient else None
    problem = prepare(scan, job.prepare, device())
    print("\n".join(problem.notes))
    if about := expectation(problem, with_operator(job.ou, job.sampling.sampler)):
        print(about)
    images, seconds, result = compare_methods(problem, job, priors)
    notes = list(result.notes)
    rows, truth = [], None
    if reference is not None:
        truth = problem.reference_image(reference)
        more = {"snr": problem.snr}
        notes += reference_notes(result.image, truth)
        rows = [{"method": m, **evaluate(x, truth), **more, "seconds": seconds[m]} for m, x in images.items()]
        noise = problem.noise_std * problem.scale if reference.noisy else 0.0
        notes += score_notes(result.image, truth, rows[0], rows[-1], noise)
    print("\n".join(notes[len(problem.notes) :]))
    record = {
        "scan": scan.source.found,
        "reference": reference.found if reference is not None else "",
        "voxel_mm": scan.geometry.voxel_mm,
        "request": job.request(scan.source.sha256, priors),
        "threads": torch.get_num_threads(),
        "command": command_line(),
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy", "ml_collections")},
        "python": platform.python_version(),
        **result.settings,
        "noise_std": result.noise_std,
        "snr": problem.snr,
        "seconds": seconds["gldm"],
        "chi": result.chi if np.isfinite(result.chi) else None,
        "notes": notes,
        "log": result.log,
        "series": series_record(job.write, job.matrix, job.keep_patient),
    }
    out = out if isinstance(out, Path) else out()
    with atomic_folder(out) as folder:
        write_reconstruction(folder, result.image)
        place = (scan.geometry, scan.source.sha256, header, job.matrix)
        said = write_series(folder, job.write, result.image.numpy(), *place)
        print(*said, sep="\n", end="\n" if said else "")
        notes += said
        if scan.coils > 1:
            np.save(folder / "coil_maps.npy", result.maps.numpy())
        if result.error_std is not None:
            np.save(folder / "deviation.npy", result.error_std.numpy())
        write_pictures(folder, images, truth, result.error_std, len(result.maps))
        (folder / "config.json").write_text(json.dumps(record, indent=2) + "\n")
        if rows:
            write_scores(folder, rows)
        write_report(folder / "report.html", scan, images, truth, result.error_std, result.maps, rows, record)
        written = {path.name for path in folder.iterdir()}
    remove_left_overs(out, written)
    return out, rows, notes


def evaluate_folder(
    config: ml_collections.ConfigDict, workdir: Path, eval_folder: str, overwrite: bool
) -> None:
    """Reconstruct the scan or folder of `config.eval.path` into `workdir/eval_folder`, with one table for all."""
    out = workdir / eval_folder
    refuse_existing(out, overwrite)
    job = Job.from_config(config)
    paths = [config.eval[f"checkpoint_{name}"] or workdir / name / "model.safetensors" for name in MODELS]
    priors = load_priors(job.sampling, *paths)
    refuse_unwritable(out)
    beside = (job.intake.mask.path, job.intake.maps)
    sources = scan_files(config.eval.path, beside) if config.eval.path else [0]
    reconstruct_folder(sources, job, priors, out, overwrite=overwrite)


def reconstruct_folder(
    sources: Sequence[Path | int],
    job: Job,
    priors: Priors,
    out: Path,
    *,
    overwrite: bool = False,
    score: bool = True,
    check: Callable[[Scan, Reference | None], None] = lambda scan, reference: None,
) -> None:
    """Reconstruct scans into `out/<scan>/`; score those that have a reference in `out/metrics.csv` and `.md`.

    Each slice of a file with several is a scan of its own, `out/<scan>/slice_00/`, …

    `out/index.html` leads to the report of each scan, and names those that were left out.

    Each process takes the next scan that nobody works on, and a run continues where it stopped. The processes (of
    `torchrun`, or started by hand on any machine that sees the folders) share only locks on files, which the operating
    system frees when a process ends. A scan whose folder has the same request is done. A scan that cannot be used is
    left out, the others go on.

    Parameters
    ----------
    overwrite
        reconstruct what is done, too.
    score
        against the fully sampled data, where a file holds them.
    check
        raises `InputError` for a scan that does not fit the command.

    Raises
    ------
    InputError
        at the end, for the scans that were left out.
    """
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    out.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}

    def attempt(source: Path | int, name: str, job: Job) -> None:
        remove_unfinished(out / name)
        try:
            if not overwrite and is_done(out / name, source, job, priors):
                read, rest = partial(acquire, job.intake, source), (job.keep_patient, job.matrix)
                print(f"{name}: already done{add_series(out / name, job.write, read, *rest)}")
                return
            scan, reference = acquire(job.intake, source)
            check(scan, reference)
            print(f"{name}: {scan}")
            reconstruct_scan(scan, job, priors, out / name, reference if score else None)
        except SeveralSlices as several:
            print(f"{name}: {len(several.slices)} slices; each gets its own folder in {out / name}")
            for index in several.slices:
                attempt(source, f"{name}/slice_{index:02d}", job.of_slice(index))
        except InputError as error:
            failures[name] = str(error)
            print(f"skipped {name}: {error}", file=sys.stderr)
        except Exception as error:  # a fault of the program, which must not cost the other scans
            traceback.print_exc()
            failures[name] = f"{name}: unexpected {type(error).__name__}: {error}; please report it."

    names = result_names(sources)
    scans = list(zip(sources, names, strict=True))
    # with overwrite a finished scan does not show that it is done: then the scans are dealt
    for source, name in scans[rank::count] if overwrite else scans:
        with claim(out, name, wait=overwrite) as mine:
            if mine:
                attempt(source, name, job)
    own_failures = len(failures)
    failures = _wait_for_others(out, names, failures)
    parts = [(source, *part) for source, name in scans for part in _parts(out, name, job, failures)]
    if rank == 0:
        stays = False
        try:
            done = [name for source, name, part in parts if is_done(out / name, source, part, priors)]
        except InputError:  # said above; scores of two requests do not belong in one table
            stays = would_lose(out, failures)
            what = "table and index" if stays else "table"
            print(f"not updated: the {what} in {out}; some scans there were reconstructed with other settings")
        else:
            print(write_table(out, done))
        if not stays:
            write_index(out, [name for _, name, _ in parts], failures)
        print(f"report: {out / 'index.html'}")
    if own_failures:
        raise InputError(f"{own_failures} of {len(parts)} scans skipped; see the errors above.")


def _parts(out: Path, name: str, job: Job, failures: Collection[str]) -> list[tuple[str, Job]]:
    """Name and job of a scan, or of each slice that has a folder or failed, in this or another process."""
    found = {failed for failed in failures if failed == name or failed.startswith(f"{name}/")}
    if not (out / name / "config.json").is_file():
        found |= {f"{name}/{one.name}" for one in (out / name).glob("slice_*") if one.name[len("slice_") :].isdigit()}
    ordered = sorted(found or {name}, key=lambda part: (len(part), part))  # slice_99 before slice_100
    return [(part, job.of_slice(int(part.rpartition("_")[2])) if "/" in part else job) for part in ordered]


def is_done(folder: Path, source: Path | int, job: Job, priors: Priors) -> bool:
    """Whether `folder` holds the reconstruction of just this.

    Raises
    ------
    InputError
        when it holds another one, naming the difference.
    """
    if not folder.exists() or all(re.match(r"\.?slice_\d", one.name) for one in folder.iterdir()):  # or is empty
        return False
    mend = "give another --out, or --overwrite to replace it"
    try:
        found = json.loads((folder / "config.json").read_text())["request"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder} holds no reconstruction of this version; {mend}.") from None
    checksum = "" if isinstance(source, int) else sha256(source)
    found, wanted = flat(found), flat(job.request(checksum, priors))
    differing = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    if differing:
        raise InputError(
            f"{folder} holds a reconstruction of {folder.name} that differs in {', '.join(differing)}; {mend}."
        )
    return True


def _wait_for_others(out: Path, names: Sequence[str], failures: dict[str, str]) -> dict[str, str]:
    """Wait until no process, of this `torchrun` or started by hand, works on one of the scans.

    Returns
    -------
    why scans were left out, by the processes of this `torchrun` together.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        with process_group("gloo"):
            each = [failures] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(each, failures)
            failures = {name: reason for one in each for name, reason in one.items()}
    for name in names:
        with claim(out, name, wait=True):
            pass
    return failures
