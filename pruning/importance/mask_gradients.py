"""Derivatives of the loss by masks on units, folded as backward passes the activations by.

An activation that is watched goes through an identity whose backward sees the activation and its gradient. So nothing is
kept that checkpointing would not compute again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.importance.gradients import (
    batch_loss,
    checkpointed,
    drawn_label_gradient,
    label_places,
    next_token_logits,
    only_trainable,
    split_samples,
)
from pruning.importance.readers import by_sample, input_positions
from pruning.importance.reduction import wider
from pruning.progress import track
from pruning.units import UnitGroup

Watch = Callable[[torch.Tensor, torch.Tensor], None]
"""Takes an activation and its gradient."""


def mask_derivatives(
    model: PreTrainedModel,
    groups: Mapping[str, UnitGroup],
    samples: torch.Tensor | None,
    *,
    squared: bool,
    per_token: bool,
    batch_size: int | None,
    checkpointing: bool,
    label_seed: int | None = None,
) -> dict[str, torch.Tensor]:
    """Return the mean over samples of the derivatives of their losses by the mask of each unit, or of their squares.

    Args:
        model: left as it was, to the last bit.
        groups: each with readers.
        samples: token ids, (N, T).
        squared: whether derivatives are squared before the mean.
        per_token: whether each token's part is squared, and the squares are added up over the tokens of a sample.
        batch_size: samples in one backward pass; None for all.
        checkpointing: whether activations are computed again in the backward pass instead of kept.
        label_seed: draws the tokens that the losses are taken on from the model's own predictions; None for the text's.

    Returns:
        Group name -> (U,) float64.

    Raises:
        ValueError: there is a reader that no gradient reached.
    """
    batches = split_samples(samples, batch_size)
    sums = {name: _Masks(group, model.device, squared=squared, per_token=per_token) for name, group in groups.items()}
    with only_trainable(model, ()), _watched(model, sums), checkpointed(model) if checkpointing else nullcontext():
        places = None if samples is None or label_seed is None else label_places(samples, label_seed)
        for index, batch in enumerate(track(batches, "mask gradients")):
            for masks in sums.values():
                masks.batch_size = len(batch)
            start = index * len(batches[0])
            if places is None:
                batch_loss(model, batch).backward()
            else:
                logits = next_token_logits(model, batch)
                logits.backward(drawn_label_gradient(logits, places[start : start + len(batch)]))
    total = sum(len(batch) for batch in batches)
    return {name: masks.finish(total) for name, masks in sums.items()}


class _Masks:
    """Sums of the mask derivatives of one group."""

    def __init__(self, group: UnitGroup, device: torch.device, *, squared: bool, per_token: bool) -> None:
        self.group = group
        self.indices = None if group.kind.is_depth else input_positions(group).to(device)
        self.in_order = self.indices is not None and bool((self.indices.flatten().diff() == 1).all())
        self.squared, self.per_token = squared, per_token
        self.batch_size = 0
        self._sums = torch.zeros(group.num_units, dtype=torch.float64, device=device)
        self._parts: list[torch.Tensor] = []
        self._samples = 0
        self._net, self._gross = self._sums.new_zeros(()), self._sums.new_zeros(())

    def add(self, reader: str, activation: torch.Tensor, gradient: torch.Tensor) -> None:
        """Take in the activations (B, T, channels) of one reader and their gradients of the batch's mean loss."""
        product = by_sample(activation.to(wider(activation)) * gradient, self.batch_size, reader)
        if self.indices is None:
            gross = product.abs().sum(dim=-1)
            product = product.sum(dim=-1, keepdim=True)
            self._net += product.double().square().sum()
            self._gross += gross.double().square().sum() / activation.shape[-1]
        if not self.per_token:
            product = product.sum(dim=1, keepdim=True)
        if self.indices is not None:
            product = _by_unit(product, self.indices, in_order=self.in_order)
        self._parts.append(product)
        if len(self._parts) == len(self.group.readers):
            self._fold(sum(self._parts[1:], start=self._parts[0]))
            self._parts = []

    def _fold(self, derivatives: torch.Tensor) -> None:
        """Take in the derivatives of a batch's mean loss, (B, T or 1, U), all readers together."""
        self._samples += self.batch_size
        values = derivatives.square() if self.squared else derivatives
        # The loss is a mean over B samples: times B, its derivatives are those of each sample's own loss.
        self._sums += values.sum(dim=(0, 1), dtype=torch.float64) * self.batch_size ** (2 if self.squared else 1)

    def finish(self, samples: int) -> torch.Tensor:
        """Return the means (U,)."""
        name = self.group.name
        if self._samples != samples:
            raise ValueError(
                f"{name}: gradients of {self._samples} of {samples} samples reached {', '.join(self.group.readers)}; the "
                "model does not use it, or cuts the gradient; use importance=l2 or random"
            )
        if self.indices is None and self._net < self._gross * SCALE_FREE:
            raise ValueError(
                f"importance=unit_mask: cannot score {name}, because the model normalises its output before it adds it to "
                "the residual stream, so the loss does not change with its size; use importance=taylor, l1, l2 or random"
            )
        return self._sums / samples


def _by_unit(values: torch.Tensor, indices: torch.Tensor, *, in_order: bool) -> torch.Tensor:
    """Return the sums of `values` (B, T, channels) over the channels of each unit, `indices` (U, C): (B, T, U)."""
    whole = in_order and indices.numel() == values.shape[-1]
    channels = values.unflatten(-1, indices.shape) if whole else values[..., indices]
    return channels.squeeze(-1) if indices.shape[1] == 1 else channels.sum(dim=-1)


SCALE_FREE = 1e-3
"""Sums over channels whose squares are so much smaller than sums of as many random signs would make them: a norm follows,
and what is left of them is rounding (near 1e-6 in bfloat16)."""


class _Watched(torch.autograd.Function):
    """The identity; its backward shows the activation and its gradient to a watch."""

    @staticmethod
    def forward(ctx: Any, activation: torch.Tensor, watch: Watch, copy: bool) -> torch.Tensor:
        ctx.save_for_backward(activation)
        ctx.watch = watch
        return activation.clone() if copy else activation.view_as(activation)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (activation,) = ctx.saved_tensors
        ctx.watch(activation, gradients[0])
        return gradients[0], None, None


@contextmanager
def _watched(model: PreTrainedModel, sums: Mapping[str, _Masks]) -> Iterator[None]:
    """Show the inputs of the readers of width groups, and the outputs of those of depth groups, to their sums."""
    handles = [model.get_input_embeddings().register_forward_hook(_require_grad)]
    try:
        for masks in sums.values():
            for reader in masks.group.readers:
                module, watch = model.get_submodule(reader), partial(masks.add, reader)
                if masks.group.kind.is_depth:
                    handles.append(module.register_forward_hook(partial(_watch_output, watch)))
                else:
                    handles.append(module.register_forward_pre_hook(partial(_watch_input, watch)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watched_outputs(
    model: PreTrainedModel, names: Collection[str], watch: Callable[[str, torch.Tensor, torch.Tensor], None]
) -> Iterator[None]:
    """Show `watch` the name, the output and the output's gradient of every module named, in each backward pass."""
    handles = [model.get_input_embeddings().register_forward_hook(_require_grad)]
    try:
        for name in names:
            hook = partial(_watch_output, partial(watch, name))
            handles.append(model.get_submodule(name).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _require_grad(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """Begin the graph at the embeddings: with every weight frozen there would be none."""
    return output.requires_grad_()


def _watch_input(watch: Watch, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (_Watched.apply(inputs[0], watch, False), *inputs[1:])


def _watch_output(watch: Watch, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> Any:
    return _Watched.apply(output, watch, True)  # a copy, because Falcon adds to it in place
