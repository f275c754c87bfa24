"""Train the priors, or reconstruct and score a folder of scans: `python main.py --mode=train|eval`."""

import utils.interrupt  # isort: skip  # noqa: F401, before what takes seconds to import
from pathlib import Path

from absl import flags

import run_lib
from configs.flags import define_config, run_command
from reconstruction.settings import MODELS
from utils.errors import exit_on_input_error

FLAGS = flags.FLAGS

define_config(Path(__file__).parent / "configs/ve/SIAT_kdata_ncsnpp.py")
flags.DEFINE_enum("mode", "train", ["train", "eval"], "train: GM and LM; eval: reconstruct and score scans.")
flags.DEFINE_enum("model", "both", ["global", "local", "both"], "Which prior to train.")
flags.DEFINE_string("workdir", "exp", "Folder of checkpoints, logs and results.")
flags.DEFINE_string("eval_folder", "result", "Folder within workdir for the results of --mode=eval.")
flags.DEFINE_boolean("overwrite", False, "Replace results of an earlier --mode=eval.")


def main(argv: list[str]) -> None:
    workdir = Path(FLAGS.workdir)
    if FLAGS.mode == "train":
        models = MODELS if FLAGS.model == "both" else (FLAGS.model,)
        exit_on_input_error(lambda: run_lib.train(FLAGS.config, workdir, models))
    else:
        exit_on_input_error(
            lambda: run_lib.evaluate_folder(FLAGS.config, workdir, FLAGS.eval_folder, FLAGS.overwrite)
        )


if __name__ == "__main__":
    run_command(main)
