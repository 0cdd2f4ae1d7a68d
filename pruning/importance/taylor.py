"""Taylor importance: how much the loss would change without a unit, from gradients on a few samples.

Source: LLM-Pruner (Ma, Fang, Wang, NeurIPS 2023), section 3.2, equations 3 to 5. With weight w, gradient g of the mean
next-token loss over all N samples, and g_j its gradient on sample j alone:

            paper                                   code
    vector  per channel | sum over the channel of w g |
    first   per weight  | w g |
    second  per weight  1/2 sum_j (w g_j)^2         w^2 F
    mixed   per weight  | w g - 1/2 sum_j (w g_j)^2 |    | w g - 1/2 w^2 F |     with F = (1/N) sum_j g_j^2

summed over the rows or columns of a unit, then aggregated over its matrices. A sum over samples grows with their number, so
the paper's second-order terms of few samples cannot be compared with those of many.

The code differs in more than F: it pairs KV head h of K with query heads h, h+K, h+2K.. instead of those that read it, it
aggregates the matrices of a head channel by channel, and it leaves biases out. `formulas=code` is for repeating its
results; the default scores every unit by what really leaves with it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from pruning.importance.base import (
    CalibratedImportance,
    CoupledImportance,
    Needs,
    aggregate_matrices,
    check_at_least_one,
    check_finite,
    sum_positions,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruning.importance.saliency import Place
    from pruning.units import UnitGroup


class TaylorOrder(Enum):
    """Terms of the expansion that are kept."""

    vector = "vector"
    first = "first"
    second = "second"
    mixed = "mixed"


class Formulas(Enum):
    """Whose equations are followed."""

    paper = "paper"
    code = "code"


@dataclass
class Taylor(CoupledImportance, CalibratedImportance):
    """Estimated change of the loss when a unit leaves.

    Peak memory is that of one forward and backward of a batch, with the gradient of one parameter at a time. Only `mixed`,
    and `first` with several batches, need a float32 copy of the weights that are scored in one round: see `layers_at_once`.
    """

    needs: ClassVar[Needs] = Needs.gradients

    order: TaylorOrder = TaylorOrder.first
    """vector, first, second or mixed. The last two run one sample at a time, whatever the batch size."""

    formulas: Formulas = Formulas.paper
    """paper or code."""

    layers_at_once: int | None = None
    """Decoder layers scored in one round over the samples; null for all, or, where a copy is needed, for as many as keep it
    within a fifth of the model's weights. More are quicker."""

    checkpointing: bool = False
    """Whether activations are computed again instead of kept: less memory, a third more time, the same scores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one("layers_at_once", self.layers_at_once)

    def score(
        self, model: PreTrainedModel, groups: Mapping[str, UnitGroup], samples: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Score every unit on `samples` (N, T); see the base class for shapes."""
        from pruning.importance.gradients import split_samples
        from pruning.importance.saliency import in_rounds, paired_as_in_code

        self.check(groups)
        split_samples(samples, None)
        assert samples is not None
        as_in_code = self.formulas is Formulas.code
        if as_in_code:
            groups = {name: _without_biases(group) for name, group in groups.items()}
        places: dict[str, set[tuple[int, ...]]] = {}
        for group in groups.values():
            for piece in group.slices:
                places.setdefault(piece.parameter, set()).add(piece.dims)
        channels: dict[Place, torch.Tensor] = {}
        for names in in_rounds(places, self.layers_at_once or self._affordable_layers(model, places, len(samples))):
            channels |= self._channel_scores(model, {name: places[name] for name in names}, samples)
        scores = aggregate_matrices(
            groups,
            lambda piece: channels[piece.parameter, piece.dims],
            self.aggregation,
            paired_as_in_code if as_in_code else sum_positions,
        )
        check_finite(scores, model, samples)
        return scores

    def _needs_copy(self, samples: int) -> bool:
        """Say whether absolute values are taken of sums over several backward passes."""
        several = samples > 1 and (self.order is TaylorOrder.mixed or samples > (self.batch_size or samples))
        return several and self.order in (TaylorOrder.first, TaylorOrder.mixed)

    def _affordable_layers(self, model: PreTrainedModel, places: Collection[str], samples: int) -> int | None:
        """Return how many layers' float32 copies fit into a fifth of the weights; None for all."""
        from pruning.importance.saliency import in_rounds

        if not self._needs_copy(samples):
            return None
        weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        copies = sum(4 * model.get_parameter(name).numel() for name in places)
        layers = sum(1 for _ in in_rounds(places, 1))
        return max(1, int(layers * weights / 5 / copies))

    def _channel_scores(
        self, model: PreTrainedModel, places: Mapping[str, Collection[tuple[int, ...]]], samples: torch.Tensor
    ) -> dict[Place, torch.Tensor]:
        """Return the score of every row or column of the parameters, (positions,) for each of their dims."""
        from pruning.importance.gradients import fold_gradients, split_samples
        from pruning.importance.saliency import SaliencySums, saliency

        batch_size = 1 if self.order in (TaylorOrder.second, TaylorOrder.mixed) else self.batch_size
        elementwise = self.order in (TaylorOrder.first, TaylorOrder.mixed)
        passes = len(split_samples(samples, batch_size))
        weights = {name: model.get_parameter(name).detach() for name in places}
        sums = SaliencySums(weights, places, elementwise=elementwise, passes=passes)

        def fold(name: str, weight: torch.Tensor, gradient: torch.Tensor, share: float) -> None:
            sums.add(name, saliency(weight, gradient, share, self.order, self.formulas))

        fold_gradients(model, places, samples, fold, batch_size=batch_size, checkpointing=self.checkpointing)
        return sums.finish()


def _without_biases(group: UnitGroup) -> UnitGroup:
    """Return a group without the slices of biases."""
    weights = tuple(piece for piece in group.slices if not piece.parameter.endswith("bias"))
    return replace(group, slices=weights)
