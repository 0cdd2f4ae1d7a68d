"""The contract of an importance estimator, the options all of them share, and how matrices become scores of units.

Letters: U units of a group, C positions of one unit in one matrix, N calibration samples, T tokens of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


class Normalization(Enum):
    """How scores are made comparable, so that units of different layers and kinds can be ranked together.

    A ranking of all units is by score per parameter, so none of these divides by the size of the unit.
    """

    none = "none"
    """As they are: right for scores that estimate the rise in loss, and whenever every layer loses the same share."""

    layer = "layer"
    """Relative to the median score of the group: takes out that scores grow or shrink from layer to layer. Depth groups have
    one unit, so theirs are relative to the median over all groups of their kind."""

    zscore = "zscore"
    """Standardised: the distance from the mean of the group in standard deviations (FLAP, An et al. 2023)."""


class Aggregation(Enum):
    """How the scores of the coupled matrices of a unit become one (LLM-Pruner, section 3.2 and its ablation)."""

    sum = "sum"
    mean = "mean"
    max = "max"

    prod = "prod"
    """The geometric mean: it orders the units of a group as the product does, and does not underflow. A unit with a
    score of zero in any one matrix scores zero."""

    last = "last"
    """The last matrix alone: the one that reads the units' activations."""


@dataclass
class ImportanceEstimator:
    """Base of the `importance` options. A subclass's fields are its hyper-parameters."""

    needs: ClassVar[Needs] = Needs.weights
    normalization: Normalization = Normalization.none
    """none, layer or zscore. Applied to what `score` returns."""

    normalization_power: float = 1.0
    """How much of it normalization=layer takes out, in [0, 1]: scores per parameter are divided by this power of the median."""

    halves: bool = True
    """Whether the halves of the calibration samples are scored apart too, at the price of a second scoring: tells how sure
    the scores are. No effect on estimators that need only weights."""

    def __post_init__(self) -> None:
        if not 0 <= self.normalization_power <= 1:
            raise ValueError(f"importance.normalization_power={self.normalization_power}: must be in [0, 1]")

    def check(self, groups: Mapping[str, UnitGroup]) -> None:
        """Raise a ValueError when there is a group that this estimator cannot score. Called before any work."""

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


@dataclass
class CalibratedImportance(ImportanceEstimator):
    """Base of the estimators that run the model on calibration samples."""

    batch_size: int | None = None
    """Samples run at once; null for all. Saves memory, does not change the scores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one("batch_size", self.batch_size)


@dataclass
class CoupledImportance(ImportanceEstimator):
    """Base of the estimators that score the weights of a unit matrix by matrix."""

    aggregation: Aggregation = Aggregation.sum
    """sum, mean, max, prod or last, over the coupled matrices of a unit."""

    def check(self, groups: Mapping[str, UnitGroup]) -> None:
        """Raise when the last matrix is asked for and a group has no one matrix that reads it."""
        for name, group in groups.items():
            if self.aggregation is Aggregation.last and (group.kind.is_depth or group.layer is None):
                raise ValueError(
                    f"importance.aggregation=last: {name} ({group.kind.value}) has no one matrix that reads it; "
                    "use sum, mean, max or prod"
                )


def check_at_least_one(key: str, value: int | None) -> None:
    """Raise unless an option that counts something is null or positive."""
    if value is not None and value < 1:
        raise ValueError(f"importance.{key}={value}: must be at least 1, or null for all")


def sum_positions(group: UnitGroup, piece: UnitSlice, values: torch.Tensor) -> torch.Tensor:
    """Return the (positions,) scores of a slice's rows or columns as (U, 1): the sum over the positions of each unit."""
    return values[piece.indices].sum(dim=1, keepdim=True)


def aggregate_matrices(
    groups: Mapping[str, UnitGroup],
    channels: Callable[[UnitSlice], torch.Tensor],
    aggregation: Aggregation,
    per_unit: Callable[[UnitGroup, UnitSlice, torch.Tensor], torch.Tensor] = sum_positions,
) -> dict[str, torch.Tensor]:
    """Turn the scores of rows and columns into scores of units.

    The rows or columns of a unit in one matrix are added up, then its matrices are aggregated. Each slice of a weight is a
    matrix (a fused projection has several); the slice of a bias is added to the weight before it.

    Args:
        groups: what to score.
        channels: for a slice, the score of each position along its `dims`, (positions,).
        aggregation: how matrices become one.
        per_unit: (group, slice, scores of its positions) -> (U, X); what is added up over X only after aggregation.

    Returns:
        Group name -> (U,) float32 on the CPU.
    """
    import torch

    scores = {}
    for name, group in groups.items():
        matrices: list[torch.Tensor] = []
        for index, piece in enumerate(group.slices):
            values = per_unit(group, piece, channels(piece).double().cpu())
            if _is_bias_of_previous(group.slices, index):
                matrices[-1] = matrices[-1] + values
            else:
                matrices.append(values)
        scores[name] = _aggregate(torch.stack(matrices), aggregation).sum(dim=1).float()
    return scores


def check_finite(
    scores: Mapping[str, torch.Tensor], model: PreTrainedModel | None = None, samples: torch.Tensor | None = None
) -> None:
    """Raise when a score is NaN or infinite, naming the first such unit and, given samples, the first one to blame."""
    for name, values in scores.items():
        bad = (~values.isfinite()).nonzero().flatten()
        if len(bad):
            blame = "" if model is None or samples is None else _blame(model, samples)
            raise ValueError(
                f"the score of unit {int(bad[0])} of {name} is {float(values[bad[0]])}: cannot rank it{blame}"
            )


def _blame(model: PreTrainedModel, samples: torch.Tensor) -> str:
    """Name the first sample whose loss is not finite."""
    import torch

    with torch.no_grad():
        for index, sample in enumerate(samples):
            ids = sample[None].to(model.device)
            loss = float(model(input_ids=ids, labels=ids, use_cache=False).loss)
            if not abs(loss) < float("inf"):
                return f". The loss on calibration sample {index} is {loss}: check its text, or use model.dtype=float32"
    return ". The loss is finite on every calibration sample: the numbers overflow elsewhere; use model.dtype=float32"


def _is_bias_of_previous(slices: Sequence[UnitSlice], index: int) -> bool:
    """Say whether a slice is the bias of the module whose weight is the slice before it."""
    (owner, _, part), previous = slices[index].parameter.rpartition("."), slices[index - 1].parameter
    return index > 0 and part == "bias" and previous == f"{owner}.weight"


def _aggregate(matrices: torch.Tensor, aggregation: Aggregation) -> torch.Tensor:
    """Return (M, U, C) scores of matrices as (U, C)."""
    if aggregation is Aggregation.sum:
        return matrices.sum(dim=0)
    if aggregation is Aggregation.mean:
        return matrices.mean(dim=0)
    if aggregation is Aggregation.max:
        return matrices.amax(dim=0)
    if aggregation is Aggregation.last:
        return matrices[-1]
    return matrices.log().mean(dim=0).exp()
