"""Normalisation: what makes the scores of different layers and kinds comparable, for one ranking of all units."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pruning.importance.base import Normalization
from pruning.units import UnitGroup


def normalizers(
    normalization: Normalization, groups: Mapping[str, UnitGroup], scores: Mapping[str, torch.Tensor]
) -> dict[str, tuple[float, float]]:
    """Return, for each group, what is subtracted from its scores and what they are then divided by.

    Normalised scores stay sums: they grow with the parameters that leave with a unit, so that a ranking by score per
    parameter compares a unit with those of its own group, whatever its size. A group whose mean (or spread) is zero is
    divided by its parameters only. Z-scores are shifted so that the lowest of all groups is 0.

    Args:
        normalization: which.
        groups: the groups.
        scores: (U,) for each group.
    """
    if normalization is Normalization.none:
        return dict.fromkeys(groups, (0.0, 1.0))
    pooled = {name: _alike(name, groups, scores) for name in groups}
    parameters = {name: group.params_per_unit for name, group in groups.items()}
    means = {name: float(values.mean()) for name, values in pooled.items()}
    if normalization is Normalization.layer:
        return {name: (0.0, (means[name] or 1.0) / parameters[name]) for name in groups}
    spreads = {name: float(values.std(correction=0)) or 1.0 for name, values in pooled.items()}
    lowest = min(float(scores[name].min() - means[name]) / spreads[name] for name in groups)
    return {name: (means[name] + lowest * spreads[name], spreads[name] / parameters[name]) for name in groups}


def _alike(name: str, groups: Mapping[str, UnitGroup], scores: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the scores a group's are compared with: its own, or for depth, of one unit a group, those of its kind."""
    kind = groups[name].kind
    names = [other for other, group in groups.items() if group.kind is kind] if kind.is_depth else [name]
    return torch.cat([scores[other] for other in names]).double()
