"""Every field of a configuration with its published value; the settings classes give meaning, unit and range."""

from dataclasses import fields

import ml_collections
from ml_collections.config_dict import placeholder

from mri.intake_settings import DataSettings, MaskSettings
from reconstruction.settings import OUSettings, PrepareSettings, SamplingSettings
from training.settings import ModelSettings, OptimSettings, PseudoReferenceSettings, TrainingSettings
from utils.settings import Settings

PARTS: tuple[type[Settings], ...] = (
    DataSettings, PrepareSettings, MaskSettings, PseudoReferenceSettings, ModelSettings, TrainingSettings,
    OptimSettings, SamplingSettings, OUSettings,
)  # fmt: skip


def get_default_configs() -> ml_collections.ConfigDict:
    """The published configuration (paper, section 3.1; its code release)."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    for settings in PARTS:
        if settings.part not in config:
            config[settings.part] = ml_collections.ConfigDict()
        for one in fields(settings):
            optional = one.metadata["optional"]
            config[settings.part][one.name] = placeholder(optional) if optional else one.default

    config.eval = evaluate = ml_collections.ConfigDict()
    evaluate.path = ""            # scan file or folder to reconstruct with --mode=eval; empty: the built-in heart
    evaluate.checkpoint_global = ""         # empty: the one trained under --workdir
    evaluate.checkpoint_local = ""
    return config
