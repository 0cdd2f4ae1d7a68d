"""Activation-aware scores: weights times the size, or the fluctuation, of the inputs that they read.

Sources: Wanda (Sun, Liu, Bair, Kolter, ICLR 2024), summed over a unit's columns as its structured variants do, and FLAP (An,
Zhao, Yu, Tang, Wang, AAAI 2024). With W (outputs i, inputs c) the linear map that reads the units, x_c its inputs over all
calibration tokens, and S the inputs of the unit:

    wanda         sum_{c in S} sum_i |W_ic| sqrt(E[x_c^2])
    fluctuation   sum_{c in S} Var(x_c) sum_i W_ic^2        (what a constant bias could not replace)
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

    from pruning.importance.activations import InputMoments
    from pruning.units import UnitGroup


class ActivationMetric(Enum):
    """Which product of weights and activations."""

    wanda = "wanda"
    fluctuation = "fluctuation"


@dataclass
class ActivationImportance(CalibratedImportance):
    """Weights of a unit's reader times the size or the fluctuation of its activations. Forward passes only."""

    needs: ClassVar[Needs] = Needs.activations

    metric: ActivationMetric = ActivationMetric.wanda
    """wanda or fluctuation (FLAP)."""

    def check(self, groups: Mapping[str, UnitGroup]) -> None:
        """Raise when a group has no linear map that reads it."""
        from pruning.importance.readers import check_readers

        check_readers(self.metric.value, groups, depth=False)

    def score(
        self, model: PreTrainedModel, groups: Mapping[str, UnitGroup], samples: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Score every unit on `samples` (N, T); see the base class for shapes.

        Raises:
            ValueError: a group has no linear map that reads it.
        """
        from pruning.importance.activations import stream_input_moments
        from pruning.importance.readers import input_positions, weight_of
        from pruning.importance.reduction import power_sums

        self.check(groups)
        scores: dict[str, torch.Tensor] = {}

        def consume(reader: str, moments: InputMoments) -> None:
            power, factors = self._factors(moments)
            channels = (power_sums(weight_of(model, reader), (1,), power).double() * factors).cpu()
            for name, group in groups.items():
                if group.readers == (reader,):
                    scores[name] = channels[input_positions(group)].sum(dim=1).float()

        readers = {reader for group in groups.values() for reader in group.readers}
        stream_input_moments(model, readers, samples, consume, batch_size=self.batch_size)
        ordered = {name: scores[name] for name in groups}
        check_finite(ordered, model, samples)
        return ordered

    def _factors(self, moments: InputMoments) -> tuple[int, torch.Tensor]:
        """Return the power of the weights, and what their sums over outputs are multiplied by, (I,)."""
        if self.metric is ActivationMetric.wanda:
            return 1, moments.mean_square.sqrt()
        unbiased = moments.count / (moments.count - 1)
        return 2, (moments.mean_square - moments.mean.square()).clamp_min(0) * unbiased
