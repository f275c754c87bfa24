"""The jobs behind the commands: train the priors, reconstruct a scan, evaluate a folder of scans."""

import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import ml_collections
import numpy as np
import scipy.io
import torch

from adaptation import SETTINGS
from datasets import Acquisition, acquisition, scan_files
from mri.fourier import ifft2c
from mri.interleave import pseudo_reference
from mri.io import sha256
from mri.metrics import COLUMNS, COMMON_SCALE_COLUMNS, evaluate, moving_row
from objectives import make_objective
from op import dispatch
from optimization_unit import optimization_unit_alone
from priors import MODELS, Prior, load_prior, load_shipped
from sampling import Reconstruction, check_running, reconstruct
from training import Training, check_training
from utils.arguments import command_line
from utils.errors import InputError
from utils.files import atomic_folder, refuse_existing, refuse_unwritable
from utils.pictures import deviation_picture, film, montage, xt_profile
from utils.processes import processes
from utils.tables import markdown, write_csv, write_markdown

Tensor = torch.Tensor

METRICS = ("method", *COLUMNS, "seconds")
MANY = ("scan", "method", *COLUMNS, "psnr_common", "ssim_common", "seconds")  # of a table of many scans
ROLES = {"global": "GM", "local": "LM"}


def train(config: ml_collections.ConfigDict, workdir: Path, models: tuple[str, ...]) -> None:
    """Train GM and LM for the configured objective; resume when `workdir` holds a run.

    Writes `workdir/<model>/`: `model.safetensors` (EMA weights, all that a reconstruction needs),
    `checkpoints/checkpoint_<step>.pth`, `checkpoints-meta/checkpoint.pth` (to resume) and `tensorboard/`; and
    `workdir/data/`, what the networks learn from. Under `torchrun` its processes share every batch.
    """
    with processes() as among:
        among.refuse_differences(config)
        check_training(config, among.count)
        dispatch.check(among.device.type == "cuda")
        refuse_unwritable(workdir)
        for name in models:
            Training(config, workdir / name, make_objective(config, workdir, name, among), among).run()
            among.wait()  # LM learns from the file of GM


# ---------------------------------------------------------------------------------------- reconstruction

Image = Callable[[], Tensor]


def compare_methods(
    scan: Acquisition, config: ml_collections.ConfigDict, priors: tuple[Prior, Prior], seed: int
) -> tuple[dict[str, Tensor], dict[str, float], Reconstruction]:
    """Images and seconds of every row of the table, and the reconstruction itself. Sees no reference."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kspace, mask = scan.kspace.to(device), scan.mask.to(device)
    begun = time.perf_counter()
    final = reconstruct(kspace, mask, *priors, config, seed, device)
    seconds = {"gldm": time.perf_counter() - begun}
    periodic = final.settings["config"]["data"]["periodic"]  # as it was found

    def merge(window: str) -> Tensor:
        return ifft2c(pseudo_reference(kspace, mask, window, periodic=periodic)[0])

    methods: dict[str, Image] = {
        "zero_filled": lambda: ifft2c(kspace),
        "global_merge": lambda: merge("global"),
        "nearest_merge": lambda: merge("nearest"),
    }
    images = {}
    if config.sampling.sampler == "published" or config.ou.after == "never":
        methods["ou_only"] = lambda: optimization_unit_alone(kspace, mask, config, seed)
    for name, method in methods.items():
        begun = time.perf_counter()
        images[name] = method().cpu()
        seconds[name] = time.perf_counter() - begun
    if "ou_only" not in methods:  # the cascade began with it
        images["ou_only"], seconds["ou_only"] = final.start, final.start_seconds
    return {**images, "gldm": final.image}, seconds, final


def reconstruct_scan(
    scan: Acquisition,
    config: ml_collections.ConfigDict,
    priors: tuple[Prior, Prior],
    out: Path | Callable[[], Path],
    seed: int,
    reference: Tensor | None,
) -> tuple[Path, list[dict]]:
    """Reconstruct one scan into a folder, which is there with all its files or not at all.

    Parameters
    ----------
    out
        the folder, or what names it once there is something to write.
    reference
        what the final images are scored against, `(frames, height, width)`.

    Returns
    -------
    the folder, and the table's rows (empty without a reference).
    """
    images, seconds, result = compare_methods(scan, config, priors, seed)
    rows = []
    if reference is not None:
        rows = [{"method": m, **evaluate(image, reference), "seconds": seconds[m]} for m, image in images.items()]
        gain = (result.image.norm() / reference.norm()).item()
        if not 0.5 < gain < 2:
            print(f"the reconstruction is {gain:.3g} times as bright as the reference: NMSE compares them as they are")
    record = {
        "scan": scan.found,
        "request": request(scan.sha256, config, priors, seed),
        "threads": torch.get_num_threads(),
        "command": command_line(),
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy", "ml_collections")},
        "python": platform.python_version(),
        **result.settings,
        "log": result.log,
    }
    unit, trust = result.settings["config"]["ou"], result.settings.get("trust", {})
    used = trust and unit["after"] != "never"
    if used and unit["operator"] == "motion":
        side, taken, steps = unit["motion_patch"], unit["motion_taken"], unit["motion_steps"]
        print(f"the optimization unit follows the motion: patches of {side}×{side} pixels, {taken} of {steps} steps")
    elif used and config.ou.operator in ("auto", "motion"):
        print("the optimization unit does not follow the motion: no hidden samples, or none predicted better by it")
    if trust:
        print(what_the_priors_did(trust, config.sampling.order))
    out = out if isinstance(out, Path) else out()
    with atomic_folder(out) as folder:
        write_reconstruction(folder, result.image)
        if result.deviation is not None:
            np.save(folder / "deviation.npy", result.deviation.numpy())
        write_pictures(folder, images, reference, result.deviation)
        (folder / "config.json").write_text(json.dumps(record, indent=2) + "\n")
        if rows:
            write_csv(folder / "metrics.csv", rows, METRICS)
            write_csv(folder / "metrics_common_scale.csv", rows, ("method", *COMMON_SCALE_COLUMNS))
    # what a run that is replaced left and this one has not belongs to another image
    stale = [] if rows else ["metrics.csv", "metrics_common_scale.csv"]
    stale += [] if result.deviation is not None else ["deviation.npy", "deviation.png"]
    for name in stale:
        (out / name).unlink(missing_ok=True)
    return out, rows


def what_the_priors_did(trust: dict, order: Sequence[str]) -> str:
    """`trust.Trust` of a reconstruction in a sentence."""
    if not trust["hidden"]:
        return "the priors cannot be tested, because the mask leaves no sample to hide from them: they are left out"
    if trust["sigma"] == 0:
        return "the priors predict the samples hidden from them no better than what they begin with: they are left out"
    if len(trust["alphas"]) == len(order):
        followed = ", ".join(
            f"{ROLES[name]} followed by α = {alpha:.2f}" if alpha > 0 else f"{ROLES[name]} left out"
            for name, alpha in zip(order, trust["alphas"], strict=True)
        )
    else:  # without context
        followed = f"followed together by α = {trust['alphas'][0]:.2f}"
    after = trust["error_after"] / trust["error_before"]
    return f"the priors: {followed}; fitted to the samples hidden from them they leave {after:.3f} of the error there"


def request(scan_sha256: str, config: ml_collections.ConfigDict, priors: tuple[Prior, Prior], seed: int) -> dict:
    """All that a reconstruction depends on, files by their checksums."""
    settings = json.loads(config.to_json())
    settings["mask"].pop("path")
    adapted = {name: settings["training"][name] for name in SETTINGS} if config.sampling.adapt else {}
    return {
        "scan_sha256": scan_sha256,
        "mask_sha256": sha256(config.mask.path) if config.mask.path else "",
        "checkpoints_sha256": [sha256(one.path) for prior in priors for one in (prior, prior.after_motion) if one],
        "seed": seed,
        "adaptation": adapted,
        **{part: settings[part] for part in ("data", "mask", "sampling", "ou")},
    }


def write_reconstruction(out: Path, image: Tensor) -> None:
    """`reconstruction.npy` (frames, height, width) and `.mat` (variable `image`, same axes), complex64."""
    array = image.to(torch.complex64).numpy()
    np.save(out / "reconstruction.npy", array)
    scipy.io.savemat(out / "reconstruction.mat", {"image": array}, do_compression=True)


def write_pictures(
    out: Path, images: dict[str, Tensor], reference: Tensor | None, deviation: Tensor | None = None
) -> None:
    """`montage.png`, `xt_profile.png` and `cine.gif`, the reference first when there is one; `deviation.png`."""
    series = {} if reference is None else {"reference": reference.abs().numpy()}
    series.update({name: image.abs().numpy() for name, image in images.items()})
    name = None if reference is None else "reference"
    frames = len(images["gldm"])
    montage(out / "montage.png", series, name, sorted({0, frames // 3, 2 * frames // 3}))
    xt_profile(out / "xt_profile.png", series, name, moving_row(images["gldm"]))
    film(out / "cine.gif", series, name)
    if deviation is not None:
        error = None if reference is None else (images["gldm"] - reference).abs().numpy()
        deviation_picture(out / "deviation.png", images["gldm"].abs().numpy(), deviation.numpy(), error, frames // 3)


def report(out: Path, rows: list[dict]) -> str:
    """What a command says at its end: the table, and where the files are."""
    table = ""
    if rows:
        table = markdown(rows, ("method", *COLUMNS, "psnr_common", "seconds")) + (
            "\npsnr, ssim and mse_e4 (× 10⁴) divide every frame by its own brightest pixel, as the paper does;"
            "\npsnr_common and nmse compare the scan as it is.\n\n"
        )
    files = ["reconstruction.npy", "reconstruction.mat", "montage.png", "xt_profile.png", "cine.gif", "config.json"]
    if rows:
        files = ["metrics.csv", "metrics_common_scale.csv", *files]
    files += [name for name in ("deviation.npy", "deviation.png") if (out / name).exists()]
    return table + "\n".join(str(out / name) for name in files)


# -------------------------------------------------------------------------------------------- evaluation


def evaluate_folder(
    config: ml_collections.ConfigDict, workdir: Path, eval_folder: str, overwrite: bool
) -> list[dict]:
    """Reconstruct the scan or folder of `config.eval.path`; one table for all in `workdir/eval_folder`."""
    out = workdir / eval_folder
    refuse_existing(out, overwrite)
    checkpoints = [
        config.eval[f"checkpoint_{name}"] or workdir / name / "model.safetensors" for name in MODELS
    ]
    priors = load_priors(config, *checkpoints)
    refuse_unwritable(out)
    rows, failures = [], []
    sources = scan_files(config.eval.path) if config.eval.path else [0]
    for source in sources:
        try:
            scan = acquisition(config, source)
            print(scan)
            _, scored = reconstruct_scan(scan, config, priors, out / scan.name, config.seed, scan.reference)
        except InputError as error:
            failures.append(str(error))
            print(f"left out: {error}", file=sys.stderr)
            continue
        rows += [{"scan": scan.name, **row} for row in scored]
    if rows:
        columns = MANY
        write_csv(out / "metrics.csv", rows, columns)
        write_markdown(out / "metrics.md", rows, columns)
        print(markdown(rows, columns) + f"\n\n{out / 'metrics.csv'}\n{out / 'metrics.md'}")
    for name in ("metrics.csv", "metrics.md") if not rows else ():  # of a run that is replaced
        (out / name).unlink(missing_ok=True)
    if not rows and len(failures) < len(sources):
        print(f"no scan has a reference, so nothing is scored; reconstructions are in {out}")
    if failures:
        raise InputError(f"{len(failures)} of {len(sources)} scans left out: " + " | ".join(failures))
    return rows


def load_priors(
    config: ml_collections.ConfigDict, global_path: Path | str | None, local_path: Path | str | None
) -> tuple[Prior, Prior]:
    """GM and LM on the device at hand, run as `config.sampling` says; None stands for the shipped one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sampling = config.sampling
    check_running(sampling)
    run = (device, sampling.batch_size, sampling.precision, sampling.compile)
    return tuple(
        load_prior(path, *run) if path else load_shipped(name, sampling.sampler, *run)
        for name, path in zip(MODELS, (global_path, local_path), strict=True)
    )
