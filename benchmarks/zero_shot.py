"""GM and LM trained on the scan at hand alone: what the paper promises, as rows of `benchmarks.quality`.

The networks, the loss and the cascade are those of the shipped priors; what they learn from is the scan's own
pseudo-references (GM all frames merged, LM the nearest frames), without the samples that the reconstruction holds out.
"""

import tempfile
from pathlib import Path

from tqdm import tqdm

from configs.ve import scenes as scenes_config
from models.prior import Prior, load_prior, shipped
from reconstruction.prepare import Problem
from reconstruction.settings import MODELS
from run_lib import Job
from training import settings as parts
from training.loop import Training
from training.objectives import SceneDenoising
from training.processes import Processes
from training.pseudo_references import window_of

WARMUP, EMA_RATE = 20, 0.98  # of a training of a few hundred steps
FRAMES = 16  # of a batch


def own_priors(problem: Problem, seed: int, steps: int, continued: bool) -> tuple[Prior, ...]:
    """GM and LM after `steps` steps on a scan's pseudo-references, begun from the shipped ones or at random.

    Samples that decide about them, or report on the result, in a reconstruction with this seed are not learned from.
    """
    problem = problem.restricted(problem.held_out(seed).kept)
    device = problem.measured.device
    config = scenes_config.get_config()
    sigma_max = config.model.sigma_max
    config.training.update({"n_iters": steps, "batch_size": FRAMES, "snapshot_freq": steps})
    config.model.ema_rate, config.optim.warmup = EMA_RATE, WARMUP
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            config.model.sigma_max = scenes_config.LM_SIGMA_MAX if name == "local" else sigma_max
            config.training.init = str(shipped(name, "cascade")) if continued else ""
            kinds = (parts.PseudoReferenceSettings, parts.ModelSettings, parts.TrainingSettings, parts.OptimSettings)
            job = Job.from_config(config, seed)
            run = parts.RunSettings(
                seed, job.intake, job.prepare, *(kind.from_mapping(config[kind.part]) for kind in kinds)
            )
            images = [(problem.view_sharing(window_of(run, name)).cpu(), problem.periodic)]
            training = Training(run, Path(folder) / name, SceneDenoising(run, images, name), Processes(0, 1, device))
            training.run()
            tqdm.write(f"{name}: {training.mean_loss:.3f} of the noise is left after training on this scan")
            found.append(load_prior(Path(folder) / name / "model.safetensors", device))
    return tuple(found)
