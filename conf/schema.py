"""The root configuration, and the registration of every option's schema as `schema/<group>_<name>`.

Each yaml in this folder extends its schema, so that a wrong key or type ends at composition. Ranges are checked when the
typed objects are made, which is the first thing a run does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf

from evaluation.algorithmic_stability.config import AlgorithmicStabilityConfig, NoTwins, Twins
from evaluation.config import EvaluationConfig
from evaluation.flatness.config import Flatness, MeasuredFlatness, NoFlatness
from evaluation.stability import StabilityConfig
from evaluation.tracking import NoTracking, RunIdentity, TrackingConfig, WandbTracking, under_agent
from pruning.compensation.base import Compensation, NoCompensation
from pruning.compensation.bias import BiasCompensation
from pruning.compensation.least_squares import LeastSquares
from pruning.config import PruningConfig
from pruning.importance.activation import ActivationImportance
from pruning.importance.base import ImportanceEstimator
from pruning.importance.magnitude import Magnitude
from pruning.importance.random import RandomImportance
from pruning.importance.reconstruction import Reconstruction
from pruning.importance.taylor import Taylor
from pruning.importance.unit_mask import UnitMask
from pruning.mixture import Mixture
from pruning.model import ModelSource, PretrainedSource, RandomLlamaSource
from pruning.removal import Cut, GaussianNoise, UnitRemoval, Zeroing
from pruning.schedule import Cubic, Exponential, Linear, OneShot, Schedule
from pruning.self_generated import SelfGenerated
from pruning.stability_target import StabilityTarget
from pruning.text import BundledPassages, HubText, LocalText, TextSource
from recovery.base import Recovery
from recovery.full import FullFineTuning
from recovery.lora import Lora
from recovery.none import NoRecovery
from recovery.objectives import Distillation, Objective

SCHEMAS: dict[str, dict[str, type]] = {
    "model": {"pretrained": PretrainedSource, "random_llama": RandomLlamaSource},
    "data": {
        "bundled": BundledPassages,
        "local": LocalText,
        "hub": HubText,
        "self_generated": SelfGenerated,
        "mixture": Mixture,
    },
    "importance": {
        "magnitude": Magnitude,
        "random": RandomImportance,
        "taylor": Taylor,
        "unit_mask": UnitMask,
        "activation": ActivationImportance,
        "reconstruction": Reconstruction,
    },
    "pruning": {"pruning": PruningConfig},
    "compensation": {"none": NoCompensation, "bias": BiasCompensation, "least_squares": LeastSquares},
    "removal": {"cut": Cut, "zeroing": Zeroing, "gaussian": GaussianNoise},
    "schedule": {
        "one_shot": OneShot,
        "linear": Linear,
        "cubic": Cubic,
        "exponential": Exponential,
        "stability_target": StabilityTarget,
    },
    "recovery": {"none": NoRecovery, "lora": Lora, "full": FullFineTuning},
    "recovery/objective": {"language_modelling": Objective, "distillation": Distillation},
    "evaluation": {"evaluation": EvaluationConfig},
    "stability": {"stability": StabilityConfig},
    "flatness": {"none": NoFlatness, "measured": MeasuredFlatness},
    "algorithmic_stability": {"none": NoTwins, "twins": Twins},
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
    compensation: Compensation = MISSING
    removal: UnitRemoval = MISSING
    schedule: Schedule = MISSING
    recovery: Recovery = MISSING
    evaluation: EvaluationConfig = MISSING
    stability: StabilityConfig = MISSING
    flatness: Flatness = MISSING
    algorithmic_stability: AlgorithmicStabilityConfig = MISSING
    tracking: TrackingConfig = MISSING
    seed: int = 0
    device: str = "auto"
    study: str = "default"
    runs_dir: str = "runs"
    cache_dir: str = "${runs_dir}/.cache"
    save_model: bool = True
    force: bool = False
    time_limit: float | None = None
    objectives: list[str] | None = None
    plan: bool = False

    def __post_init__(self) -> None:
        if self.time_limit is not None and self.time_limit <= 0:
            raise ValueError(f"time_limit={self.time_limit:g}: must be above 0 (minutes), or null for no limit")
        if self.objectives is not None and not self.objectives:
            raise ValueError("objectives=[]: must name metrics, or be null for the zero-shot mean after recovery")


def register() -> None:
    """Put the schemas into Hydra's store. Done once, before Hydra reads the command line."""
    store = ConfigStore.instance()
    store.store(name="experiment_schema", node=ExperimentConfig)
    for group, schemas in SCHEMAS.items():
        for name, schema in schemas.items():
            store.store(group="schema", name=f"{group.replace('/', '_')}_{name}", node=schema)


def typed(config: DictConfig) -> ExperimentConfig:
    """Return the composed configuration as the objects that do the work; `cfg` stops here.

    Raises:
        ValueError: a value is out of range, or an option does not extend its schema.
    """
    plain = OmegaConf.create({key: value for key, value in config.items() if key != "hydra"}, flags={"struct": True})
    assert isinstance(plain, DictConfig)
    found = {str(name): typed_value(plain, str(name)) for name in plain}
    return ExperimentConfig(**found)


def checked(config: DictConfig, who: RunIdentity) -> ExperimentConfig:
    """Return the typed configuration. A value out of range shows in W&B too when the run is one of many."""
    try:
        return typed(config)
    except ValueError:
        if HydraConfig.get().mode is RunMode.MULTIRUN or under_agent():
            with typed_value(config, "tracking").start(who):
                raise
        raise


def typed_value(config: DictConfig, name: str) -> Any:
    """Return one top-level value of the composed configuration, a group as the object that does the work.

    Raises:
        ValueError: a value of the group is out of range, or its option does not extend its schema.
    """
    value = OmegaConf.to_object(config[name]) if OmegaConf.is_config(config[name]) else config[name]
    if isinstance(value, dict):
        raise ValueError(f"{name}: this option's yaml does not extend a schema; see docs/extending.md")
    return value
