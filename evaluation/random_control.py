"""The control for schedule and estimator: the same model pruned at random, in one event, to the same ratio."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from pruning.allocation import Allocator
from pruning.compensation.apply import compensate
from pruning.grouping import find_units
from pruning.importance.random import RandomImportance
from pruning.layout import DecoderLayout
from pruning.rounds import Chooser
from pruning.surgery import cut
from pruning.units import PruningPlan


def prune_at_random(model: PreTrainedModel, layout: DecoderLayout, chooser: Chooser, seed: int) -> PruningPlan:
    """Prune `model` in place like `chooser` would (same ratio, allocation and compensation), but for the scores.

    Args:
        model: the dense model, of which `chooser` has pruned another copy.
        layout: its layout.
        chooser: of the run that is compared.
        seed: draws the scores.

    Returns:
        What was cut.
    """
    config = chooser.allocator.config
    allocator = Allocator(config, model, layout, chooser.cache)
    groups = allocator.touched(find_units(model, layout))
    at_random = replace(chooser, importance=RandomImportance(seed=seed), allocator=allocator)
    _, plan, corrections = at_random.choose(model, groups, 0.0, config.ratio)
    compensate(model, corrections)
    cut(model, layout, groups, plan)
    return plan
