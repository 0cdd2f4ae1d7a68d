from __future__ import annotations

import copy
import re
from itertools import combinations

import pytest
import yaml
from omegaconf import OmegaConf

from conf import identity, schema
from tests.conf.composing import CONF, composed

pytestmark = pytest.mark.usefixtures("registered")


def key(*overrides: str) -> str:
    return identity.run_key(composed(*overrides))


def by_hand(experiment: str) -> tuple[str, ...]:
    """Return the overrides that a person would type instead of `experiment=<experiment>`."""
    given = yaml.safe_load((CONF / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8"))
    options = [next(iter(entry.items())) for entry in given.pop("defaults")]
    typed = [f"{name.removeprefix('override /')}={option}" for name, option in options]
    for name, value in given.items():
        pairs = [(f"{name}.{key}", item) for key, item in value.items()] if isinstance(value, dict) else [(name, value)]
        typed += [f"{key}={item}" for key, item in pairs]
    return tuple(reversed(typed))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("experiment=quickstart",), by_hand("quickstart")),
        (("pruning.ratio=0", "seed=0"), ("pruning.ratio=0.0",)),
        (("pruning=mlp_only",), ("pruning.structures=[mlp_channel]",)),
        (("importance=l1",), ("importance=l2", "importance.power=1")),
        (("importance=random", "seed=3"), ("importance=random", "importance.seed=3", "seed=3")),
    ],
)
def test_equal_configurations_have_one_key_however_asked_for(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert key(*one) == key(*other)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1),
        ("pruning.ratio", 0.21),
        ("pruning.protect_first", 3),
        ("pruning.round_to", 8),
        ("importance.order", "second"),
        ("model.path", "another/model"),
        ("model.dtype", "bfloat16"),
        ("data.calibration_samples", 31),
        ("recovery.steps", 199),
        ("recovery.when", "each"),
        ("evaluation.items", 49),
        ("evaluation.items", None),
        ("evaluation.tasks", ["piqa"]),
        ("evaluation.windows", [64]),
        ("evaluation.texts", {"passages": "mine.txt"}),
        ("stability.blocks", 63),
    ],
)
def test_a_value_that_figures_depend_on_changes_the_key(name: str, value: object) -> None:
    config = copy.deepcopy(composed())
    OmegaConf.update(config, name, value, merge=False)
    assert identity.run_key(config) != key()


@pytest.mark.parametrize("group", ["schedule", "importance", "data"])
def test_two_options_of_a_group_never_share_a_key(group: str) -> None:
    needed = {"pretrained": ["model.path=m"], "local": ["data.path=t.txt"]}
    options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    keys = {option: key(f"{group}={option}", *needed.get(option, [])) for option in options}
    assert [(one, other) for one, other in combinations(options, 2) if keys[one] == keys[other]] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tracking.tags", ["a", "b"]),
        ("study", "other"),
        ("runs_dir", "elsewhere"),
        ("cache_dir", "elsewhere"),
        ("force", True),
        ("save_model", False),
    ],
)
def test_where_a_run_goes_and_is_shown_does_not_change_the_key(name: str, value: object) -> None:
    config = copy.deepcopy(composed())
    OmegaConf.update(config, name, value, merge=False)
    assert identity.run_key(config) == key()


def test_not_tracking_a_run_does_not_change_its_key() -> None:
    assert key("tracking=none") == key()


def test_the_key_is_8_hexadecimal_digits() -> None:
    assert re.fullmatch(r"[0-9a-f]{8}", key())


def test_the_name_says_what_was_chosen() -> None:
    overrides = ("model=tiny_llama", "importance=l2", "pruning.ratio=0.5", "schedule=cubic", "recovery=none", "seed=4")
    config = composed(*overrides)
    name = identity.run_name(config, config.hydra.runtime.choices)
    assert name == f"tiny_llama-l2-r0.50-cubic-none-s4-{key(*overrides)}"


def test_the_run_folder_lies_under_runs_dir_and_study_by_its_name() -> None:
    config = composed("runs_dir=there", "study=mine")
    name = identity.run_name(config, config.hydra.runtime.choices)
    assert config.hydra.run.dir == f"there/mine/{name}"
    assert f"{config.hydra.sweep.dir}/{config.hydra.sweep.subdir}" == f"there/mine/{name}"


def test_the_resolved_configuration_is_plain_and_without_hydra() -> None:
    plain = identity.resolved(composed("importance=random", "seed=6", "runs_dir=there"))
    assert set(plain) == set(schema.ExperimentConfig.__dataclass_fields__)
    assert plain["importance"] == {"normalization": "none", "normalization_power": 1.0, "halves": True, "seed": 6}
    assert plain["model"]["dtype"] == "float32"
    assert plain["cache_dir"] == "there/.cache"
