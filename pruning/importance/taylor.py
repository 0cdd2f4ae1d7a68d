"""Taylor importance: how much the loss would change without a unit, from gradients on a few samples.

Source: LLM-Pruner (Ma, Fang, Wang, NeurIPS 2023), section 3.2 and its code. With weight w, gradient g of the mean
next-token loss over all N samples, and g_j its gradient on sample j alone:

    vector   per channel  | sum over the channel of w g |
    first    per weight   | w g |
    second   per weight   w^2 F,  F = (1/N) sum_j g_j^2      (empirical Fisher in place of the Hessian's diagonal)
    mixed    per weight   | w g - w^2 F / 2 |

summed over all coupled weights of the unit. The 1/N in F is the code's; the paper's equation 5 has none. Gradients are
folded into float32 sums as backward produces them and freed at once; embeddings and norms get none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from pruning.importance.base import ImportanceEstimator, Needs, check_finite, sum_over_slices
from pruning.importance.magnitude import sum_other_dims

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruning.units import UnitGroup, UnitSlice


class TaylorOrder(Enum):
    """Terms of the expansion that are kept."""

    vector = "vector"
    first = "first"
    second = "second"
    mixed = "mixed"


@dataclass
class Taylor(ImportanceEstimator):
    """Estimated change of the loss when a unit leaves."""

    needs: ClassVar[Needs] = Needs.gradients

    order: TaylorOrder = TaylorOrder.first
    """vector, first, second or mixed."""

    batch_size: int = 8
    """Samples in one backward pass, where the order allows more than one (vector, first). Does not change the scores."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"importance.batch_size={self.batch_size}: must be at least 1")

    def score(
        self, model: PreTrainedModel, groups: Mapping[str, UnitGroup], samples: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Score every unit on `samples` (N, T); see the base class for shapes."""
        from pruning.importance.gradients import gradient_moments

        assert samples is not None
        names = {piece.parameter for group in groups.values() for piece in group.slices}
        per_sample = self.order in (TaylorOrder.second, TaylorOrder.mixed)
        moments = gradient_moments(
            model,
            names,
            samples,
            batch_size=1 if per_sample else self.batch_size,
            mean=self.order is not TaylorOrder.second,
            mean_square=per_sample,
        )

        def channel_scores(piece: UnitSlice) -> torch.Tensor:
            weight = model.get_parameter(piece.parameter).detach().float()
            mean, mean_square = moments[piece.parameter]
            if self.order is TaylorOrder.vector:
                return sum_other_dims(weight * mean, piece.dim).abs()
            if self.order is TaylorOrder.first:
                salience = (weight * mean).abs()
            elif self.order is TaylorOrder.second:
                salience = weight**2 * mean_square
            else:
                salience = (weight * mean - weight**2 * mean_square / 2).abs()
            return sum_other_dims(salience, piece.dim)

        scores = sum_over_slices(groups, channel_scores)
        check_finite(scores)
        return scores
