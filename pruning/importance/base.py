"""The contract of an importance estimator, and the step all of them share: channels of matrices become scores of units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruning.units import UnitGroup, UnitSlice


class Needs(Enum):
    """What an estimator looks at; calibration text is made only for those that need more than weights."""

    weights = "weights"
    gradients = "gradients"
    activations = "activations"


@dataclass
class ImportanceEstimator:
    """Base of the `importance` options. A subclass's fields are its hyper-parameters."""

    needs: ClassVar[Needs] = Needs.weights

    def score(
        self, model: PreTrainedModel, groups: Mapping[str, UnitGroup], samples: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Score every unit of every group. The model is bit-identical afterwards.

        Args:
            model: in evaluation mode.
            groups: what to score.
            samples: calibration token ids, (N, T); None for an estimator that needs only weights.

        Returns:
            Group name -> (U,) float32 on the CPU, finite, higher is more important.
        """
        raise NotImplementedError


def sum_over_slices(
    groups: Mapping[str, UnitGroup], channel_scores: Callable[[UnitSlice], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Add up, for every unit, the scores of all the channels that leave with it.

    Args:
        groups: what to score.
        channel_scores: for a slice, the score of each position along the slice's dimension, (positions,).

    Returns:
        Group name -> (U,) float32 on the CPU.
    """
    import torch

    return {
        name: torch.stack([_per_unit(piece, channel_scores) for piece in group.slices]).sum(dim=0)
        for name, group in groups.items()
    }


def check_finite(scores: Mapping[str, torch.Tensor]) -> None:
    """Raise when a score is NaN or infinite, naming the first such unit."""
    for name, values in scores.items():
        bad = (~values.isfinite()).nonzero().flatten()
        if len(bad):
            raise ValueError(f"the score of unit {int(bad[0])} of {name} is {float(values[bad[0]])}: cannot rank it")


def _per_unit(piece: UnitSlice, channel_scores: Callable[[UnitSlice], torch.Tensor]) -> torch.Tensor:
    channels = channel_scores(piece).float().cpu()
    return channels[piece.indices].sum(dim=1)
