"""Saliencies of weights from gradients, reduced to sums over rows and columns as soon as that loses nothing.

A sum of signed saliencies, or of squares, is reduced gradient by gradient. A sum of absolute values of means can be
reduced at once only when a single backward pass gives the mean; else a wide copy of each parameter holds it till the end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping

import torch

from pruning.importance.base import sum_positions
from pruning.importance.reduction import channel_sums, wider
from pruning.importance.taylor import Formulas, TaylorOrder
from pruning.units import UnitGroup, UnitKind, UnitSlice

Place = tuple[str, tuple[int, ...]]
"""A parameter and the dimensions that its positions are counted through."""


def saliency(
    weight: torch.Tensor, gradient: torch.Tensor, share: float, order: TaylorOrder, formulas: Formulas
) -> torch.Tensor:
    """Return one backward pass's part of the saliency of every number of a parameter, before absolute values.

    The parts of all passes add up to the terms of `pruning.importance.taylor`. The gradient may be overwritten.

    Args:
        weight: the parameter.
        gradient: of the pass's mean loss, same shape.
        share: the pass's share of the samples; 1/N where the order needs a pass per sample.
        order: terms that are kept.
        formulas: the paper's sum over samples, or the code's mean.
    """
    product = gradient.to(wider(gradient)).mul_(weight)
    if order in (TaylorOrder.vector, TaylorOrder.first):
        return product.mul_(share)
    if order is TaylorOrder.second:
        return product.square_().mul_(0.5 if formulas is Formulas.paper else share)
    half = 0.5 if formulas is Formulas.paper else 0.5 * share
    return product.mul_(product.mul(-half).add_(share))


class SaliencySums:
    """Absolute sums of saliencies over rows and columns, filled pass by pass.

    All that stays is allocated before the first pass: a small tensor that is made between two gradients and stays would
    sit in the room that the first has left, and on a CPU the next gradient would have to go elsewhere.

    Attributes:
        places: parameter -> the dims that its sums are wanted along.
        elementwise: whether absolute values are taken of every number, or of the sums only.
    """

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        places: Mapping[str, Collection[tuple[int, ...]]],
        *,
        elementwise: bool,
        passes: int,
    ) -> None:
        """Start at zero.

        Args:
            weights: the parameters that will come, by name.
            places: see the attributes.
            elementwise: see the attributes.
            passes: backward passes that will come.
        """
        self.places = places
        self.elementwise = elementwise
        kept = weights if elementwise and passes > 1 else {}
        self._elements = {name: torch.zeros_like(weight, dtype=wider(weight)) for name, weight in kept.items()}
        self._sums: dict[Place, torch.Tensor] = {
            (name, dims): weight.new_zeros(math.prod(weight.shape[dim] for dim in dims), dtype=wider(weight))
            for name, weight in weights.items()
            for dims in places[name]
        }

    def add(self, name: str, values: torch.Tensor) -> None:
        """Take in one pass's saliencies of a parameter; they may be overwritten."""
        if name in self._elements:
            self._elements[name].add_(values)
        else:
            self._reduce(name, values)

    def finish(self) -> dict[Place, torch.Tensor]:
        """Return the sums, each (positions,)."""
        while self._elements:
            self._reduce(*self._elements.popitem())
        return {place: values.abs() for place, values in self._sums.items()}

    def _reduce(self, name: str, values: torch.Tensor) -> None:
        if self.elementwise:
            values.abs_()
        for dims in self.places[name]:
            self._sums[name, dims].add_(channel_sums(values, dims))


def in_rounds(names: Iterable[str], layers_at_once: int | None) -> list[list[str]]:
    """Return parameters in rounds of so many decoder layers each; those outside the layers come with the first.

    The layer is the first number in the qualified name.
    """
    names = list(names)
    if layers_at_once is None:
        return [names]
    layers = {name: int(found[1]) if (found := re.search(r"\.(\d+)\.", name)) else 0 for name in names}
    numbers = sorted(set(layers.values()))
    rounds = [numbers[start : start + layers_at_once] for start in range(0, len(numbers), layers_at_once)]
    return [[name for name in names if layers[name] in chosen] for chosen in rounds]


def paired_as_in_code(group: UnitGroup, piece: UnitSlice, values: torch.Tensor) -> torch.Tensor:
    """Return channel scores (U, d) of KV groups with query heads paired as LLM-Pruner's code pairs them.

    It folds the H*d scores of query and output into the K*d of key and value by `view(H/K, K*d).sum(0)`: KV head h is scored
    with query heads h, h+K, h+2K.., not with the ones that read it. The order of values along `piece` is that of heads.
    """
    if group.kind is not UnitKind.kv_group:
        return sum_positions(group, piece, values)
    width = min(other.indices.shape[1] for other in group.slices)
    folded = values[piece.indices.flatten()].view(-1, group.num_units * width).sum(dim=0)
    return folded.view(group.num_units, width)
