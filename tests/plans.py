"""Plans for tests: half of the units of chosen kinds, drawn at random, in every second layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pruning.units import PruningPlan, UnitGroup, UnitKind

K = UnitKind
STRUCTURES = {
    **{kind.name: (kind,) for kind in UnitKind},
    "block": (K.kv_group, K.mlp_channel),
    "heads": (K.kv_group, K.query_head, K.mlp_channel),
    "width": (K.kv_group, K.mlp_channel, K.hidden),
    "mixture": (K.expert, K.mlp_channel),
    "depth_and_width": (K.mlp_channel, K.attention_layer, K.hidden),
}
"""Every kind alone, and combinations that overlap."""


def half_of(groups: Mapping[str, UnitGroup], kinds: tuple[UnitKind, ...], seed: int = 0) -> PruningPlan:
    """Return a plan that halves the groups of the given kinds in the odd layers, and drops depth in layer 1."""
    generator = torch.Generator().manual_seed(seed)
    kept: dict[str, tuple[int, ...]] = {}
    for name, group in groups.items():
        if group.kind not in kinds or (group.layer is not None and group.layer % 2 == 0):
            continue
        if group.kind.is_depth:
            if group.layer == 1:
                kept[name] = ()
            continue
        stay = max(group.min_units, group.run_length // 2)
        runs = [
            run * group.run_length + torch.randperm(group.run_length, generator=generator)[:stay]
            for run in range(group.parts)
        ]
        kept[name] = tuple(sorted(torch.cat(runs).tolist()))
    return PruningPlan(kept, 0.0, 0.0)


def removes_something(groups: Mapping[str, UnitGroup], plan: PruningPlan) -> bool:
    return any(len(kept) < groups[name].num_units for name, kept in plan.kept.items())
