"""The root configuration, and the registration of every option's schema as `schema/<group>_<name>`.

Each yaml in this folder extends its schema, so that a wrong key or type ends at composition. Ranges are checked when the
typed objects are made, which is the first thing a run does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from evaluation.measure import EvaluationConfig
from evaluation.stability import StabilityConfig
from evaluation.tracking import NoTracking, TrackingConfig, WandbTracking
from pruning.config import PruningConfig
from pruning.importance.activation import ActivationImportance
from pruning.importance.base import ImportanceEstimator
from pruning.importance.magnitude import Magnitude
from pruning.importance.random import RandomImportance
from pruning.importance.reconstruction import Reconstruction
from pruning.importance.taylor import Taylor
from pruning.importance.unit_mask import UnitMask
from pruning.model import ModelSource, PretrainedSource, RandomLlamaSource
from pruning.schedule import Cubic, Exponential, Linear, OneShot, Schedule
from pruning.text import BundledPassages, HubText, LocalText, SelfGenerated, TextSource
from recovery.base import Recovery
from recovery.lora import Lora
from recovery.none import NoRecovery

SCHEMAS: dict[str, dict[str, type]] = {
    "model": {"pretrained": PretrainedSource, "random_llama": RandomLlamaSource},
    "data": {"bundled": BundledPassages, "local": LocalText, "hub": HubText, "self_generated": SelfGenerated},
    "importance": {
        "magnitude": Magnitude,
        "random": RandomImportance,
        "taylor": Taylor,
        "unit_mask": UnitMask,
        "activation": ActivationImportance,
        "reconstruction": Reconstruction,
    },
    "pruning": {"pruning": PruningConfig},
    "schedule": {"one_shot": OneShot, "linear": Linear, "cubic": Cubic, "exponential": Exponential},
    "recovery": {"none": NoRecovery, "lora": Lora},
    "evaluation": {"evaluation": EvaluationConfig},
    "stability": {"stability": StabilityConfig},
    "tracking": {"none": NoTracking, "wandb": WandbTracking},
}
"""Group -> schema name -> the class whose fields an option of that group may set. Add yours here."""


@dataclass
class ExperimentConfig:
    """One run."""

    model: ModelSource = MISSING
    data: TextSource = MISSING
    importance: ImportanceEstimator = MISSING
    pruning: PruningConfig = MISSING
    schedule: Schedule = MISSING
    recovery: Recovery = MISSING
    evaluation: EvaluationConfig = MISSING
    stability: StabilityConfig = MISSING
    tracking: TrackingConfig = MISSING
    seed: int = 0
    device: str = "auto"
    study: str = "default"
    runs_dir: str = "runs"
    cache_dir: str = "${runs_dir}/.cache"
    save_model: bool = True
    force: bool = False


def register() -> None:
    """Put the schemas into Hydra's store. Done once, before Hydra reads the command line."""
    store = ConfigStore.instance()
    store.store(name="experiment_schema", node=ExperimentConfig)
    for group, schemas in SCHEMAS.items():
        for name, schema in schemas.items():
            store.store(group="schema", name=f"{group}_{name}", node=schema)


def typed(config: DictConfig) -> ExperimentConfig:
    """Return the composed configuration as the objects that do the work; `cfg` stops here.

    Raises:
        ValueError: a value is out of range, or an option does not extend its schema.
    """
    plain = OmegaConf.create({key: value for key, value in config.items() if key != "hydra"}, flags={"struct": True})
    assert isinstance(plain, DictConfig)
    found = {str(name): _object(plain, str(name)) for name in plain}
    return ExperimentConfig(**found)


def _object(config: DictConfig, name: str) -> Any:
    value = OmegaConf.to_object(config[name]) if OmegaConf.is_config(config[name]) else config[name]
    if isinstance(value, dict):
        raise ValueError(f"{name}: this option's yaml does not extend a schema; see docs/extending.md")
    return value
