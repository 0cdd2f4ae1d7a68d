"""The order in which units leave: every group gives its units up in steps, and an allocation puts all steps in one line.

How far the line is followed is the budget's matter (budget.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pruning.config import Allocation
from pruning.kinds import UnitKind
from pruning.scope import Scope
from pruning.units import UnitGroup


@dataclass(frozen=True)
class Step:
    """The next units that a group gives up."""

    group: str
    kind: UnitKind
    before: int
    """Units of every run that are gone before the step."""

    after: int
    """Units of every run that are gone after it."""

    score: float
    """Sum of the scores of the units that leave in this step."""

    cost: int
    """What the step saves while nothing else has left: parameters, or multiply-accumulates."""


def removal_line(
    scope: Scope, groups: Mapping[str, UnitGroup], prices: Mapping[str, torch.Tensor], unit_costs: Mapping[str, int]
) -> list[Step]:
    """Return the steps of all groups in the order in which they leave; one decoder layer always stays.

    Args:
        scope: says how many units may leave, and how the budget is shared out.
        groups: the groups.
        prices: (U,) for each group, what losing its units costs; only their order within a run matters.
        unit_costs: for each group, what one unit of every run saves.
    """
    steps = {
        name: group_steps(group, prices[name], scope.removable(group), scope.multiple(group), unit_costs[name])
        for name, group in groups.items()
    }
    if scope.config.allocation is Allocation.uniform:
        gone = {name: scope.gone(group) for name, group in groups.items()}
        room = {name: gone[name] + scope.removable(group) for name, group in groups.items()}
        line = uniform_order(steps, prices, room, gone)
    else:
        line = global_order(steps)
    whole = [step for step in line if step.kind is UnitKind.layer]
    if len(whole) == len(scope.present):
        line.remove(whole[-1])
    return line


def group_steps(group: UnitGroup, scores: torch.Tensor, most: int, multiple: int, unit_cost: int) -> list[Step]:
    """Return the steps of one group, in the order in which it gives its units up.

    Args:
        group: the group.
        scores: (U,); the lowest leave first, in every run.
        most: units of every run that may leave at most.
        multiple: what is left is a multiple of it.
        unit_cost: what one unit of every run saves.
    """
    stops = [count for count in range(1, most + 1) if (group.run_length - count) % multiple == 0]
    ordered = scores.double().view(group.parts, -1).sort(dim=1).values.sum(dim=0).cumsum(dim=0)
    running = [0.0, *ordered.tolist()]
    return [
        Step(
            group=group.name,
            kind=group.kind,
            before=before,
            after=after,
            score=running[after] - running[before],
            cost=(after - before) * unit_cost,
        )
        for before, after in zip([0, *stops], stops, strict=False)
    ]


def uniform_order(
    steps: Mapping[str, list[Step]],
    scores: Mapping[str, torch.Tensor],
    room: Mapping[str, int],
    gone: Mapping[str, int],
) -> list[Step]:
    """Put the steps in an order in which all groups, and all kinds, lose the same fraction of the units they can lose.

    Equal fractions go where the step matters least, measured against the mean score of its own group; depth, whose groups
    are one unit each, goes by score.

    Args:
        steps: the steps of every group.
        scores: (U,) of every group.
        room: units of every run that may leave in all.
        gone: units of every run that left in earlier events.
    """
    by_kind: dict[UnitKind, list[tuple[float, float, Step]]] = defaultdict(list)
    sizes: dict[UnitKind, int] = defaultdict(int)
    passed: dict[UnitKind, float] = defaultdict(float)
    for name, own in steps.items():
        mean = 1.0 if not own or own[0].kind.is_depth else max(float(scores[name].abs().mean()), 1e-30)
        for step in own:
            lost = gone[name] + (step.before + step.after) / 2
            by_kind[step.kind].append((lost / room[name], step.score / (step.after - step.before) / mean, step))
        if own:
            sizes[own[0].kind] += room[name]
            passed[own[0].kind] += gone[name]
    line: list[tuple[float, int, Step]] = []
    for kind, entries in by_kind.items():
        for place, (_, _, step) in enumerate(sorted(entries, key=lambda entry: entry[:2])):
            width = step.after - step.before
            line.append(((passed[kind] + width / 2) / sizes[kind], place, step))
            passed[kind] += width
    return [step for _, _, step in sorted(line, key=lambda entry: entry[:2])]


def global_order(steps: Mapping[str, list[Step]]) -> list[Step]:
    """Put the steps of all groups and kinds in one order by score per cost; a group's own order is kept.

    Invariant under a rescaling of all scores. Scores of different kinds must be comparable: see `importance.normalization`.
    """
    line: list[tuple[float, int, Step]] = []
    for own in steps.values():
        density = -float("inf")
        for step in own:
            density = max(density, step.score / step.cost)
            line.append((density, len(line), step))
    return [step for _, _, step in sorted(line, key=lambda entry: entry[:2])]
