"""Magnitude: the l1 or l2 norm of everything that leaves with a unit (LLM-Pruner's baselines, without its bias to means)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruning.importance.base import ImportanceEstimator, check_finite, sum_over_slices

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruning.units import UnitGroup


@dataclass
class Magnitude(ImportanceEstimator):
    """Score of a unit: (sum of |w|^p over all its coupled weights w)^(1/p)."""

    power: int = 2
    """p: 1 or 2."""

    def __post_init__(self) -> None:
        if self.power not in (1, 2):
            raise ValueError(f"importance.power={self.power}: must be 1 or 2")

    def score(
        self, model: PreTrainedModel, groups: Mapping[str, UnitGroup], samples: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Score every unit by the norm of its coupled weights; see the base class for shapes."""
        powers = sum_over_slices(
            groups,
            lambda piece: sum_other_dims(
                model.get_parameter(piece.parameter).detach().float().abs() ** self.power, piece.dim
            ),
        )
        scores = {name: values ** (1 / self.power) for name, values in powers.items()}
        check_finite(scores)
        return scores


def sum_other_dims(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the sum of a matrix or vector over every dimension but `dim`."""
    return values.movedim(dim, 0).flatten(1).sum(dim=1) if values.ndim > 1 else values
