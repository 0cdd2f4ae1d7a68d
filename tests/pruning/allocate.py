"""Allocation for tests: short names for a configuration, an allocator without a cache, and a pruning in one call."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from pruning.allocation import Allocator
from pruning.cache import Cache
from pruning.config import PruningConfig
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.importance.random import RandomImportance
from pruning.surgery import cut
from pruning.units import PruningPlan

NO_CACHE = Cache(Path("there is no such folder"))
"""Where nothing is measured, nothing is kept."""

NO_SAMPLES = torch.empty(0, 0, dtype=torch.long)


def config(**options: object) -> PruningConfig:
    return PruningConfig(**{"protect_first": 1, "protect_last": 1, **options})  # type: ignore[arg-type]


def allocator_for(model: PreTrainedModel, options: PruningConfig) -> Allocator:
    return Allocator(options, model, find_layout(model), NO_CACHE)


def prune(model: PreTrainedModel, options: PruningConfig, *ratios: float) -> list[PruningPlan]:
    """Cut random units in one event or several, and return the plans."""
    layout, plans = find_layout(model), []
    allocator = allocator_for(model, options)
    for ratio in ratios or (options.ratio,):
        groups = allocator.touched(find_units(model, layout))
        scores = RandomImportance().score(model, groups, None)
        plan = allocator.plan(model, groups, scores, ratio, NO_SAMPLES)
        cut(model, layout, groups, plan)
        plans.append(plan)
    return plans
