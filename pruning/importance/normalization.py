"""Normalisation: what makes the scores of different layers and kinds comparable, for one ranking of all units."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pruning.importance.base import Normalization
from pruning.units import UnitGroup


def normalizers(
    normalization: Normalization,
    groups: Mapping[str, UnitGroup],
    scores: Mapping[str, torch.Tensor],
    power: float = 1.0,
) -> dict[str, tuple[float, float]]:
    """Return, for each group, what is subtracted from its scores and what they are then divided by.

    Normalised scores stay sums: they grow with the parameters that leave with a unit, so that a ranking by score per
    parameter compares a unit with those of its own group, whatever its size. A group whose middle (or spread) is zero is
    divided by its parameters only. Z-scores are shifted so that the lowest of all groups is 0.

    The middle is the median: a single unit can hold most of a layer's sum (in SmolLM2 a channel of layer 9 does), and the
    mean would then say nothing of the units that may leave.

    Args:
        normalization: which.
        groups: the groups.
        scores: (U,) for each group.
        power: of what `layer` divides a unit's score per parameter by: 1 for all of it, 0 for nothing.
    """
    if normalization is Normalization.none:
        return dict.fromkeys(groups, (0.0, 1.0))
    pooled = {name: _alike(name, groups, scores) for name in groups}
    parameters = {name: group.params_per_unit for name, group in groups.items()}
    if normalization is Normalization.layer:
        return {name: (0.0, (_middle(pooled[name]) / parameters[name]) ** power) for name in groups}
    means = {name: float(values.mean()) for name, values in pooled.items()}
    spreads = {name: float(values.std(correction=0)) or 1.0 for name, values in pooled.items()}
    lowest = min(float(scores[name].min() - means[name]) / spreads[name] for name in groups)
    return {name: (means[name] + lowest * spreads[name], spreads[name] / parameters[name]) for name in groups}


def _alike(name: str, groups: Mapping[str, UnitGroup], scores: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the scores a group's are compared with: its own, or for depth, of one unit a group, those of its kind."""
    kind = groups[name].kind
    names = [other for other, group in groups.items() if group.kind is kind] if kind.is_depth else [name]
    return torch.cat([scores[other] for other in names]).double()


def _middle(scores: torch.Tensor) -> float:
    """Return the median, or the mean where most scores are zero; 1 where all are."""
    return float(scores.median()) or float(scores.mean()) or 1.0
