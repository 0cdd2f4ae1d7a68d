"""A model's head apart from the rest of it, so that logits are made of a part of the tokens at a time.

Letters: B rows, T tokens, P learnt tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from pruning.packing import model_inputs


@dataclass(frozen=True)
class Logits:
    """Logits (P, V), made a part at a time: of last hidden states by a linear head, or there already."""

    values: torch.Tensor
    """States (P, D), or without a head the logits themselves."""

    weight: torch.Tensor | None = None
    """The head's, (V, D)."""

    bias: torch.Tensor | None = None

    def of(self, rows: slice) -> torch.Tensor:
        """Return some rows of the logits, in float32."""
        values = self.values[rows]
        if self.weight is not None:
            values = F.linear(values.to(self.weight.dtype), self.weight, self.bias)
        return values.float()

    def pull_back(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the gradient by rows of the values for one by their logits (R, V)."""
        return gradient if self.weight is None else gradient.to(self.weight.dtype) @ self.weight


def logits_of(values: torch.Tensor, head: nn.Linear | None) -> Logits:
    """Return the logits of values (P, D), or with no head (P, V), in the type that autocast computes in where it is on."""
    if head is None:
        return Logits(values)
    device = values.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
    weight, bias = (None if one is None else one.detach().to(dtype) for one in (head.weight, head.bias))
    return Logits(values, weight, bias)


def head_of(model: Any) -> Any:
    """Return the module that makes the logits, adapted or not, of a model that may be wrapped for several processes."""
    if isinstance(model, DistributedDataParallel):
        model = model.module
    return model.get_output_embeddings()


@torch.no_grad()
def is_last(model: nn.Module, blocks: torch.Tensor) -> bool:
    """Return whether logits are the output of a linear head and nothing else (soft caps, scales), tried on some blocks."""
    if not isinstance(head_of(model), nn.Linear):
        return False
    states, logits = run(model, blocks)
    return torch.equal(head_of(model)(states), logits)


def run(model: nn.Module, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last hidden states (B, T, D) and the logits (B, T, V) of blocks (B, T) or rows (B, 3, T), trimmed."""
    seen: list[torch.Tensor] = []
    handle = head_of(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits = model(**model_inputs(blocks), use_cache=False).logits
    finally:
        handle.remove()
    return seen[0], logits


def run_body(model: nn.Module, blocks: torch.Tensor) -> torch.Tensor:
    """Return the last hidden states (B, T, D) of blocks (B, T) or rows (B, 3, T), trimmed, without any logits."""
    with _passing_on(head_of(model)):
        states: torch.Tensor = model(**model_inputs(blocks), use_cache=False).logits
    return states


@contextmanager
def _passing_on(head: nn.Module) -> Iterator[None]:
    """Have a module return what it is given; what it does was perhaps replaced before, and is again what it was."""
    own = head.__dict__.get("forward")
    head.forward = lambda states: states
    try:
        yield
    finally:
        del head.forward
        if own is not None:
            head.forward = own
