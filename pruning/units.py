"""What can be cut: groups of units, and the plan that says which units of each group stay.

A unit is the smallest structure that can leave without changing what the rest computes: a KV head with the query heads
that read it, an MLP channel, a whole layer. Its slices are every row and column, in whichever parameter, that must leave
together. Letters: U units of a group, C positions of one unit in one slice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pruning.kinds import UnitKind

__all__ = [
    "Places",
    "PruningPlan",
    "UnitGroup",
    "UnitKind",
    "UnitSlice",
    "from_positions",
    "positions",
    "removed_places",
    "removed_units",
]


Places = dict[tuple[int, ...], torch.Tensor]
"""Dimensions of a parameter -> the sorted positions, counted through them, that leave."""


@dataclass(frozen=True)
class UnitSlice:
    """Where the units of a group lie in one parameter."""

    parameter: str
    """Qualified name, e.g. `model.layers.3.mlp.down_proj.weight`."""

    dims: tuple[int, ...]
    """Dimensions of the parameter that are counted through, the first slowest; the last one shrinks."""

    indices: torch.Tensor
    """(U, C) int64: the positions, counted through `dims`, that belong to each unit."""

    parameters_per_unit: int
    """Numbers of this parameter that one unit takes with it."""


@dataclass(frozen=True)
class UnitGroup:
    """Interchangeable units of one kind, e.g. the MLP channels of layer 3."""

    name: str
    kind: UnitKind
    layer: int | None
    """Index of the decoder layer; None for the hidden width, which all layers share."""

    slices: tuple[UnitSlice, ...]
    """Where activations enter first, where they leave last."""

    readers: tuple[str, ...] = ()
    """Linear maps: for widths, the one whose inputs are the units' activations; for depth, those whose outputs they are.

    Empty where no single linear map reads the units: the hidden width, and experts, which are not linear modules.
    """

    parts: int = 1
    """The units lie in so many equal consecutive runs, and every run must lose the same number."""

    parts_of: str | None = None
    """Name of the group whose units own the runs; runs of units that leave do not count."""

    min_units: int = 1
    """Units that must stay for the model to run at all: experts that a token is sent to."""

    @property
    def num_units(self) -> int:
        """Number of units, U."""
        return self.slices[0].indices.shape[0]

    @property
    def run_length(self) -> int:
        """Units in each of the `parts`."""
        return self.num_units // self.parts

    @property
    def params_per_unit(self) -> int:
        """Parameters that leave with one unit, when nothing else leaves."""
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


def positions(values: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    """Return a parameter with `dims` counted through in front: (positions, everything else)."""
    front = values.movedim(tuple(dims), tuple(range(len(dims))))
    return front.flatten(0, len(dims) - 1).flatten(1) if values.ndim > len(dims) else front.flatten()[:, None]


def from_positions(flat: torch.Tensor, shape: Sequence[int], dims: Sequence[int]) -> torch.Tensor:
    """Return the parameter of the given shape whose `positions` are `flat`."""
    rest = [size for dim, size in enumerate(shape) if dim not in dims]
    return flat.reshape([shape[dim] for dim in dims] + rest).movedim(tuple(range(len(dims))), tuple(dims))


def removed_units(plan: PruningPlan, groups: Mapping[str, UnitGroup]) -> dict[str, list[int]]:
    """Return the units that leave, by group; groups that stay whole are left out.

    Raises:
        ValueError: the plan does not fit these groups: an unknown group, a unit that is not there, an empty group, or
            runs that would lose unequal numbers.
    """
    removed = {}
    for name, kept in plan.kept.items():
        if name not in groups:
            raise ValueError(f"the plan names the group {name!r}, which this model does not have")
        group, size = groups[name], groups[name].num_units
        if len(kept) < group.min_units and not group.kind.is_depth:
            raise ValueError(f"the plan leaves {len(kept)} units of {name}: at least {group.min_units} must stay")
        if list(kept) != sorted(set(kept)) or (kept and (kept[0] < 0 or kept[-1] >= size)):
            raise ValueError(f"the plan for {name} must keep distinct, sorted units in [0, {size}), but has {kept}")
        if len(kept) < size:
            removed[name] = sorted(set(range(size)) - set(kept))
    for name in removed:
        if not groups[name].kind.is_depth:
            _check_runs(groups[name], plan)
    return removed


def _check_runs(group: UnitGroup, plan: PruningPlan) -> None:
    """Raise when the runs of a group would keep unequal numbers: grouped attention would be rewired without an error."""
    length = group.num_units // group.parts
    runs = range(group.parts)
    if group.parts_of is not None:
        runs = plan.kept.get(group.parts_of, runs)  # type: ignore[assignment]
    counts = {run: sum(run * length <= unit < (run + 1) * length for unit in plan.kept[group.name]) for run in runs}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise ValueError(
            f"the plan for {group.name} keeps {list(counts.values())} units of its runs {list(counts)} "
            f"({length} units each): every run must keep the same number, at least one"
        )


def removed_places(groups: Mapping[str, UnitGroup], removed: Mapping[str, Sequence[int]]) -> dict[str, Places]:
    """Return, for every parameter, the positions that the given units occupy; depth, which leaves whole, left out."""
    found: dict[str, dict[tuple[int, ...], list[torch.Tensor]]] = defaultdict(lambda: defaultdict(list))
    for name, units in removed.items():
        if not groups[name].kind.is_depth:
            for piece in groups[name].slices:
                found[piece.parameter][piece.dims].append(piece.indices[torch.tensor(units)].flatten())
    return {
        name: {dims: torch.cat(parts).unique() for dims, parts in by_dims.items()} for name, by_dims in found.items()
    }
