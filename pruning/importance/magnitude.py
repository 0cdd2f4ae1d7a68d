"""Magnitude: the l1 or l2 norm of everything that leaves with a unit.

LLM-Pruner's magnitude baselines are the same sums in the same order of units, but always the mean over the coupled matrices:
`aggregation=mean`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruning.importance.base import CoupledImportance, aggregate_matrices, check_finite

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruning.units import UnitGroup, UnitSlice


@dataclass
class Magnitude(CoupledImportance):
    """Score of a unit: (aggregate over its matrices of sum |w|^p)^(1/p); with `sum`, the norm of all its weights."""

    power: int = 2
    """p: 1 or 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.power not in (1, 2):
            raise ValueError(f"importance.power={self.power}: must be 1 or 2")

    def score(
        self, model: PreTrainedModel, groups: Mapping[str, UnitGroup], samples: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Score every unit by the norm of its coupled weights; see the base class for shapes."""
        from pruning.importance.reduction import power_sums

        self.check(groups)
        found: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}

        def channels(piece: UnitSlice) -> torch.Tensor:
            place = piece.parameter, piece.dims
            if place not in found:
                found[place] = power_sums(model.get_parameter(piece.parameter).detach(), piece.dims, self.power)
            return found[place]

        powers = aggregate_matrices(groups, channels, self.aggregation)
        scores = {name: values ** (1 / self.power) for name, values in powers.items()}
        check_finite(scores)
        return scores
