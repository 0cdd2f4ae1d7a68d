"""Losses of a batch: sums over the tokens that are learnt. Letters: B rows, T tokens, P learnt tokens, V vocabulary."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from pruning.packing import NOT_LEARNT, labels_of, model_inputs
from recovery.objectives import Batch


def language_modelling_loss(model: torch.nn.Module, batch: Batch, items: torch.Tensor | int) -> torch.Tensor:
    """Return the batch's part of the mean cross-entropy over the `items` learnt tokens of its step, nats per token."""
    logits = model(**model_inputs(batch["blocks"]), use_cache=False).logits
    predicted, targets = learnt(logits, batch["blocks"])
    return F.cross_entropy(predicted.float(), targets, reduction="sum") / items


def learnt(values: torch.Tensor, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a model gave where a learnt token comes next, (P, D) of `values` (B, T, D), and those tokens (P,)."""
    targets = labels_of(blocks)[:, 1:]
    chosen = targets != NOT_LEARNT
    if chosen.all():  # the gradient of a choice is slow
        return values[:, :-1].flatten(0, 1), targets.flatten()
    return values[:, :-1][chosen], targets[chosen]


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return temperature^2 * sum over tokens of KL(teacher || student), both softened; logits (P, V), nats.

    Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network" (2015), section 2: the factor keeps the size of the
    gradient when the temperature changes.
    """
    predicted = F.log_softmax(student.float() / temperature, dim=-1)
    wanted = F.log_softmax(teacher.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(predicted, wanted, log_target=True, reduction="sum")


def relative_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the sum over tokens of |student - teacher|^2 / |teacher|^2 for hidden states (P, D)."""
    student, teacher = student.float(), teacher.float()
    return ((student - teacher).square().sum(-1) / teacher.square().sum(-1)).sum()
