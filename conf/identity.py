"""The identity of a run: a key made of everything its figures depend on, and a folder name that a person can read.

Two runs with equal configurations have one key and one folder, whichever command or experiment asked for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from evaluation.tracking import RunIdentity, single_run
from pruning.cache import digest

OUTSIDE = (
    *("tracking", "study", "runs_dir", "cache_dir", "save_model", "force", "experiment"),
    *("time_limit", "objectives", "plan"),
)
"""Keys that decide where a run goes and is shown, not what it finds."""


def resolved(config: DictConfig) -> dict[str, Any]:
    """Return the whole configuration but Hydra's own part, as plain values."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    plain = OmegaConf.to_container(own, resolve=True, throw_on_missing=True, enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def run_key(config: DictConfig) -> str:
    """Return the first 8 hexadecimal digits of the hash of what the figures depend on: values, and the classes behind them."""
    values = {key: value for key, value in resolved(config).items() if key not in OUTSIDE}
    classes = {key: str(OmegaConf.get_type(config, key)) for key in values}
    return digest({"values": values, "classes": classes})[:8]


def run_name(config: DictConfig, choices: Mapping[str, Any]) -> str:
    """Return `<model>-<importance>-r<ratio>-<schedule>-<recovery>-s<seed>-<key>`."""
    parts = [config.model.name, choices["importance"], f"r{config.pruning.ratio:.2f}", choices["schedule"]]
    return "-".join(str(part) for part in (*parts, choices["recovery"], f"s{config.seed}", run_key(config)))


def describe(config: DictConfig, folder: Path) -> RunIdentity:
    """Return how the run that Hydra has just started is named and filed."""
    hydra = HydraConfig.get()
    own = {group: str(option) for group, option in hydra.runtime.choices.items() if "hydra" not in group}
    return RunIdentity(
        key=run_key(config),
        name=run_name(config, own),
        study=config.study,
        choices=own,
        config=resolved(config),
        folder=folder,
        overrides=single_run(hydra.overrides.task, str(hydra.mode)),
    )


def register() -> None:
    """Make `${run_name:}` available to the yaml files; Hydra's output folders are named by it."""
    OmegaConf.register_new_resolver(
        "run_name", lambda _root_: run_name(_root_, _root_.hydra.runtime.choices), replace=True
    )
