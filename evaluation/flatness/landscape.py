"""The loss of a model as a function of some of its weights, all others held.

Letters: N sequences, B of them in a batch, T tokens, P weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from pruning.importance.gradients import only_trainable


class LossLandscape:
    """Mean next-token loss in nats per token on fixed sequences, around the weights as they are."""

    def __init__(self, model: PreTrainedModel, names: Collection[str], blocks: torch.Tensor, batch_size: int) -> None:
        """Take the function and its place.

        Args:
            model: in float32; also one that holds adapters.
            names: of the parameters that the loss is a function of.
            blocks: token ids, (N, T).
            batch_size: B, which divides N.
        """
        self.model = model
        self.names = frozenset(names)
        chosen = [parameter for name, parameter in model.named_parameters() if name in self.names]
        self.parameters = chosen
        self.device = chosen[0].device
        self.sizes = [parameter.numel() for parameter in chosen]
        self.batches = [batch_of(rows.to(self.device)) for rows in blocks.split(batch_size)]

    @property
    def size(self) -> int:
        """P."""
        return sum(self.sizes)

    def includes(self, name: str, parameter: nn.Parameter) -> bool:
        """Say whether the loss is a function of this parameter."""
        return name in self.names

    @cached_property
    def loss(self) -> float:
        """At the weights as they are."""
        return self._loss()

    @cached_property
    def weights(self) -> torch.Tensor:
        """(P,)."""
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters])

    @cached_property
    def norm(self) -> float:
        """Euclidean norm of the weights."""
        return self.weights.norm().item()

    def gradient(self, batch: dict[str, Any] | None = None) -> torch.Tensor:
        """Return the gradient of the loss (P,), of all sequences or of one batch."""
        batches = self.batches if batch is None else [batch]
        total = torch.zeros_like(self.weights)
        for own in batches:
            parts = torch.autograd.grad(self.model(**own).loss, self.parameters)
            total += torch.cat([part.flatten() for part in parts]) / len(batches)
        return total

    def rise(self, step: torch.Tensor) -> float:
        """Return L(w + step) - L(w) for a step (P,); infinite where the loss overflows."""
        at_start = self.loss
        before = [parameter.detach().clone() for parameter in self.parameters]
        try:
            with torch.no_grad():
                for parameter, part in zip(self.parameters, step.split(self.sizes), strict=True):
                    parameter.add_(part.view_as(parameter))
            there = self._loss()
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, before, strict=True):
                    parameter.copy_(value)
        return there - at_start if math.isfinite(there) else math.inf

    def _loss(self) -> float:
        with torch.no_grad():
            return sum(self.model(**batch).loss.item() for batch in self.batches) / len(self.batches)


def batch_of(rows: torch.Tensor) -> dict[str, Any]:
    """Return what a causal language model takes to give its loss on token ids (B, T)."""
    return {"input_ids": rows, "labels": rows, "use_cache": False}


@contextmanager
def differentiable_twice(model: PreTrainedModel, names: Collection[str]) -> Iterator[None]:
    """Have the named parameters take gradients, in evaluation mode, through operators that have second derivatives.

    Fused attention and grouped products of experts have none. Everything is restored at the end.
    """
    configs: dict[int, Any] = {
        id(module.config): module.config for module in model.modules() if hasattr(module, "config")
    }
    fused = [config for config in configs.values() if getattr(config, "_experts_implementation", None)]
    own = [config._experts_implementation for config in fused]
    try:
        for config in fused:
            config._experts_implementation = "eager"
        with sdpa_kernel(SDPBackend.MATH), only_trainable(model, names):
            yield
    finally:
        for config, implementation in zip(fused, own, strict=True):
            config._experts_implementation = implementation
