"""Budget and choice: a ratio and the units' scores become a plan.

The budget is solved in parameters, not hoped for: steps.py puts the units in the order in which they leave, and the line
is followed until the next step would pass the budget; finer units then take up what is left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from pruning.budget import ParameterBudget, follow
from pruning.choice import choose_units, directed
from pruning.config import Allocation, PruningConfig, RatioOf
from pruning.grouping import find_units
from pruning.kinds import ATTENTION_KINDS, MLP_KINDS, UnitKind
from pruning.layout import DecoderLayout, block_parameters, decoder_layers
from pruning.model import count_parameters
from pruning.steps import Step, global_order, group_steps, multiple_of, uniform_order
from pruning.units import PruningPlan, UnitGroup


@dataclass(frozen=True)
class DenseSizes:
    """What the ratios of one run refer to: the sizes before its first event."""

    total: int
    blocks: int
    units: Mapping[str, int]
    """Units of every run of each group that may be cut."""


class Allocator:
    """Makes the plans of one run. Remembers the dense model's sizes and layers, which all ratios and layer numbers refer to.

    Every plan is taken to be carried out: layers that it drops are not counted any more.
    """

    def __init__(self, config: PruningConfig, model: PreTrainedModel, layout: DecoderLayout) -> None:
        self.config = config
        self.layout = layout
        self.layers = len(decoder_layers(model, layout))
        self.present = list(range(self.layers))
        """The dense model's numbers of the layers that are left."""

        groups = self.touched(find_units(model, layout))
        self.dense = DenseSizes(
            count_parameters(model),
            block_parameters(model, layout),
            {name: group.run_length for name, group in groups.items()},
        )
        self._check_named(groups)
        self._check_reachable(model, groups)

    def touched(self, groups: Mapping[str, UnitGroup]) -> dict[str, UnitGroup]:
        """Return the groups that may be cut: the chosen kinds, in the layers that are not protected."""
        present = {group.kind for group in groups.values()}
        missing = [kind.name for kind in self.config.structures if kind not in present]
        if missing:
            raise ValueError(
                f"pruning.structures: this model has no {', '.join(missing)}; it has "
                f"{', '.join(kind.name for kind in UnitKind if kind in present)}"
            )
        chosen = {
            name: group
            for name, group in groups.items()
            if group.kind in self.config.structures
            and (group.layer is None or self.present[group.layer] in self._layers_for(group.kind))
        }
        if not chosen:
            raise ValueError(
                f"pruning.protect_first={self.config.protect_first} and pruning.protect_last={self.config.protect_last} "
                f"(or attention_layers, mlp_layers) protect all {self.layers} layers of this model: lower them"
            )
        return chosen

    def plan(
        self, model: PreTrainedModel, groups: Mapping[str, UnitGroup], scores: Mapping[str, torch.Tensor], ratio: float
    ) -> PruningPlan:
        """Return the plan that brings the model to the cumulative `ratio` by cutting the units that matter least.

        Args:
            model: the model as it is now.
            groups: its groups that may be cut.
            scores: (U,) for each group, higher is more important.
            ratio: cumulative fraction of the dense model, in the meaning of `ratio_of`.

        Raises:
            ValueError: no whole unit fits between the present ratio and this one.
        """
        scores = directed(scores, self.config.direction, self.config.seed)
        budget = self._budget(model, groups)
        counts = self._fixed(groups, ratio)
        gone = self._gone(model)
        if self.config.ratio_of is not RatioOf.units:
            line = self._line({name: group for name, group in groups.items() if name not in counts}, scores)
            counts |= follow(line, budget, counts, ratio * self._base - gone)
        if not any(counts.values()):
            raise ValueError(
                f"pruning.ratio={self.config.ratio}: the step to {ratio:.4f} is smaller than one unit; "
                "use fewer schedule.events, a larger ratio, or a smaller pruning.round_to"
            )
        reached = (gone + budget.removed(counts)) / self._base
        if self.config.ratio_of is RatioOf.units:
            left = sum(group.run_length - counts[name] for name, group in groups.items())
            reached = 1 - left / sum(self.dense.units.values())
        kept = choose_units(groups, scores, counts)
        dropped = {groups[name].layer for name in kept if groups[name].kind is UnitKind.layer}
        self.present = [number for layer, number in enumerate(self.present) if layer not in dropped]
        return PruningPlan(kept, ratio_asked=ratio, ratio_reached=reached)

    def ratios(self, model: PreTrainedModel, plan: PruningPlan) -> dict[str, float]:
        """Return the ratio asked and reached, and what is gone from the whole model and from its decoder layers."""
        return {
            "ratio_asked": plan.ratio_asked,
            "ratio_reached": plan.ratio_reached,
            "ratio_of_total": 1 - count_parameters(model) / self.dense.total,
            "ratio_of_blocks": 1 - block_parameters(model, self.layout) / self.dense.blocks,
        }

    @property
    def _base(self) -> int:
        return self.dense.blocks if self.config.ratio_of is RatioOf.blocks else self.dense.total

    def _gone(self, model: PreTrainedModel) -> int:
        """Return the parameters that earlier events removed, of the whole model or of its decoder layers."""
        if self.config.ratio_of is RatioOf.blocks:
            return self.dense.blocks - block_parameters(model, self.layout)
        return self.dense.total - count_parameters(model)

    def _budget(self, model: PreTrainedModel, groups: Mapping[str, UnitGroup]) -> ParameterBudget:
        prefix = f"{self.layout.layers}." if self.config.ratio_of is RatioOf.blocks else ""
        return ParameterBudget(model, groups, prefix)

    def _dense_name(self, group: UnitGroup) -> str:
        """Return the name that a group has in the dense model."""
        if group.layer is None:
            return group.name
        return f"layers.{self.present[group.layer]}.{group.name.rpartition('.')[2]}"

    def _layers_for(self, kind: UnitKind) -> Sequence[int]:
        config = self.config
        for kinds, chosen in ((ATTENTION_KINDS, config.attention_layers), (MLP_KINDS, config.mlp_layers)):
            if kind in kinds and chosen is not None:
                return chosen
        return range(config.protect_first, self.layers - config.protect_last)

    def _fixed(self, groups: Mapping[str, UnitGroup], ratio: float) -> dict[str, int]:
        """Return the counts of the groups whose ratio is given, at the same progress as the whole."""
        progress = ratio / self.config.ratio if self.config.ratio else 1.0
        counts = {}
        for name, group in groups.items():
            given = self._given_ratio(group)
            if given is not None:
                dense = self.dense.units[self._dense_name(group)]
                left = dense - round(given * progress * dense)
                multiple = multiple_of(group.kind, self.config.round_to)
                counts[name] = max(0, group.run_length - max(multiple, round(left / multiple) * multiple))
        return counts

    def _given_ratio(self, group: UnitGroup) -> float | None:
        config = self.config
        if (name := self._dense_name(group)) in config.layer_ratios:
            return config.layer_ratios[name]
        for kinds, ratio in ((ATTENTION_KINDS, config.attention_ratio), (MLP_KINDS, config.mlp_ratio)):
            if group.kind in kinds and ratio is not None:
                return ratio
        return config.ratio if config.ratio_of is RatioOf.units else None

    def _removable(self, group: UnitGroup) -> int:
        """Return the units of every run that may leave."""
        if group.kind.is_depth:
            return 1
        return max(0, group.run_length - max(self.config.min_units, group.min_units))

    def _line(self, groups: Mapping[str, UnitGroup], scores: Mapping[str, torch.Tensor]) -> list[Step]:
        """Return all steps in the order in which they leave; one decoder layer always stays."""
        steps = {
            name: group_steps(group, scores[name], self._removable(group), self.config.round_to)
            for name, group in groups.items()
        }
        if self.config.allocation is Allocation.uniform:
            gone = {
                name: self.dense.units[self._dense_name(group)] - group.run_length for name, group in groups.items()
            }
            room = {name: gone[name] + self._removable(group) for name, group in groups.items()}
            line = uniform_order(steps, scores, room, gone)
        else:
            line = global_order(steps)
        whole = [step for step in line if step.kind is UnitKind.layer]
        if len(whole) == len(self.present):
            line.remove(whole[-1])
        return line

    def _check_named(self, groups: Mapping[str, UnitGroup]) -> None:
        """Raise for a group or layer that the configuration names and the model does not have."""
        unknown = sorted(set(self.config.layer_ratios) - set(groups))
        if unknown:
            raise ValueError(f"pruning.layer_ratios names {unknown}; the groups that may be cut are {sorted(groups)}")
        for name in ("attention_layers", "mlp_layers"):
            wrong = [layer for layer in getattr(self.config, name) or [] if not 0 <= layer < self.layers]
            if wrong:
                raise ValueError(
                    f"pruning.{name} names the layers {wrong}; this model has layers 0 to {self.layers - 1}"
                )
        for name, group in groups.items():
            given = self._given_ratio(group)
            if given is not None and round(given * group.run_length) > self._removable(group):
                raise ValueError(
                    f"{name}: a ratio of {given} would remove {round(given * group.run_length)} of its {group.run_length} "
                    f"units, but at most {self._removable(group)} may leave (pruning.min_units={self.config.min_units})"
                )

    def _check_reachable(self, model: PreTrainedModel, groups: Mapping[str, UnitGroup]) -> None:
        """Raise before any work when the ratio asked for cannot be had from whole units outside protected layers."""
        ratio = self.config.ratio
        fixed = self._fixed(groups, ratio)
        budget = self._budget(model, groups)
        free = {name: group for name, group in groups.items() if name not in fixed}
        line = self._line(free, {name: torch.zeros(group.num_units) for name, group in free.items()})
        least = budget.removed(fixed) / self._base
        most = budget.removed(fixed | {step.group: step.after for step in line}) / self._base
        finest = min((step.parameters for step in line), default=0) / self._base
        if self.config.ratio_of is RatioOf.units:
            if ratio and not any(fixed.values()):
                raise ValueError(f"pruning.ratio={ratio} (of units): smaller than half a unit of every group")
        elif ratio and line and not max(least, finest) - finest / 2 <= ratio <= most:
            raise ValueError(
                f"pruning.ratio={ratio} (of {self.config.ratio_of.name}): cannot be reached here. With whole units, "
                f"pruning.min_units={self.config.min_units} and the protected layers, it must be 0 or in "
                f"[{max(least, finest / 2):.2g}, {math.floor(most * 1e4) / 1e4}]. Protect fewer layers "
                "(pruning.protect_first, pruning.protect_last) or name more pruning.structures to reach more."
            )
