"""Budget and choice: a ratio and the units' scores become a plan.

The budget is solved in parameters, not hoped for. Coarse units (KV groups) are counted first; the finest kind (MLP
channels) then takes up what is left, so that the ratio reached is within half of the finest unit of the ratio asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruning.families import DecoderLayout
    from pruning.units import PruningPlan, UnitGroup, UnitKind


class RatioOf(Enum):
    """What `pruning.ratio` is a fraction of."""

    total = "total"
    blocks = "blocks"
    units = "units"


@dataclass
class PruningConfig:
    """What is cut, and how much of it."""

    ratio: float = 0.2
    """Fraction to remove, in [0, 1)."""

    ratio_of: RatioOf = RatioOf.total
    """total: all parameters of the model; blocks: those of the decoder layers; units: the units of each touched layer."""

    attention: bool = True
    """Whether KV groups (a KV head with its query heads) may be cut."""

    mlp: bool = True
    """Whether MLP channels may be cut."""

    protect_first: int = 4
    """First layers that are left whole."""

    protect_last: int = 2
    """Last layers that are left whole."""

    min_units: int = 1
    """Units that every group keeps at least."""

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"pruning.ratio={self.ratio}: must be in [0, 1)")
        if not (self.attention or self.mlp):
            raise ValueError("pruning.attention=false and pruning.mlp=false: at least one must be true")
        for name, low in (("protect_first", 0), ("protect_last", 0), ("min_units", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"pruning.{name}={getattr(self, name)}: must be at least {low}")


@dataclass(frozen=True)
class DenseSizes:
    """What the ratios of one run refer to: the sizes before its first event."""

    total: int
    blocks: int
    units: Mapping[str, int]
    """Units of each group that may be cut."""


class Allocator:
    """Makes the plans of one run. Remembers the dense sizes, so that the ratios of later events stay cumulative."""

    def __init__(self, config: PruningConfig, model: PreTrainedModel, layout: DecoderLayout) -> None:
        from pruning.families import block_parameters, find_units
        from pruning.model import count_parameters

        self.config = config
        groups = self.touched(find_units(model, layout))
        self.dense = DenseSizes(
            count_parameters(model),
            block_parameters(model, layout),
            {name: group.num_units for name, group in groups.items()},
        )
        self._check_reachable(groups)

    def touched(self, groups: Mapping[str, UnitGroup]) -> dict[str, UnitGroup]:
        """Return the groups that may be cut: the chosen kinds, outside the protected layers."""
        from pruning.units import UnitKind

        config = self.config
        kinds = {UnitKind.kv_group: config.attention, UnitKind.mlp_channel: config.mlp}
        layers = 1 + max(group.layer for group in groups.values())
        first, end = config.protect_first, layers - config.protect_last
        chosen = {name: g for name, g in groups.items() if kinds[g.kind] and first <= g.layer < end}
        if not chosen:
            raise ValueError(
                f"pruning.protect_first={first} and pruning.protect_last={config.protect_last} protect "
                f"all {layers} layers of this model: lower them"
            )
        return chosen

    def plan(
        self, model: PreTrainedModel, groups: Mapping[str, UnitGroup], scores: Mapping[str, torch.Tensor], ratio: float
    ) -> PruningPlan:
        """Return the plan that brings the model to the cumulative `ratio` by cutting the lowest scores.

        Args:
            model: the model as it is now.
            groups: its groups that may be cut.
            scores: (U,) for each group, higher is more important.
            ratio: cumulative fraction of the dense model, in the meaning of `ratio_of`.

        Raises:
            ValueError: no whole unit fits between the present ratio and this one.
        """
        from pruning.model import count_parameters
        from pruning.units import PruningPlan

        gone = self.dense.total - count_parameters(model)
        if self.config.ratio_of is RatioOf.units:
            counts = {
                name: max(0, round(ratio * self.dense.units[name]) - self.dense.units[name] + group.num_units)
                for name, group in groups.items()
            }
        else:
            counts = uniform_counts(groups, scores, self._removable(groups), ratio * self._base - gone)
        if not any(counts.values()):
            raise ValueError(
                f"pruning.ratio={self.config.ratio}: the step to {ratio:.4f} is smaller than one unit; "
                "use fewer schedule.events or a larger ratio"
            )
        kept = {name: lowest_removed(scores[name], count) for name, count in counts.items() if count}
        removed = sum(counts[name] * groups[name].params_per_unit for name in counts)
        if self.config.ratio_of is RatioOf.units:
            left = sum(groups[name].num_units - counts[name] for name in groups)
            reached = 1 - left / sum(self.dense.units.values())
        else:
            reached = (gone + removed) / self._base
        return PruningPlan(kept, ratio_asked=ratio, ratio_reached=reached)

    def ratios(self, model: PreTrainedModel, plan: PruningPlan) -> dict[str, float]:
        """Return the ratio asked and reached, and what is gone from the whole model and from its decoder layers."""
        from pruning.model import count_parameters

        gone = self.dense.total - count_parameters(model)
        return {
            "ratio_asked": plan.ratio_asked,
            "ratio_reached": plan.ratio_reached,
            "ratio_of_total": gone / self.dense.total,
            "ratio_of_blocks": gone / self.dense.blocks,
        }

    @property
    def _base(self) -> int:
        return self.dense.total if self.config.ratio_of is RatioOf.total else self.dense.blocks

    def _removable(self, groups: Mapping[str, UnitGroup]) -> dict[str, int]:
        return {name: max(0, group.num_units - self.config.min_units) for name, group in groups.items()}

    def _check_reachable(self, groups: Mapping[str, UnitGroup]) -> None:
        """Raise before any work when the ratio asked for cannot be had from whole units outside protected layers."""
        ratio, removable = self.config.ratio, self._removable(groups)
        if self.config.ratio_of is RatioOf.units:
            highest = min(removable[name] / size for name, size in self.dense.units.items())
            smallest = min(0.5 / size for size in self.dense.units.values())
        else:
            highest = sum(removable[name] * group.params_per_unit for name, group in groups.items()) / self._base
            smallest = 0.5 * min(group.params_per_unit for group in groups.values()) / self._base
        if ratio > highest or 0 < ratio < smallest:
            raise ValueError(
                f"pruning.ratio={ratio} (of {self.config.ratio_of.name}): cannot be reached here. With whole units, "
                f"pruning.min_units={self.config.min_units} and the protected layers, it must be 0 or in "
                f"[{smallest:.2g}, {math.floor(highest * 1e4) / 1e4}]. Protect fewer layers "
                "(pruning.protect_first, pruning.protect_last) to reach more."
            )


def uniform_counts(
    groups: Mapping[str, UnitGroup],
    scores: Mapping[str, torch.Tensor],
    removable: Mapping[str, int],
    parameters: float,
) -> dict[str, int]:
    """Return how many units leave each group so that all groups lose the same fraction and `parameters` leave in all.

    The kinds are served from the coarsest to the finest; each takes its share of what is left to remove, rounded to
    whole units, so that only the rounding of the finest kind remains.
    """
    kinds = sorted({g.kind for g in groups.values()}, key=lambda kind: -_unit_size(groups, kind))
    counts: dict[str, int] = {}
    left = parameters
    for position, kind in enumerate(kinds):
        own = {name: group for name, group in groups.items() if group.kind is kind}
        capacity = {k: sum(removable[n] * g.params_per_unit for n, g in groups.items() if g.kind is k) for k in kinds}
        share = left * capacity[kind] / max(1, sum(capacity[k] for k in kinds[position:]))
        units = min(max(0, round(share / _unit_size(groups, kind))), sum(removable[name] for name in own))
        spread = spread_units(units, own, scores, removable)
        counts |= spread
        left -= sum(count * own[name].params_per_unit for name, count in spread.items())
    return counts


def spread_units(
    units: int, groups: Mapping[str, UnitGroup], scores: Mapping[str, torch.Tensor], removable: Mapping[str, int]
) -> dict[str, int]:
    """Spread `units` over groups of one kind in proportion to what each can lose (largest remainder).

    Equal remainders go where the next unit matters least, measured against the mean score of its own group.
    """
    total = sum(removable[name] for name in groups)
    if total == 0:
        return dict.fromkeys(groups, 0)
    counts = {name: units * removable[name] // total for name in groups}

    def cost(name: str) -> tuple[int, float, int]:
        ordered = scores[name].sort().values
        following = ordered[min(counts[name], len(ordered) - 1)] / ordered.abs().mean().clamp_min(1e-30)
        return -(units * removable[name] % total), float(following), groups[name].layer

    open_groups = sorted((name for name in groups if counts[name] < removable[name]), key=cost)
    for name in open_groups[: units - sum(counts.values())]:
        counts[name] += 1
    return counts


def lowest_removed(scores: torch.Tensor, count: int) -> tuple[int, ...]:
    """Return the units that stay when the `count` lowest of `scores` (U,) leave; equal scores leave in order of index."""
    return tuple(sorted(scores.sort(stable=True).indices[count:].tolist()))


def _unit_size(groups: Mapping[str, UnitGroup], kind: UnitKind) -> int:
    return max(group.params_per_unit for group in groups.values() if group.kind is kind)
