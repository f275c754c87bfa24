"""Configurations: every field declared once, and what became of those of earlier versions."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import pytest

from configs.default import PARTS, get_default_configs
from configs.flags import _with_config_found
from configs.options import page
from configs.renamed import REMOVED, REMOVED_VALUES, RENAMED, current_arguments, current_field, current_record
from configs.ve import SIAT_kdata_ncsnpp, cpu_demo, scenes
from reconstruction.settings import OUSettings
from run_lib import Job
from utils.errors import InputError
from utils.settings import Settings, flat, setting

ROOT = Path(__file__).parents[1]


def declared():
    return {f"{settings.part}.{one.name}" for settings in PARTS for one in fields(settings)}


def test_the_page_of_options_is_current():
    assert (ROOT / "docs" / "options.md").read_text() == page()


def test_every_field_has_a_meaning_and_one_declaration():
    names = [f"{settings.part}.{one.name}" for settings in PARTS for one in fields(settings)]
    assert len(names) == len(set(names)) < 90
    assert all(one.metadata["meaning"] for settings in PARTS for one in fields(settings))
    assert set(flat(json.loads(get_default_configs().to_json()))) >= declared()


@pytest.mark.parametrize("module", [SIAT_kdata_ncsnpp, cpu_demo, scenes])
def test_configurations_make_settings(module):
    config = module.get_config()
    Job.from_config(config)
    for settings in PARTS:
        settings.from_mapping(config[settings.part])


def test_old_fields_lead_somewhere():
    """To a field that is there, or to a sentence; none of them exists today."""
    known = declared() | {"seed"}
    for old, new in RENAMED.items():
        assert old not in known and new in known
        assert current_field(old) == new
    for old, reason in REMOVED.items():
        assert old not in known and len(reason) > 20
        with pytest.raises(InputError, match=f"config.{old} was removed: "):
            current_field(old)
    for field, value in REMOVED_VALUES:
        with pytest.raises(InputError, match="was removed"):
            current_field(field, value)


# the fields of the version before: 133 with the seed
BEFORE = """
data.path data.key data.kind data.frames_axis data.dc data.phase data.scan_frames data.scan_size data.phantoms
data.image_size data.frames data.num_channels data.centered data.periodic mask.path mask.key mask.pattern
mask.acceleration mask.acs mask.seed weight.power weight.data_std pseudo_reference.window pseudo_reference.local_window
model.nf model.ch_mult model.num_res_blocks model.attn_resolutions model.sigma_min model.sigma_max model.num_scales
model.fir_kernel model.fourier_scale model.embedding_type model.resblock_type model.progressive model.progressive_input
model.progressive_combine model.skip_rescale model.scale_by_sigma model.conditional model.nonlinearity
model.normalization model.dropout model.init_scale model.ema_rate model.temporal model.patch context.global.offsets
context.global.mean context.global.merge context.global.own context.global.near context.local.offsets
context.local.mean context.local.merge context.local.own context.local.near training.objective training.batch_size
training.accumulation training.precision training.workers training.n_iters training.log_freq training.image_freq
training.snapshot_freq training.keep_snapshots training.snapshot_freq_for_preemption training.max_gain
training.max_shift training.compile training.init training.ou training.scenes training.scene_frames training.columns
training.steps training.sigma_jitter training.error_gain training.hidings training.partial_share training.noisy_share
optim.lr optim.schedule optim.beta1 optim.eps optim.warmup optim.grad_clip sampling.sampler sampling.order
sampling.start sampling.steps sampling.churn sampling.trust_levels sampling.error_gain sampling.trust_margin
sampling.context_margin sampling.adapt sampling.adapt_steps sampling.adapt_margin sampling.samples sampling.sigma_max
sampling.sigma_min sampling.num_scales sampling.iterations sampling.snr sampling.copies sampling.batch_size
sampling.precision sampling.compile sampling.noise_std ou.after ou.operator ou.window ou.rank ou.sweeps
ou.hankel_iterations ou.patches ou.noise_floor ou.hard ou.anneal ou.llr_iterations ou.motion_patches ou.motion_patch
ou.motion_steps ou.motion_taken ou.motion_first ou.motion_last eval.path eval.checkpoint_global eval.checkpoint_local
""".split()


def test_no_field_of_the_version_before_is_lost():
    known = declared() | set(RENAMED) | set(REMOVED) | {"eval.path", "eval.checkpoint_global", "eval.checkpoint_local"}
    assert len(BEFORE) == 132 and set(BEFORE) <= known


@pytest.mark.parametrize(
    "given,expected",
    [
        (["--config.data.scan_size=96"], ["--config.data.size=96"]),
        (["--config.data.scan_size", "96", "--out", "x"], ["--config.data.size=96", "--out", "x"]),
        (["--config.data.image_size=96"], ["--config.model.image_size=96"]),
        *([same, same] for same in (["--config=x.py", "--config.model.nf=8", "--data", "a"],
                                    ["--config.model.temporal", "--noconfig.model.temporal"],
                                    ["--config.model.nf", "8"])),
    ],
)
def test_command_lines_of_earlier_versions(given, expected, capsys):
    assert current_arguments(["main.py", *given]) == ["main.py", *expected]
    assert capsys.readouterr().err.count("warning") == (given != expected)


@pytest.mark.parametrize("flag", [["--config=configs/ve/scenes.py"], ["--config", "configs/ve/scenes.py"]])
def test_a_configuration_beside_the_code_is_found_from_anywhere(flag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = str(ROOT / "configs/ve/scenes.py")
    assert "=".join(_with_config_found(["main.py", *flag])[1:]) == f"--config={there}"
    assert _with_config_found(["main.py", "--config=nowhere.py"]) == ["main.py", "--config=nowhere.py"]
    (tmp_path / "configs/ve").mkdir(parents=True)
    (tmp_path / "configs/ve/scenes.py").write_text("mine")
    assert _with_config_found(["main.py", *flag]) == ["main.py", *flag]


@pytest.mark.parametrize("flag", ["--adapt=60", "--config.ou.hard", "--config.sampling.noise_std=0.1",
                                  "--config.ou.operator=both", "--config.training.objective=synthetic"])  # fmt: skip
def test_removed_flags_are_refused_with_the_reason(flag):
    with pytest.raises(InputError, match="was removed: "):
        current_arguments(["x.py", flag])


def test_records_of_earlier_versions_are_brought_up_to_date():
    old = json.loads((Path(__file__).parent / "fixtures" / "record_of_an_earlier_version.json").read_text())
    with pytest.raises(InputError, match="built-in phantoms of an earlier version"):
        current_record(old)
    old["data"]["path"] = "scans"
    now = current_record(old)
    assert now["model"]["image_size"] == old["data"]["image_size"] and "num_scales" not in now["model"]
    assert "context" not in now and "weight" not in now
    assert now["data"]["frames"] == old["data"]["scan_frames"]
    fields_now = {name for name in flat(now) if name != "seed" and not name.startswith("eval.")}
    assert fields_now <= declared()
    assert current_record({"data": {"coils_axis": None}}) == {"data": {"coils_axis": None}}


@dataclass(frozen=True)
class Example(Settings):
    part: ClassVar[str] = "example"
    count: int = setting(3, "how many", least=1, most=5)
    share: float = setting(0.5, "a share", above=0)
    sizes: tuple = setting((1, 2), "sizes", least=1)
    name: str = setting("a", "one of two", choices=("a", "b"))
    maybe: int | None = setting(None, "or nothing", least=0, optional=int)


@pytest.mark.parametrize(
    "change,words",
    [
        ({"count": 0}, "at least 1"), ({"count": 6}, "at most 5"), ({"count": 1.5}, "a whole number"),
        ({"count": True}, "a whole number"), ({"share": 0.0}, "above 0"), ({"share": "x"}, "a number"),
        ({"sizes": (0, 1)}, "at least 1"), ({"name": "c"}, "choose a or b"), ({"name": 3}, "must be text"),
        ({"maybe": -1}, "at least 0"), ({"maybe": 0.5}, "a whole number"),
    ],
)  # fmt: skip
def test_settings_check_type_and_range(change, words):
    with pytest.raises(InputError, match=rf"example\.\w+ .*{words}"):
        Example(**change)
    assert Example(share=1).share == 1 and Example(maybe=2).maybe == 2 and Example().maybe is None


def test_one_step_along_the_motion_is_refused():
    """The priors begin from half of the steps."""
    with pytest.raises(InputError, match="2 or more, or 0"):
        OUSettings(motion_steps=1)
