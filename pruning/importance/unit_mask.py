"""Unit masks: the derivative of the loss by a mask m = 1 on each unit, from activations a and their gradients g.

Sources: Michel, Levy, Neubig (NeurIPS 2019) and Molchanov et al. (ICLR 2017) for the first order; Kwon et al. (NeurIPS
2022) for the Fisher information of masks. The mask of a width unit multiplies its activations where their reader takes
them in; the mask of a whole attention, MLP or layer multiplies what its last linear maps put out. By the chain rule the
derivative of the loss of sample j by the mask is a sum over tokens t and the unit's channels c:

    s_jt = sum_c a_jtc g_jtc,  g = derivative of the mean next-token loss of sample j

The loss is taken on the text's own next tokens, or on tokens that the model draws from its predictions. With these the mean
square is the Fisher information itself, the curvature of the change in the model's predictions; with the text's it is the
"empirical" one, which does not approximate that (Kunstner, Balles, Hennig, NeurIPS 2019).

    first              | mean_j sum_t s_jt |
    fisher, sequence   mean_j (sum_t s_jt)^2
    fisher, token      mean_j sum_t s_jt^2

No weight needs a gradient, so this takes less memory and time than Taylor importance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from pruning.importance.base import CalibratedImportance, Needs, check_finite

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruning.units import UnitGroup


class MaskOrder(Enum):
    """What is taken of the derivative by the mask."""

    first = "first"
    """Its absolute mean."""

    fisher = "fisher"
    """Its mean square: the diagonal of the Fisher information."""


class MaskUnit(Enum):
    """What one square of the Fisher information is taken of."""

    sequence = "sequence"
    token = "token"


class Labels(Enum):
    """Which next tokens the loss is taken on."""

    text = "text"
    model = "model"
    """Drawn from the model's predictions."""


@dataclass
class UnitMask(CalibratedImportance):
    """Estimated change of the loss when the activations of a unit are switched off."""

    needs: ClassVar[Needs] = Needs.gradients

    order: MaskOrder = MaskOrder.fisher
    """first or fisher."""

    per: MaskUnit = MaskUnit.sequence
    """sequence or token: what is squared; no effect on the first order."""

    labels: Labels = Labels.text
    """text or model: the next tokens that the loss is taken on."""

    label_seed: int = 0
    """Draws the tokens of labels=model."""

    checkpointing: bool = False
    """Whether activations are computed again instead of kept: less memory, a third more time, the same scores."""

    def check(self, groups: Mapping[str, UnitGroup]) -> None:
        """Raise when a group has no linear map that reads it."""
        from pruning.importance.readers import check_readers

        check_readers("unit_mask", groups, depth=True)

    def score(
        self, model: PreTrainedModel, groups: Mapping[str, UnitGroup], samples: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Score every unit on `samples` (N, T); see the base class for shapes.

        Raises:
            ValueError: a group has no linear map that reads it, or a depth group's output is normalised before it is added.
        """
        from pruning.importance.mask_gradients import mask_derivatives

        self.check(groups)
        sums = mask_derivatives(
            model,
            groups,
            samples,
            squared=self.order is MaskOrder.fisher,
            per_token=self.order is MaskOrder.fisher and self.per is MaskUnit.token,
            batch_size=self.batch_size,
            checkpointing=self.checkpointing,
            label_seed=self.label_seed if self.labels is Labels.model else None,
        )
        scores = {name: values.abs().float().cpu() for name, values in sums.items()}
        check_finite(scores, model, samples)
        return scores
