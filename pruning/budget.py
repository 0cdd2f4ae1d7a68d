"""How much leaves when so many units of each group leave, and how far a line of steps must be followed for that.

Counts are by group name. A group whose units lie in runs (query heads in KV groups, channels in experts) is counted in
units of every run that stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from pruning.costs import Cost
from pruning.steps import Step
from pruning.units import UnitGroup, UnitSlice


@dataclass(frozen=True)
class _Shrinking:
    """One slice seen from its parameter: what a unit of the group takes off one of its dimensions."""

    group: UnitGroup
    dim: int
    per_unit: int
    in_runs: bool
    """Whether every run that stays takes as much again (query heads); experts are a dimension of their own."""


class Budget:
    """Counts what a model under pruning costs, in parameters or in multiply-accumulates."""

    def __init__(self, model: nn.Module, groups: Mapping[str, UnitGroup], costs: Mapping[str, Cost]) -> None:
        """Take the shapes of all parameters that the groups touch and that cost something."""
        self._depth: dict[str, set[str]] = defaultdict(set)
        self._shrinking: dict[str, list[_Shrinking]] = defaultdict(list)
        for group in groups.values():
            for piece in group.slices:
                if piece.parameter in costs:
                    self._add(group, piece)
        names = sorted({*self._depth, *self._shrinking})
        self._shapes = {name: tuple(model.get_parameter(name).shape) for name in names}
        self._costs = {name: costs[name] for name in names}
        self._total = sum(self._costs[name](shape) for name, shape in self._shapes.items())

    def removed(self, counts: Mapping[str, int]) -> int:
        """Return what is saved when so many units of each group leave."""
        gone = {group for group, count in counts.items() if count}
        left = 0
        for name, shape in self._shapes.items():
            if self._depth[name] & gone:
                continue
            sizes = list(shape)
            for part in self._shrinking[name]:
                count = counts.get(part.group.name, 0)
                runs = 1
                if part.in_runs:
                    runs = part.group.parts - counts.get(part.group.parts_of or "", 0)
                sizes[part.dim] -= count * part.per_unit * runs
            left += self._costs[name](sizes)
        return self._total - left

    def _add(self, group: UnitGroup, piece: UnitSlice) -> None:
        if group.kind.is_depth:
            self._depth[piece.parameter].add(group.name)
            return
        in_runs = group.parts > 1 and len(piece.dims) == 1
        self._shrinking[piece.parameter].append(_Shrinking(group, piece.dims[-1], piece.indices.shape[1], in_runs))


@dataclass(frozen=True)
class Removal:
    """What one event may remove."""

    fixed: Mapping[str, int]
    """Units that leave anyway: those of groups whose ratio is given, and those that earlier rounds chose."""

    line: Sequence[Step]
    """The steps of the others, in the order in which they leave."""

    budget: Budget
    """Counts what leaves."""

    def counts(self, target: float) -> dict[str, int]:
        """Return the counts with which what leaves in all is as near to `target` as whole units allow."""
        return {**self.fixed, **follow(self.line, self.budget, self.fixed, target)}

    @property
    def most(self) -> dict[str, int]:
        """Counts when all leaves that may."""
        return {**self.fixed, **{step.group: step.after for step in self.line}}

    @property
    def finest(self) -> int:
        """What the smallest step saves."""
        return min((step.cost for step in self.line), default=0)


def follow(line: Sequence[Step], budget: Budget, fixed: Mapping[str, int], target: float) -> dict[str, int]:
    """Follow the line of steps as far as `target`; finer steps behind take up what a coarse one leaves.

    Args:
        line: steps in the order in which they are to be taken.
        budget: counts what leaves.
        fixed: units that leave anyway, by group.
        target: what is to leave in all, in the budget's measure.

    Returns:
        Group name -> units (of every run) that leave, so that what leaves is as near to `target` as the steps allow.
    """

    def miss(counts: Mapping[str, int]) -> float:
        return abs(budget.removed({**fixed, **counts}) - target)

    low, high = 0, len(line)
    while low < high:
        middle = (low + high + 1) // 2
        counts = {step.group: step.after for step in line[:middle]}
        within = budget.removed({**fixed, **counts}) <= target
        low, high = (middle, high) if within else (low, middle - 1)
    best = _fill(line[low:], budget, fixed, {step.group: step.after for step in line[:low]}, target)
    if low == len(line):
        return best
    blocked = line[low]  # take it nevertheless, and fewer of the other kinds
    coarse = {step.group: step.after for step in line[: low + 1] if step.kind is blocked.kind}
    others = [step for step in line if step.kind is not blocked.kind]
    finest = min(step.cost for step in line)
    if miss(best) > finest / 2 and others:
        best = min(best, coarse | follow(others, budget, {**fixed, **coarse}, target), key=miss)
    return best


def _fill(
    line: Sequence[Step], budget: Budget, fixed: Mapping[str, int], counts: dict[str, int], target: float
) -> dict[str, int]:
    """Take every step that still fits, and one that does not when that comes nearer to the target."""
    removed = budget.removed({**fixed, **counts})
    over: tuple[float, dict[str, int]] = (float("inf"), counts)
    for step in line:
        if counts.get(step.group, fixed.get(step.group, 0)) != step.before or step.cost >= 2 * (target - removed) + 1:
            continue
        tried = counts | {step.group: step.after}
        after = budget.removed({**fixed, **tried})
        if after <= target:
            counts, removed = tried, after
        else:
            over = min(over, (after - target, tried), key=lambda entry: entry[0])
    return over[1] if over[0] < target - removed else counts
