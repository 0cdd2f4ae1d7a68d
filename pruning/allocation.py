"""Budget and choice: a ratio and the units' scores become a plan.

The budget is solved, not hoped for: steps.py puts the units in the order in which they leave, and the line is followed
until the next step would pass the budget; finer units then take up what is left.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from pruning.budget import Budget, Removal
from pruning.cache import Cache
from pruning.choice import choose_units, chosen_first, directed, removed_counts
from pruning.config import Allocation, PruningConfig, RatioOf
from pruning.costs import Cost, mac_costs, parameter_costs, total_cost
from pruning.grouping import find_units
from pruning.kinds import UnitKind
from pruning.latency import PrefillTimes, check_reachable, solve_time
from pruning.layout import DecoderLayout, block_parameters, decoder_layers
from pruning.model import count_parameters
from pruning.scope import Scope
from pruning.sensitivity import measure_curves, measured_prices
from pruning.steps import removal_line
from pruning.units import PruningPlan, UnitGroup

log = logging.getLogger(__name__)

Groups = Mapping[str, UnitGroup]
Scores = Mapping[str, torch.Tensor]
"""(U,) for each group; the lowest leave first."""


NOTHING = PruningPlan({}, 0.0, 0.0)
"""The plan that removes nothing."""


class StepTooSmall(ValueError):
    """No whole unit fits into a step from one ratio to the next."""


@dataclass(frozen=True)
class DenseSizes:
    """What the ratios of one run refer to: the sizes before its first event."""

    total: int
    blocks: int
    base: int
    """In the budget's measure: parameters of the model or of its blocks, or multiply-accumulates."""


class Allocator:
    """Makes the plans of one run. Remembers the dense model's sizes and layers, which all ratios and layer numbers refer to.

    Every plan is taken to be carried out: layers that it drops are not counted any more.
    """

    def __init__(self, config: PruningConfig, model: PreTrainedModel, layout: DecoderLayout, cache: Cache) -> None:
        """Take the dense model's sizes.

        Raises:
            ValueError: what the configuration asks for cannot be had; the message says what can.
        """
        self.config = config
        self.layout = layout
        self.cache = cache
        groups = find_units(model, layout)
        self.scope = Scope(config, groups, len(decoder_layers(model, layout)), model.dtype.itemsize)
        self.counted = {name for name, _ in model.named_parameters()}
        """Parameters that the budget counts: biases that compensation adds are none of them."""

        base = total_cost(model, self._costs(model))
        self.dense = DenseSizes(count_parameters(model), block_parameters(model, layout), base)
        self.time_left = 1.0
        """Fraction of the dense model's prefill time that the plans so far leave, for ratio_of=latency."""

        self.finest = 0.0
        """Fraction of the dense model that the smallest step takes; 0 where units or time are counted."""

        if config.ratio:
            self._check_reachable(model, self.touched(groups))

    def touched(self, groups: Groups) -> dict[str, UnitGroup]:
        """Return the groups that may be cut: the chosen kinds, in the layers that are not protected."""
        return self.scope.touched(groups)

    def plan(
        self,
        model: PreTrainedModel,
        groups: Groups,
        scores: Scores,
        ratio: float,
        samples: torch.Tensor,
        chosen: PruningPlan = NOTHING,
    ) -> PruningPlan:
        """Return the plan that brings the model to the cumulative `ratio` by cutting the units that matter least.

        Args:
            model: the model as it is now.
            groups: its groups that may be cut.
            scores: (U,) for each group, higher is more important.
            ratio: cumulative fraction of the dense model, in the meaning of `ratio_of`.
            samples: calibration token ids, (N, T), that allocation=sensitivity measures the loss on.
            chosen: what earlier rounds have chosen; it leaves in any case.

        Raises:
            StepTooSmall: no whole unit fits between the present ratio and this one.
            ValueError: less time is left than can be reached.
        """
        scores = chosen_first(groups, directed(groups, scores, self.config.direction, self.config.seed), chosen)
        gone = removed_counts(groups, chosen)
        counts, reached = self._solve(model, groups, scores, ratio, samples, gone)
        if not any(counts.values()):
            raise StepTooSmall(
                f"pruning.ratio={self.config.ratio}: the step to {ratio:.4f} is smaller than one unit; "
                "use fewer schedule.events (or a larger schedule.smallest_step), a larger ratio, or a smaller pruning.round_to"
            )
        if ratio == self.config.ratio:
            self._tell_held(groups, counts)
        kept = choose_units(groups, scores, counts)
        self.scope.drop_layers({groups[name].layer for name in kept if groups[name].kind is UnitKind.layer})
        return PruningPlan(kept, ratio_asked=ratio, ratio_reached=reached)

    def ratios(self, model: PreTrainedModel, plan: PruningPlan) -> dict[str, float]:
        """Return the ratio asked and reached, and what is gone from the whole model and from its decoder layers."""
        return {
            "ratio_asked": plan.ratio_asked,
            "ratio_reached": plan.ratio_reached,
            "ratio_of_total": 1 - count_parameters(model) / self.dense.total,
            "ratio_of_blocks": 1 - block_parameters(model, self.layout) / self.dense.blocks,
        }

    def _solve(
        self,
        model: PreTrainedModel,
        groups: Groups,
        scores: Scores,
        ratio: float,
        samples: torch.Tensor,
        gone: Mapping[str, int],
    ) -> tuple[dict[str, int], float]:
        """Return how many units of each group leave, and the cumulative ratio that is then reached."""

        def prices(free: Groups) -> Scores:
            return self._prices(model, groups, free, scores, samples, gone)

        removal = self._removal(model, groups, ratio, prices, gone)
        if self.config.ratio_of is RatioOf.units:
            left = sum(group.run_length - removal.fixed[name] for name, group in groups.items())
            return dict(removal.fixed), 1 - left / sum(self.scope.units.values())
        if self.config.ratio_of is RatioOf.latency:
            times = PrefillTimes(self.config.latency, model, self.layout, groups, self.cache)
            counts, self.time_left = solve_time(removal, times, self.time_left, ratio)
            return counts, 1 - self.time_left
        before = self.dense.base - total_cost(model, self._costs(model))
        counts = removal.counts(ratio * self.dense.base - before)
        return counts, (before + removal.budget.removed(counts)) / self.dense.base

    def _removal(
        self,
        model: PreTrainedModel,
        groups: Groups,
        ratio: float,
        prices: Callable[[Groups], Scores],
        gone: Mapping[str, int],
    ) -> Removal:
        """Return what may leave in the event of the cumulative `ratio`, in the order of the prices; `gone` does so anyway."""
        fixed = self.scope.fixed(groups, ratio)
        free = {name: group for name, group in groups.items() if name not in fixed}
        budget = Budget(model, groups, self._costs(model))
        unit_costs = {name: budget.removed({name: 1}) for name in free}
        line = removal_line(self.scope, free, prices(free), unit_costs)
        return Removal({**gone, **fixed}, [step for step in line if step.after > gone.get(step.group, 0)], budget)

    def _costs(self, model: PreTrainedModel) -> dict[str, Cost]:
        """Return what is counted of each parameter: its numbers, also for time, or its multiply-accumulates."""
        if self.config.ratio_of is RatioOf.macs:
            return mac_costs(model, self.layout, self.config.macs_tokens)
        costs = parameter_costs(model, f"{self.layout.layers}." if self.config.ratio_of is RatioOf.blocks else "")
        return {name: cost for name, cost in costs.items() if name in self.counted}

    def _prices(
        self,
        model: PreTrainedModel,
        groups: Groups,
        free: Groups,
        scores: Scores,
        samples: torch.Tensor,
        gone: Mapping[str, int],
    ) -> Scores:
        """Return what orders the steps: scores, or the measured rise in loss, unit by unit in the order in which they leave."""
        if self.config.allocation is not Allocation.sensitivity:
            return scores
        removable = {name: self.scope.removable(group) for name, group in free.items()}
        curves = measure_curves(self.config.sensitivity, model, groups, scores, removable, samples, self.cache, gone)
        return {**scores, **measured_prices(curves, groups, gone)}  # groups that may lose nothing have no curve

    def _tell_held(self, groups: Groups, counts: Mapping[str, int]) -> None:
        """Say once a run, at its last event, which groups would be empty if they did not keep the minimum."""
        held = self.scope.held(groups, counts)
        if held:
            some = ", ".join(held[:3]) + (", ..." if len(held) > 3 else "")
            log.warning(
                "%d of %d groups keep the fewest units they may (min_units=%d): %s",
                len(held),
                len(groups),
                self.config.min_units,
                some,
            )

    def _check_reachable(self, model: PreTrainedModel, groups: Groups) -> None:
        """Raise before any work when the ratio asked for cannot be had from whole units outside protected layers."""
        ratio, of = self.config.ratio, self.config.ratio_of
        removal = self._removal(model, groups, ratio, _no_prices, {})
        if of is RatioOf.units and not any(removal.fixed.values()):
            raise ValueError(f"pruning.ratio={ratio} (of units): smaller than half a unit of every group")
        if not any(removal.most.values()):
            raise ValueError(
                f"pruning.ratio={ratio} (of {of.name}): no unit may leave. Every group that may be cut has no more units "
                f"than pruning.min_units={self.config.min_units} (or the model itself) keeps: name more pruning.structures"
            )
        if of is RatioOf.latency:
            times = PrefillTimes(self.config.latency, model, self.layout, groups, self.cache)
            check_reachable(ratio, 1 - times.relative(removal.most), self.config.latency.tolerance)
        elif removal.line:
            self._check_budget(removal)

    def _check_budget(self, removal: Removal) -> None:
        """Raise when the ratio asked for is smaller than what leaves anyway, or larger than what may leave."""
        ratio, of = self.config.ratio, self.config.ratio_of
        least = removal.budget.removed(removal.fixed) / self.dense.base
        most = removal.budget.removed(removal.most) / self.dense.base
        self.finest = finest = removal.finest / self.dense.base
        if not max(least, finest) - finest / 2 <= ratio <= most:
            raise ValueError(
                f"pruning.ratio={ratio} (of {of.name}): cannot be reached here. With whole units, "
                f"pruning.min_units={self.config.min_units} and the protected layers, it must be 0 or in "
                f"[{max(least, finest / 2):.2g}, {math.floor(most * 1e4) / 1e4}]. Protect fewer layers "
                "(pruning.protect_first, pruning.protect_last) or name more pruning.structures to reach more."
            )


def _no_prices(groups: Groups) -> Scores:
    return {name: torch.zeros(group.num_units) for name, group in groups.items()}
