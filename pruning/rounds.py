"""Choosing in rounds: on the way to one cut, units are scored anew on a model that is pruned so far for the time being.

Scores describe the model that they were taken on; after a tenth of it has left, other units have become important. Rounds
follow that (as the shots of LLM Surgeon, van der Ouderaa et al., ICLR 2024, do) without another cut: what has been chosen so
far is held at zero and compensated while the next round scores, and then undone. The calibration samples are dealt out
among the rounds, so that they cost no more than one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from pruning.allocation import NOTHING, Allocator, StepTooSmall
from pruning.autocast import passes
from pruning.cache import Cache
from pruning.compensation.apply import compensated, pruned_for_now
from pruning.compensation.base import Compensation, Correction
from pruning.grouping import find_units
from pruning.importance.base import ImportanceEstimator
from pruning.importance.scoring import UnitScores, score_units
from pruning.kinds import UnitKind
from pruning.layout import DecoderLayout
from pruning.units import PruningPlan, UnitGroup


@dataclass(frozen=True)
class Chooser:
    """What decides which units leave at an event, and what becomes of those that stay."""

    importance: ImportanceEstimator
    compensation: Compensation
    allocator: Allocator
    cache: Cache
    calibration: torch.Tensor
    """Token ids that importance is measured on, (N, T)."""

    moments: torch.Tensor
    """Token ids that compensation takes moments on, (N, T)."""

    def __post_init__(self) -> None:
        if (rounds := self.allocator.config.rounds) > len(self.calibration):
            raise ValueError(
                f"pruning.rounds={rounds}: each round needs a calibration sample of its own, but data.calibration_samples="
                f"{len(self.calibration)}: lower the first or raise the second"
            )

    def choose(
        self,
        model: PreTrainedModel,
        groups: Mapping[str, UnitGroup],
        before: float,
        ratio: float,
        chosen: PruningPlan = NOTHING,
    ) -> tuple[UnitScores, PruningPlan, dict[str, Correction]]:
        """Return the last round's scores, the plan, and the corrections that go with it; the model is bit-identical afterwards.

        Args:
            model: as it is before the event.
            groups: its groups that may be cut.
            before: cumulative ratio of the event before.
            ratio: cumulative ratio to reach.
            chosen: units that are in the model again and leave in any case.

        Raises:
            ValueError: no whole unit fits into a round, or the moments cannot be used.
        """
        rounds = self.allocator.config.rounds
        plan, corrections = chosen, dict[str, Correction]()
        for index, samples in enumerate(self.calibration.tensor_split(rounds), start=1):
            is_last = index == rounds
            # an allocator takes every plan to be carried out
            allocator = self.allocator if is_last else copy.deepcopy(self.allocator)
            aim = ratio if is_last else before + (ratio - before) * index / rounds
            passing = self._passing(model, groups, samples, plan)
            with pruned_for_now(model, groups, plan, corrections), self._computing(model), passing:
                scores = score_units(self.importance, model, groups, samples, self.cache)
            try:
                with compensated(model, corrections):
                    plan = allocator.plan(model, groups, scores.values, aim, samples, chosen=plan)
            except StepTooSmall:
                if is_last:
                    raise
                continue  # the next round takes the step
            with self._computing(model):
                corrections = self.compensation.corrections(model, groups, plan, self.moments, self.cache, self.scored)
        outputs = sublayer_outputs(model, self.allocator.layout)
        with self._computing(model):
            return scores, plan, self.compensation.finish(model, groups, plan, outputs, self.moments, corrections)

    def _computing(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Return the context of passes over calibration text."""
        return passes(self.allocator.config.bf16, model)

    @property
    def scored(self) -> int:
        """How many of the blocks that moments are taken on are those that importance is measured on: the first, or none."""
        first = self.moments[: len(self.calibration)]
        return len(first) if first.shape == self.calibration.shape and torch.equal(first, self.calibration) else 0

    def _passing(
        self, model: PreTrainedModel, groups: Mapping[str, UnitGroup], samples: torch.Tensor, plan: PruningPlan
    ) -> AbstractContextManager[None]:
        """Return the context of a scoring, in which moments of the model as it is are taken where they can be."""
        whole = len(samples) == self.scored and not plan.kept
        return self.compensation.while_scoring(model, groups, samples, self.cache) if whole else nullcontext()

    def for_trial(self) -> Chooser:
        """Return a chooser whose plans are not taken to be carried out."""
        return replace(self, allocator=copy.deepcopy(self.allocator))

    def tried(
        self, model: PreTrainedModel, groups: Mapping[str, UnitGroup], before: float, measure: Callable[[], float]
    ) -> Callable[[float], float]:
        """Return what tells `measure()` while the model is as an event to a given cumulative ratio would leave it.

        Nothing is cut: what would leave is held at zero and compensated, and undone again.
        """

        def at(ratio: float) -> float:
            _, plan, corrections = self.for_trial().choose(model, groups, before, ratio)
            with pruned_for_now(model, groups, plan, corrections):
                return measure()

        return at


def sublayer_outputs(model: PreTrainedModel, layout: DecoderLayout) -> list[str]:
    """Return the linear maps whose outputs attentions and MLPs add to the residual stream, in layer order."""
    sublayers = (UnitKind.attention_layer, UnitKind.mlp_layer)
    return [
        output for group in find_units(model, layout).values() if group.kind in sublayers for output in group.readers
    ]
