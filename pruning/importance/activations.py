"""Moments of what goes into linear maps, over calibration samples: sums that grow batch by batch as the model runs.

A linear map's moments are handed out and forgotten as soon as its last batch has gone by. With all samples in one batch
only one map's moments are held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.importance.gradients import only_trainable, split_samples
from pruning.importance.reduction import wider
from pruning.progress import track


@dataclass
class InputMoments:
    """Moments of the inputs x of one linear map with I inputs, over all tokens of all samples."""

    count: int
    """Tokens."""

    mean: torch.Tensor
    """E[x], (I,) float64."""

    mean_square: torch.Tensor
    """E[x^2], (I,) float64."""

    second: torch.Tensor | None
    """E[x x^T], (I, I), in at least 32 bits; None when not asked for."""


def stream_input_moments(
    model: PreTrainedModel,
    readers: Collection[str],
    samples: torch.Tensor | None,
    consume: Callable[[str, InputMoments], None],
    *,
    batch_size: int | None = None,
    second: bool = False,
) -> None:
    """Run the model over the samples and hand every linear map's moments to `consume`, once, in the order they run in.

    Args:
        model: any mode; left as it was.
        readers: qualified names of linear maps.
        samples: token ids, (N, T).
        consume: takes (reader, moments).
        batch_size: samples run at once; None for all.
        second: whether E[x x^T] is wanted too.

    Raises:
        ValueError: the model did not use one of the linear maps.
    """
    batches = split_samples(samples, batch_size)
    sums: dict[str, InputSums] = {reader: InputSums(second) for reader in readers}
    last = False

    def watch(module: nn.Module, inputs: tuple[torch.Tensor, ...], reader: str) -> None:
        sums[reader].add(inputs[0].flatten(0, -2))
        if last:
            consume(reader, sums.pop(reader).moments())

    handles = []
    try:
        for reader in readers:
            handles.append(model.get_submodule(reader).register_forward_pre_hook(partial(watch, reader=reader)))
        with only_trainable(model, ()), torch.no_grad():
            for index, batch in enumerate(track(batches, "activations")):
                last = index == len(batches) - 1
                model.base_model(input_ids=batch.to(model.device), use_cache=False)  # the head reads no units
    finally:
        for handle in handles:
            handle.remove()
    if sums:
        raise ValueError(f"{next(iter(sums))} is not used by the model, so its units cannot be scored by activations")


STRIP = 512
"""Rows of a matrix of second moments that are summed at once, from the diagonal on: below it they are the same."""


class InputSums:
    """Sums over tokens of what goes into one linear map, `second` for those of the products of all pairs.

    Squares of 32-bit sums would lose the variance of inputs with a large mean: they have 64.
    """

    def __init__(self, second: bool) -> None:
        self.count = 0
        self.second_wanted = second
        self.total = self.squares = self.second = torch.zeros(())

    def add(self, inputs: torch.Tensor) -> None:
        """Take in (tokens, I)."""
        if not self.count:
            width, device = inputs.shape[1], inputs.device
            self.total = torch.zeros(width, dtype=torch.float64, device=device)
            self.squares = torch.zeros_like(self.total)
            if self.second_wanted:
                self.second = torch.zeros(width, width, dtype=wider(inputs), device=device)
        self.count += len(inputs)
        wide = inputs.to(wider(inputs))
        if self.second_wanted:
            for start in range(0, wide.shape[1], STRIP):
                own, rest = wide[:, start : start + STRIP], wide[:, start:]
                self.second[start : start + STRIP, start:].addmm_(own.T, rest)
        self.total += wide.sum(dim=0, dtype=torch.float64)
        self.squares += wide.double().square().sum(dim=0)

    def moments(self) -> InputMoments:
        """Return the means."""
        second = _mirrored(self.second.div_(self.count)) if self.second_wanted else None
        return InputMoments(self.count, self.total / self.count, self.squares / self.count, second)


def _mirrored(upper: torch.Tensor) -> torch.Tensor:
    """Return the symmetric matrix (I, I) of what stands on and above the diagonal, in place."""
    for start in range(0, len(upper), STRIP):
        end = start + STRIP
        own = upper[start:end, start:end]
        own.copy_(own.triu() + own.triu(1).T)
        upper[end:, start:end] = upper[start:end, end:].T
    return upper
