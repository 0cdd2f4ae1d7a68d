"""What can be cut: groups of units, and the plan that says which units of each group stay.

A unit is the smallest structure that can leave without changing what the rest computes: one KV head with the query heads
that read it, one MLP channel. Its slices are every row and column, in whichever parameter, that must leave together.
Letters: U units of a group, C channels of one unit in one slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import torch


class UnitKind(Enum):
    """Kinds of units."""

    kv_group = "kv_group"
    mlp_channel = "mlp_channel"


@dataclass(frozen=True)
class UnitSlice:
    """Where the units of a group lie in one parameter."""

    parameter: str
    """Qualified name, e.g. `model.layers.3.mlp.down_proj.weight`."""

    dim: int
    """Dimension of the parameter that shrinks: 0 rows (outputs), 1 columns (inputs)."""

    indices: torch.Tensor
    """(U, C) int64: the positions along `dim` that belong to each unit."""

    parameters_per_unit: int
    """Numbers of this parameter that one unit takes with it."""


@dataclass(frozen=True)
class UnitGroup:
    """Interchangeable units of one kind in one layer, e.g. the MLP channels of layer 3."""

    name: str
    kind: UnitKind
    layer: int
    slices: tuple[UnitSlice, ...]

    @property
    def num_units(self) -> int:
        """Number of units, U."""
        return self.slices[0].indices.shape[0]

    @property
    def params_per_unit(self) -> int:
        """Parameters that leave with one unit."""
        return sum(piece.parameters_per_unit for piece in self.slices)


@dataclass(frozen=True)
class PruningPlan:
    """Which units stay. Made by allocation, carried out by surgery."""

    kept: Mapping[str, tuple[int, ...]]
    """Group name -> sorted indices of the units that stay; a group that is not named stays whole."""

    ratio_asked: float
    """Fraction of the dense model that should be gone after this plan, in [0, 1)."""

    ratio_reached: float
    """The nearest that whole units allow."""


def removed_units(plan: PruningPlan, groups: Mapping[str, UnitGroup]) -> dict[str, list[int]]:
    """Return the units that leave, by group; groups that stay whole are left out.

    Raises:
        ValueError: the plan does not fit these groups: an unknown group, a unit that is not there, an empty group.
    """
    removed = {}
    for name, kept in plan.kept.items():
        if name not in groups:
            raise ValueError(f"the plan names the group {name!r}, which this model does not have")
        size = groups[name].num_units
        if not kept:
            raise ValueError(f"the plan leaves no unit of {name}: at least one must stay")
        if list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= size:
            raise ValueError(f"the plan for {name} must keep distinct, sorted units in [0, {size}), but has {kept}")
        if len(kept) < size:
            removed[name] = sorted(set(range(size)) - set(kept))
    return removed
