"""Gradients of the next-token loss, folded into float32 sums as backward produces them.

A gradient is freed as soon as it is folded, so backward holds one gradient at a time beside the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from tqdm import tqdm
from transformers import PreTrainedModel


class Moments(NamedTuple):
    """Moments of a parameter's gradient over the samples, float32, of the parameter's shape; empty when not asked for."""

    mean: torch.Tensor
    mean_square: torch.Tensor


def gradient_moments(
    model: PreTrainedModel,
    names: set[str],
    samples: torch.Tensor,
    *,
    batch_size: int,
    mean: bool,
    mean_square: bool,
) -> dict[str, Moments]:
    """Return the mean gradient, and the mean squared gradient per sample, of the named parameters.

    Args:
        model: any mode; left as it was, to the last bit, with its gradients and `requires_grad` flags as they were.
        names: qualified names of the parameters.
        samples: token ids, (N, T).
        batch_size: samples in one backward pass; must be 1 for `mean_square`.
        mean: whether the mean gradient is wanted.
        mean_square: whether the mean over samples of the squared gradient is wanted.

    Raises:
        RuntimeError: a named parameter got no gradient; it would be scored as worthless.
    """
    assert batch_size == 1 or not mean_square
    sums = {
        name: Moments(
            torch.zeros_like(model.get_parameter(name), dtype=torch.float32) if mean else torch.empty(0),
            torch.zeros_like(model.get_parameter(name), dtype=torch.float32) if mean_square else torch.empty(0),
        )
        for name in names
    }
    seen: dict[str, int] = dict.fromkeys(names, 0)

    def fold(name: str, gradient: torch.Tensor) -> None:
        seen[name] += 1
        gradient = gradient.float()
        if mean:
            sums[name].mean.add_(gradient)
        if mean_square:
            sums[name].mean_square.addcmul_(gradient, gradient)

    batches = samples.split(batch_size)
    with _gradients_only_for(model, names, fold):
        for batch in tqdm(batches, desc="gradients", leave=False):
            ids = batch.to(model.device)
            (model(input_ids=ids, labels=ids, use_cache=False).loss * len(batch)).backward()
    missing = sorted(name for name, count in seen.items() if count != len(batches))
    if missing:
        raise RuntimeError(f"{missing[0]} got {seen[missing[0]]} gradients from {len(batches)} backward passes")
    for moments in sums.values():
        moments.mean.div_(len(samples))
        moments.mean_square.div_(len(samples))
    return sums


@contextmanager
def _gradients_only_for(
    model: PreTrainedModel, names: set[str], fold: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """Hand each named parameter's gradient to `fold` and free it; restore flags, gradients and mode at the end."""
    before = {name: (parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()}
    training = model.training
    hooks = []

    def hook_for(name: str) -> Callable[[torch.Tensor], None]:
        def hook(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            fold(name, parameter.grad)
            parameter.grad = None

        return hook

    try:
        model.eval()
        for name, parameter in model.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(name in names)
            if name in names:
                hooks.append(parameter.register_post_accumulate_grad_hook(hook_for(name)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name][0])
            parameter.grad = before[name][1]
        model.train(training)
