"""Which units leave, once it is known how many of each group."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pruning.config import Direction
from pruning.kinds import ATTENTION_KINDS, UnitKind
from pruning.units import PruningPlan, UnitGroup, removed_units


def directed(
    groups: Mapping[str, UnitGroup], scores: Mapping[str, torch.Tensor], direction: Direction, seed: int
) -> dict[str, torch.Tensor]:
    """Return scores (U,) whose lowest are the units that leave first. Random ones are drawn per parameter of the unit."""
    if direction is Direction.smallest:
        return dict(scores)
    if direction is Direction.largest:
        return {name: -values for name, values in scores.items()}
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(len(values), generator=generator) * groups[name].params_per_unit
        for name, values in scores.items()
    }


def removed_counts(groups: Mapping[str, UnitGroup], plan: PruningPlan) -> dict[str, int]:
    """Return how many units of each group leave under a plan: of every run, but for runs that leave with their owner."""
    counts = {}
    for name, units in removed_units(plan, groups).items():
        group = groups[name]
        runs = plan.kept.get(group.parts_of or "", range(group.parts))
        run = next(iter(runs), 0)
        counts[name] = sum(unit // group.run_length == run for unit in units)
    return counts


def chosen_first(
    groups: Mapping[str, UnitGroup], scores: Mapping[str, torch.Tensor], chosen: PruningPlan
) -> dict[str, torch.Tensor]:
    """Return scores (U,) of which those of the units that a plan has chosen to leave are the lowest of their group."""
    found = dict(scores)
    for name, units in removed_units(chosen, groups).items():
        below = torch.nextafter(scores[name].min(), torch.tensor(-torch.inf).to(scores[name]))
        found[name] = scores[name].index_fill(0, torch.tensor(units), float(below))
    return found


def choose_units(
    groups: Mapping[str, UnitGroup], scores: Mapping[str, torch.Tensor], counts: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Return the units that stay in every group that loses some: in each run, all but the lowest scores.

    Runs that leave with the unit that owns them are left as they are, and so are groups in layers that leave.
    """
    kept: dict[str, tuple[int, ...]] = {}
    depth = {
        (groups[name].kind, groups[name].layer)
        for name, count in counts.items()
        if count and groups[name].kind.is_depth
    }
    for name, group in sorted(groups.items(), key=lambda item: item[1].parts):  # owners of runs come first
        if not counts.get(name) or _leaves_with_layer(group, depth):
            continue
        runs = kept.get(group.parts_of or "", range(group.parts))
        length = group.run_length
        stays: list[int] = []
        for run in range(group.parts):
            own = scores[name][run * length : (run + 1) * length]
            chosen = lowest_removed(own, counts[name] if run in runs else 0)
            stays += [run * length + unit for unit in chosen]
        kept[name] = tuple(stays)
    return kept


def lowest_removed(scores: torch.Tensor, count: int) -> tuple[int, ...]:
    """Return the units that stay when the `count` lowest of `scores` (U,) leave; equal scores leave in order of index."""
    return tuple(sorted(scores.sort(stable=True).indices[count:].tolist()))


def _leaves_with_layer(group: UnitGroup, depth: set[tuple[UnitKind, int | None]]) -> bool:
    """Say whether a group lies in a layer or sublayer that leaves as a whole."""
    if (UnitKind.layer, group.layer) in depth:
        return group.kind is not UnitKind.layer
    part = UnitKind.attention_layer if group.kind in ATTENTION_KINDS else UnitKind.mlp_layer
    return group.layer is not None and (part, group.layer) in depth and not group.kind.is_depth
