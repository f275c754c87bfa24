"""What a reconstruction says of its decisions, one sentence each."""

import math

import torch

from mri.holdout import improvement
from mri.noise import misfit
from reconstruction.calibration import Schedule
from reconstruction.optimization_unit import OUResult, motion_schedule
from reconstruction.prepare import Problem
from reconstruction.settings import OUSettings

Tensor = torch.Tensor

OTHERWISE = 0.5  # of the error of a reference as stored: one that fits so much better was stored otherwise
HUGE, MANY = 100, 10  # χ², and estimated over given σ, from which that is too small
ALL_BUT = 0.99  # an error is not told to be lower by more: noise is subtracted from it
NOISE_IN_ERROR = 1.5  # squared error over the noise power of a noisy reference, up to which the noise explains it


def ou_note(result: OUResult, ou: OUSettings, problem: Problem) -> str:
    if ou.after == "never":
        return "optimization unit: off"
    names = {"motion": "low rank along the motion", "llr": "locally low rank"}
    name = names.get(result.settings.operator, result.settings.operator)
    if result.is_start:
        return f"optimization unit: not used (view sharing instead), because {name} does not lower the held-out error"
    note = f"optimization unit: {name}"
    if result.settings.operator == "motion":
        schedule = motion_schedule(problem, ou.motion_steps)
        note += f", {schedule.steps} steps, threshold ν from {schedule.first:.2g} to {schedule.last:.2g}"
    if result.gain is None:
        return f"{note}; not compared with view sharing ({result.not_compared})"
    note += f"; held-out squared error {_compared(result.gain, problem)} with view sharing"
    if result.settings.operator == ou.operator:
        return note
    return f"{note} (fallback: {names[ou.operator]} did not lower it)"


def report_notes(problem: Problem, result: OUResult, without: Tensor | None) -> list[str]:
    """Quality without a reference, at samples that neither the OU, the priors nor their choice have used, and whether
    frames repeat each other.
    """
    if result.held_out is None or without is None or not result.held_out.report.any():
        return []
    notes = []
    if result.held_out.different < problem.frames:
        notes.append(
            f"{problem.frames - result.held_out.different} of the {problem.frames} frames repeat another one "
            "(a later heartbeat, the same state of motion, or a copy); samples held out in one are not used in its "
            "repeats"
        )
    if without is result.start_without:  # it is view sharing itself
        return notes
    held = result.held_out.report
    assert result.start_without is not None
    found = improvement(
        problem.model, problem.measured, held, result.start_without, without, problem.held_out_noise
    )
    worse = "warning: " if found.share < 0 else ""
    notes.append(
        f"{worse}quality without a reference: squared error {_compared(found.share, problem)} with view sharing at "
        f"{held.sum()} samples held out for this only{_counted(problem)}"
    )
    return notes


def reference_notes(image: Tensor, reference: Tensor) -> list[str]:
    """Whether a reference `(frames, height, width)` fits much better mirrored, turned or with its frames reversed."""
    size, truth = image.abs(), reference.abs()
    turns = {"its rows": (1,), "its columns": (2,), "its rows and columns": (1, 2), "its frames": (0,)}
    own = (size - truth).norm()
    errors = {words: (size - truth.flip(axes)).norm() for words, axes in turns.items()}
    best = min(errors, key=lambda words: errors[words])
    if errors[best] > OTHERWISE * own:
        return []
    return [f"warning: the reference fits much better with {best} reversed; scores compare it as it is stored"]


def _compared(removed: float, problem: Problem | None = None) -> str:
    least = "at least " if problem is not None and not problem.noise_known and removed > 0 else ""
    size = f"{abs(removed):.0%}" if abs(removed) <= ALL_BUT or removed < 0 else f"more than {ALL_BUT:.0%}"
    return f"{least if 'more' not in size else ''}{size} {'lower' if removed >= 0 else 'higher'} than"


def _counted(problem: Problem) -> str:
    return "" if problem.noise_known else " (noise not subtracted, because σ is only estimated)"


def priors_note(schedule: Schedule, order: tuple[str, ...], problem: Problem, result: OUResult) -> str:
    roles = {"global": "GM", "local": "LM"}
    start = "view sharing" if result.is_start else "the optimization unit"
    if not schedule.held_out and result.held_out is not None and result.held_out.admission.any():
        return "priors: not used, because they are interleaved with low rank along the motion, which is not used here"
    if not schedule.held_out:
        why = result.not_compared or (result.held_out.why_none if result.held_out else "")
        return f"priors: not used ({why or 'nothing was held out'})"
    names = " and ".join(roles[name] for name in order)
    if not any(schedule.step_sizes):
        return f"priors: {names} rejected: no clear reduction of the held-out error"
    each = ", ".join(
        f"{roles[name]} accepted (step size {size:.2f})" if size > 0 else f"{roles[name]} not used"
        for name, size in zip(order, schedule.step_sizes, strict=True)
    )
    removed = 1 - (schedule.error_after / max(schedule.error_before, 1e-30)) ** 2
    if schedule.alone is not None:
        name, size = order[schedule.alone], schedule.step_sizes[schedule.alone]
        each = f"{names} together rejected, {roles[name]} alone accepted (step size {size:.2f})"
    each += f", {schedule.followed:.0%} of the change applied" if schedule.followed < 0.995 else ""
    return f"priors: {each}; held-out squared error {_compared(removed, problem)} with {start} alone"


def likely_note(deviation: Tensor | None, result: OUResult) -> str:
    """The root mean square of the likely error, or why there is none."""
    if deviation is not None:
        size = deviation.square().mean().sqrt()
        return f"likely error: {size:.2%} of the brightest signal (root mean square over all pixels and frames)"
    return f"likely error: none ({result.not_compared or 'view sharing is the result'})"


def misfit_notes(problem: Problem, image: Tensor, level: float) -> list[str]:
    """What the residual says of the forward model."""
    notes = []
    if problem.noise_known and HUGE < level < math.inf and problem.noise_std < problem.noise_bound / MANY:
        notes.append(
            f"warning: σ is far too small: the residual power is {level:.0f} times σ². Check that the noise samples "
            "(or --noise_std) and k-space have the same units and bandwidth"
        )
    if problem.model.coils == 1 or not math.isfinite(level):
        return notes
    notes += [f"residual: χ² = {level:.2f} (about 1 or less if coil maps and noise level are right)"]
    if misfit(problem.model, image, problem.measured, problem.noise_std):
        share = problem.model.residual(image, problem.measured)
        notes.append(
            f"warning: the residual is {share:.1%} of the data, more than the noise explains: the coil maps do not "
            "fit, the noise level is wrong, or frames, coils or lines contradict each other (phase, sign, order, "
            "clipping). Look at the images; check the file of --maps if it was given, else try --maps espirit."
        )
    return notes


def score_notes(
    image: Tensor, truth: Tensor, zero_filled: dict[str, float], scores: dict[str, float], noise_std: float
) -> list[str]:
    """What is doubtful about a result that has a reference.

    Parameters
    ----------
    image, truth
        the result and its reference, `(frames, height, width)`.
    zero_filled, scores
        of the zero-filled images and of the result, see `mri.metrics.evaluate`.
    noise_std
        σ of a pixel of the reference, in its units; 0 if it has no noise of its own.
    """
    notes = []
    gain = (image.norm() / truth.norm()).item()
    if not 0.5 < gain < 2:
        notes.append(
            f"warning: the reconstruction is {gain:.3g} times as bright as the reference; psnr_common and nmse are "
            "not corrected for that. Rescale the reference, or use psnr and ssim."
        )
    explained = scores["nmse"] * truth.abs().square().mean().item() <= NOISE_IN_ERROR * noise_std**2
    if scores["psnr_common"] < zero_filled["psnr_common"] and not explained:
        notes.append("warning: the result is worse than the zero-filled images; check how the scan was interpreted")
    if noise_std:
        notes.append(
            "the reference contains measurement noise, which limits the scores of every row: noise that is removed "
            "counts as error"
        )
    return notes
