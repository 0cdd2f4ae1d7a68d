"""Backward passes of the next-token loss over calibration samples, in a model that is as it was afterwards.

The loss of a batch is the mean over its tokens. All samples have the same length, so the gradient of the loss on all samples
is the mean of the batches' gradients, each weighted by its share of the samples.

The surprise: checkpointing replaces `forward` of each decoder layer instead of switching on the layers' own
checkpointing, which works in training mode only, where some families (OPT, Falcon) would also start their dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from pruning.importance.reduction import wider
from pruning.progress import track

GradientFold = Callable[[str, torch.Tensor, torch.Tensor, float], None]
"""(parameter name, weight, gradient of a batch's loss, the batch's share of the samples); it may overwrite the gradient."""


def fold_gradients(
    model: PreTrainedModel,
    names: Collection[str],
    samples: torch.Tensor,
    fold: GradientFold,
    *,
    batch_size: int | None = None,
    checkpointing: bool = False,
) -> None:
    """Hand every gradient of the named parameters to `fold` as backward produces it, then free it.

    Args:
        model: any mode; left as it was, to the last bit, with its gradients and `requires_grad` flags as they were.
        names: qualified names of the parameters.
        samples: token ids, (N, T).
        fold: takes one gradient.
        batch_size: samples in one backward pass; None for all.
        checkpointing: whether activations are computed again in the backward pass instead of kept.

    Raises:
        ValueError: a named parameter got no gradient; it would be scored as worthless.
    """
    seen = dict.fromkeys(names, 0)
    share = 0.0

    def hook(parameter: torch.Tensor, name: str) -> None:
        assert parameter.grad is not None
        seen[name] += 1
        gradient, parameter.grad = parameter.grad, None
        with torch.no_grad():
            fold(name, parameter.detach(), gradient, share)

    batches = split_samples(samples, batch_size)
    hooks = []
    with only_trainable(model, names), checkpointed(model) if checkpointing else nullcontext():
        try:
            for name in seen:
                parameter = model.get_parameter(name)
                hooks.append(parameter.register_post_accumulate_grad_hook(partial(hook, name=name)))
            for batch in track(batches, "gradients"):
                share = len(batch) / len(samples)
                batch_loss(model, batch).backward()
        finally:
            for handle in hooks:
                handle.remove()
    for name, count in seen.items():
        if count != len(batches):
            raise ValueError(
                f"{name} got {count} gradients from {len(batches)} backward passes: the model does not use it, so it cannot "
                "be scored by gradients; use importance=l2 or random"
            )


def split_samples(samples: torch.Tensor | None, batch_size: int | None) -> tuple[torch.Tensor, ...]:
    """Return calibration samples (N, T) in batches.

    Raises:
        ValueError: there are no samples, or they are too short to predict a token from.
    """
    if samples is None or samples.ndim != 2 or samples.shape[0] < 1 or samples.shape[1] < 2:
        found = "none" if samples is None else f"shape {tuple(samples.shape)}"
        raise ValueError(
            f"calibration samples: must be (samples, tokens) with at least 1 sample of 2 tokens, but got {found}; "
            "choose an estimator that needs no text (importance=l2) or give data with more text"
        )
    return samples.split(batch_size or len(samples))


def batch_loss(model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
    """Return the mean next-token loss of token ids (B, T), in nats, with a graph behind it."""
    ids = batch.to(model.device)
    with torch.enable_grad():
        return model(input_ids=ids, labels=ids, use_cache=False).loss


def label_places(samples: torch.Tensor, seed: int) -> torch.Tensor:
    """Return where in the model's distributions the labels of samples (N, T) are drawn, (N, T - 1), whatever the batches."""
    shape = (samples.shape[0], samples.shape[1] - 1)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def next_token_logits(model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
    """Return the logits (B, T - 1, V) that token ids (B, T) after the first are predicted by, with a graph behind them."""
    with torch.enable_grad():
        return model(input_ids=batch.to(model.device), use_cache=False).logits[:, :-1]


def text_label_gradient(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the gradient, by the logits, of their mean loss on given tokens.

    Args:
        logits: (B, T, V).
        tokens: token ids, (B, T).
    """
    return _label_gradient(logits, tokens, lambda _, own: own)


def drawn_label_gradient(logits: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the gradient, by the logits, of their mean loss on tokens drawn from the distributions they stand for.

    Args:
        logits: (B, T, V).
        places: where in the distributions, in [0, 1), the tokens are drawn, (B, T).
    """
    return _label_gradient(logits, places, draw_tokens)


@torch.no_grad()
def _label_gradient(
    logits: torch.Tensor, given: torch.Tensor, choose: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Return softmax(logits) minus 1 at each label, over the number of labels, one sample at a time for its memory.

    Args:
        logits: (B, T, V).
        given: what the labels are chosen by, (B, T).
        choose: takes the probabilities (T, V) and what is given (T,) of a sample, returns its labels (T,).
    """
    gradients = torch.empty_like(logits)
    for own, sample, gradient in zip(logits, given.to(logits.device), gradients, strict=True):
        chances = own.to(wider(own)).softmax(dim=-1)
        labels = choose(chances, sample)[:, None]
        chances.scatter_add_(1, labels, chances.new_full((1, 1), -1.0).expand_as(labels))
        gradient.copy_(chances.div_(given.numel()))
    return gradients


def draw_tokens(chances: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the tokens (T,) at which the cumulated `chances` (T, V) pass `places` (T,), in [0, 1)."""
    cumulated = chances.cumsum(dim=-1)
    total = cumulated[:, -1:]
    passed = torch.minimum(places[:, None].to(cumulated) * total, torch.nextafter(total, torch.zeros_like(total)))
    drawn = torch.searchsorted(cumulated, passed, right=True).squeeze(1)
    return drawn.clamp_max(chances.shape[-1] - 1)  # where chances are not finite, which the scores will tell


@contextmanager
def only_trainable(model: PreTrainedModel, names: Collection[str]) -> Iterator[None]:
    """Have only the named parameters take gradients, in evaluation mode; restore flags, gradients and modes at the end."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for name, parameter in model.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(name in names)
        yield
    finally:
        for parameter, flag, gradient in before:
            parameter.requires_grad_(flag)
            parameter.grad = gradient
        for module, training in modes:
            module.training = training


@contextmanager
def checkpointed(model: PreTrainedModel) -> Iterator[None]:
    """Have the decoder layers keep only their inputs for the backward pass, and compute the rest again.

    Raises:
        ValueError: the model has no layers that transformers marks as fit for it.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"importance.checkpointing=true: {type(model).__name__} has no layers that can be checkpointed; set it to false"
        )
    own = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            layer.__dict__.pop("forward", None)
            if forward is not None:
                layer.forward = forward
