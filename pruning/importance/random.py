"""Random scores: the control that every other estimator has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruning.importance.base import ImportanceEstimator

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruning.units import UnitGroup


@dataclass
class RandomImportance(ImportanceEstimator):
    """Uniform noise, the same for the same seed."""

    seed: int = 0

    def score(
        self, model: PreTrainedModel, groups: Mapping[str, UnitGroup], samples: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Draw a score in [0, 1) for every unit; see the base class for shapes."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        return {name: torch.rand(group.num_units, generator=generator) for name, group in groups.items()}
