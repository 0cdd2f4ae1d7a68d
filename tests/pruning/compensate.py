"""Compensation for tests: what a plan's corrections are, and a model that is compensated and cut, each in one call."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from pruning.cache import Cache
from pruning.compensation.apply import compensate
from pruning.compensation.base import Compensation, Correction
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.surgery import cut
from pruning.units import PruningPlan, UnitKind
from tests.plans import half_of

TEXT = torch.randint(2, 258, (12, 20), generator=torch.Generator().manual_seed(1))
"""Calibration samples: 240 tokens, more than the inputs of any linear map of the tiny models."""

HEADS = (UnitKind.kv_group, UnitKind.query_head, UnitKind.mlp_channel)
"""Every kind whose units a linear map reads."""


def half_plan(model: PreTrainedModel, kinds: tuple[UnitKind, ...] = HEADS) -> PruningPlan:
    return half_of(find_units(model, find_layout(model)), kinds)


def corrections_of(
    model: PreTrainedModel, compensation: Compensation, plan: PruningPlan, cache: Cache
) -> dict[str, Correction]:
    return compensation.corrections(model, find_units(model, find_layout(model)), plan, TEXT, cache)


def compensate_and_cut(
    model: PreTrainedModel, compensation: Compensation, cache: Cache, plan: PruningPlan | None = None
) -> dict[str, Correction]:
    """Halve what linear maps read, or carry out `plan`, and return the corrections."""
    plan = plan or half_plan(model)
    corrections = corrections_of(model, compensation, plan, cache)
    groups = find_units(model, find_layout(model))
    compensate(model, corrections)
    cut(model, find_layout(model), groups, plan)
    return corrections
