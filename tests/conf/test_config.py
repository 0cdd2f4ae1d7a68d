from __future__ import annotations

import copy
import re
from importlib.util import find_spec
from typing import get_type_hints

import pytest
import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from conf import schema
from tests.conf.composing import CONF, composed

pytestmark = pytest.mark.usefixtures("registered")

OPTIONS = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml"))
CHOSEN = [(group, option) for group, option in OPTIONS if group != "experiment"]
SEARCH = find_spec("hydra_plugins.hydra_optuna_sweeper")
EXPERIMENTS = [option for group, option in OPTIONS if group == "experiment" and (SEARCH or option != "pareto")]
NEEDED = {
    ("model", "pretrained"): ["model.path=some/model"],
    ("data", "local"): ["data.path=some.txt"],
    ("data", "mixture"): ["+data.parts={books: {path: some.txt}}"],
}


def changed(override: str) -> DictConfig:
    key, _, value = override.partition("=")
    config = copy.deepcopy(composed())
    OmegaConf.update(config, key, OmegaConf.create({"value": yaml.safe_load(value)}).value)
    return config


def messages(error: BaseException | None) -> str:
    parts = []
    while error is not None:
        parts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(parts)


@pytest.mark.parametrize(("group", "option"), CHOSEN)
def test_every_option_becomes_an_object_of_the_class_its_group_promises(group: str, option: str) -> None:
    config = schema.typed(composed(f"{group}={option}", *NEEDED.get((group, option), [])))
    promised = get_type_hints(schema.ExperimentConfig)
    for name in schema.SCHEMAS:
        if "/" not in name:  # what is inside another group's option
            assert isinstance(getattr(config, name), promised[name])
    assert type(getattr(config, group)) in schema.SCHEMAS[group].values()


def test_the_default_configuration_is_what_its_yaml_files_say() -> None:
    config = schema.typed(composed())
    assert (config.seed, config.device, config.force, config.save_model) == (0, "auto", False, True)
    assert config.cache_dir == f"{config.runs_dir}/.cache"
    assert config.evaluation.tasks[-1] == "lambada_openai"
    assert config.pruning.ratio == 0.2


@pytest.mark.parametrize(("group", "option"), CHOSEN)
def test_every_option_extends_a_schema_of_its_group(group: str, option: str) -> None:
    text = (CONF / group / f"{option}.yaml").read_text(encoding="utf-8")
    variant = r"^ +- (\w+)\n(?: +- override .*\n)* +- _self_$"  # of another option
    if base := re.search(variant, text, flags=re.MULTILINE):
        text = (CONF / group / f"{base[1]}.yaml").read_text(encoding="utf-8")
    groups = "|".join(schema.SCHEMAS)
    found = re.findall(rf"^ +- /schema/({groups})_(\w+)@_here_$", text, flags=re.MULTILINE)
    assert [(name, wanted in schema.SCHEMAS[name]) for name, wanted in found] == [(group, True)]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_says_in_its_first_line_what_it_is(group: str, option: str) -> None:
    lines = (CONF / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines()
    first = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert first.startswith("# ")
    assert len(first) > 8


@pytest.mark.parametrize("group", sorted(schema.SCHEMAS))
def test_every_schema_of_a_group_is_used_by_an_option(group: str) -> None:
    used = {
        name
        for path in (CONF / group).glob("*.yaml")
        for name in re.findall(rf"/schema/{group.replace('/', '_')}_(\w+)@", path.read_text(encoding="utf-8"))
    }
    assert used == set(schema.SCHEMAS[group])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_into_typed_objects(experiment: str) -> None:
    config = composed(f"experiment={experiment}")
    assert isinstance(schema.typed(config), schema.ExperimentConfig)
    assert config.hydra.runtime.choices["experiment"] == experiment
    assert config.study == experiment


@pytest.mark.parametrize("option", sorted(schema.SCHEMAS["recovery/objective"]))
def test_every_objective_goes_with_every_recovery_that_trains(option: str) -> None:
    for recovery in ("lora", "lora_short", "full", "llm_pruner"):
        config = schema.typed(composed(f"recovery={recovery}", f"recovery/objective={option}"))
        assert type(config.recovery.objective) is schema.SCHEMAS["recovery/objective"][option]


def test_every_text_of_a_recovery_is_a_source() -> None:
    found = {}
    for path in (CONF / "recovery" / "data").glob("*.yaml"):
        overrides = ["recovery.data.instructions.path=x.jsonl"] if path.stem == "instructions" else []
        parts = schema.typed(composed(f"recovery/data={path.stem}", *overrides)).recovery.data
        found[path.stem] = [type(part.text_source("x")).__name__ for part in parts.values()]
    assert found == {
        "run": [],
        "self_generated": ["SelfGenerated"],
        "instructions": ["Instructions"],
        "alpaca": ["Instructions"],
    }


def test_an_experiment_gives_way_to_the_command_line() -> None:
    config = composed("experiment=quickstart", "evaluation.items=7", "importance=l2")
    assert config.evaluation["items"] == 7
    assert config.hydra.runtime.choices["importance"] == "l2"
    assert config.importance.power == 2


def test_the_ratio_sweep_sweeps_ratios_and_estimators() -> None:
    config = composed("experiment=ratio_sweep")
    assert config.hydra.mode.name == "MULTIRUN"
    assert set(config.hydra.sweeper.params) == {"pruning.ratio", "importance"}


@pytest.mark.parametrize(
    "override",
    [
        "pruning.ratio=much",
        "seed=first",
        "evaluation.items=[1]",
        "evaluation.cost.repetitions=often",
        "recovery.steps=1.5",
        "pruning.ratio_of=everything",
    ],
)
def test_a_value_of_the_wrong_type_dies_at_composition_and_names_the_key(override: str) -> None:
    with pytest.raises(HydraException) as caught:
        composed(override)
    assert override.partition("=")[0] in messages(caught.value)


@pytest.mark.parametrize(
    "override", ["pruning.rato=0.1", "sed=1", "evaluation.cost.repetition=3", "importance.power=1"]
)
def test_an_unknown_key_dies_at_composition_and_is_named(override: str) -> None:
    with pytest.raises(HydraException) as caught:
        composed(override)
    assert override.partition("=")[0] in messages(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pruning.ratio=1.0", r"pruning\.ratio=1\.0: must be in \[0, 1\)"),
        ("pruning.ratio=-0.1", r"pruning\.ratio=-0\.1: must be in \[0, 1\)"),
        ("pruning.min_units=0", r"pruning\.min_units=0: must be at least 1"),
        ("pruning.protect_first=-1", r"pruning\.protect_first=-1: must be at least 0"),
        ("recovery.r=0", r"recovery\.r=0: must be at least 1"),
        ("recovery.dropout=1.0", r"recovery\.dropout=1\.0: must be in \[0, 1\)"),
        ("recovery.learning_rate=0", r"recovery\.learning_rate=0\.0: must be above 0"),
        ("recovery.micro_batch_size=3", r"recovery\.micro_batch_size=3: must divide recovery\.batch_size=4"),
        ("evaluation.items=0", r"evaluation\.items=0: must be at least 1"),
        ("evaluation.text_tokens=1", r"evaluation\.text_tokens=1: must be at least 2"),
        ("evaluation.windows=[128,1]", r"evaluation\.windows=\[128, 1\]: every window must be at least 2"),
        ("evaluation.generations=-1", r"evaluation\.generations=-1: must be at least 0"),
        ("evaluation.num_fewshot=-1", r"evaluation\.num_fewshot=-1: must be at least 0"),
        ("stability.blocks=1", r"stability\.blocks=1: must be at least 2"),
        ("stability.confidence=95", r"stability\.confidence=95\.0: must be in \(0, 1\)"),
        ("data.calibration_length=0", r"data\.calibration_length=0: must be at least 1"),
        ("importance.batch_size=0", r"importance\.batch_size=0: must be at least 1"),
    ],
)
def test_a_value_out_of_range_names_key_value_and_range(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schema.typed(changed(override))


@pytest.mark.parametrize("key", ["macs_tokens", "prefill_tokens", "decode_tokens", "repetitions"])
def test_a_cost_shape_of_nothing_names_key_and_value(key: str) -> None:
    with pytest.raises(ValueError, match=rf"evaluation\.cost\.{key}=0: must be"):
        schema.typed(changed(f"evaluation.cost.{key}=0"))


@pytest.mark.parametrize("sizes", ["[]", "[8, 0]"])
def test_batch_sizes_of_nothing_name_key_and_value(sizes: str) -> None:
    with pytest.raises(ValueError, match=rf"evaluation\.cost\.batch_sizes={re.escape(sizes)}: must be"):
        schema.typed(changed(f"evaluation.cost.batch_sizes={sizes}"))


def test_a_schedule_without_events_names_key_and_value() -> None:
    with pytest.raises(ValueError, match=r"schedule\.events=0: must be at least 1"):
        schema.typed(composed("schedule=linear", "schedule.events=0"))


def test_pruning_nothing_names_the_key_and_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"pruning\.structures=\[\]: name at least one of .*kv_group"):
        schema.typed(composed("pruning.structures=[]"))


def test_an_option_without_a_schema_is_told_where_to_read() -> None:
    plain = OmegaConf.create({"stability": {"blocks": 3}})
    with pytest.raises(ValueError, match="stability: this option's yaml does not extend a schema"):
        schema.typed(plain)


def test_random_scores_follow_the_seed_of_the_run_unless_given() -> None:
    config = copy.deepcopy(composed("importance=random"))
    config.seed = 5
    assert schema.typed(config).importance.seed == 5
    config.importance.seed = 2
    assert schema.typed(config).importance.seed == 2


def test_wandb_is_offline_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert schema.typed(composed()).tracking.mode == "offline"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert schema.typed(composed()).tracking.mode == "online"
