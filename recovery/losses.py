"""Losses of a batch, nats per token: sums over the tokens that are learnt, divided by their number in the whole step.

Logits are the largest things of a training by far: SmolLM2's for 512 tokens take 100 MB in float32, and autograd would keep and
pass over several copies. So the head, the loss and its gradient, which is known in closed form, are done in one go, for a part
of the tokens at a time. Letters: P learnt tokens, R of them at a time, T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from pruning.packing import NOT_LEARNT, labels_of
from recovery.head import Logits, head_of, logits_of, run, run_body
from recovery.objectives import Batch

ROWS = 256
"""Tokens whose logits are there at a time."""

TeacherOutputs = Callable[[Batch], tuple[torch.Tensor, Logits]]
"""From a batch to the dense model's last hidden states (P, D) and its logits (P, V) where a learnt token comes next."""


@dataclass(frozen=True)
class TokenLoss:
    """weight x divergence + (1 - weight) x cross-entropy + hidden_weight x distance of the hidden states."""

    head_is_last: bool
    """Whether the model's logits are its head's output and nothing else."""

    teacher: TeacherOutputs | None = None
    """None with weight 0 and hidden_weight 0."""

    temperature: float = 1.0
    weight: float = 0.0
    hidden_weight: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch, items: torch.Tensor | int) -> torch.Tensor:
        """Return the batch's part of the mean over the `items` learnt tokens of its step, nats per token."""
        states, targets, logits = self._predicted(model, batch["blocks"])
        wanted_states, wanted = self.teacher(batch) if self.teacher else (None, None)
        loss = _SummedLoss.apply(logits.values, logits, targets, wanted, self.temperature, self.weight)
        if self.hidden_weight:
            assert wanted_states is not None
            loss = loss + self.hidden_weight * relative_distance(states, wanted_states)
        return loss / items

    def _predicted(self, model: nn.Module, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Logits]:
        """Return states (P, D) where a learnt token comes next, these tokens (P,), and the logits there."""
        head = head_of(model)
        if self.head_is_last and type(head) is nn.Linear and not any(one.requires_grad for one in head.parameters()):
            states, targets = learnt(run_body(model, blocks), blocks)
            return states, targets, logits_of(states, head)
        states, logits = run(model, blocks)
        values, targets = learnt(logits, blocks)
        return learnt(states, blocks)[0], targets, logits_of(values, None)


class _SummedLoss(torch.autograd.Function):
    """The sum over tokens of weight x divergence + (1 - weight) x cross-entropy, with the gradient by the logits' values."""

    @staticmethod
    def forward(
        ctx: Any,
        values: torch.Tensor,
        logits: Logits,
        targets: torch.Tensor,
        wanted: Logits | None,
        temperature: float,
        weight: float,
    ) -> torch.Tensor:
        total, gradient = values.new_zeros((), dtype=torch.float32), torch.empty_like(values)
        for start in range(0, len(values), ROWS):
            rows = slice(start, start + ROWS)
            others = None if wanted is None else wanted.of(rows)
            loss, by_logits = mixed_loss(logits.of(rows), targets[rows], others, temperature, weight)
            total += loss
            gradient[rows] = logits.pull_back(by_logits)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *by_loss: torch.Tensor) -> Any:
        return ctx.saved_tensors[0] * by_loss[0], None, None, None, None, None


def mixed_loss(
    logits: torch.Tensor, targets: torch.Tensor, wanted: torch.Tensor | None, temperature: float, weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of some tokens, summed, in nats, and its gradient by their logits, in closed form.

    (1 - weight) x cross-entropy, whose gradient is softmax - one-hot, plus weight x temperature^2 x KL(wanted || predicted),
    both softened, whose gradient is temperature x (softmax of the predicted - of the wanted). Hinton, Vinyals, Dean,
    "Distilling the knowledge in a neural network" (2015), section 2: the factor keeps the size of the gradient when the
    temperature changes.

    Args:
        logits: what is predicted, (R, V).
        targets: the tokens, (R,).
        wanted: the dense model's logits, (R, V), or None with weight 0.
        temperature: divides both models' logits in the divergence.
        weight: of the divergence.
    """
    predicted = _Distribution.of(logits)
    loss, gradient = -predicted.logs.gather(1, targets[:, None]).sum(), predicted.chances
    if wanted is not None and weight > 0:
        softened = predicted if temperature == 1 else _Distribution.of(logits / temperature)
        teacher = _Distribution.of(wanted if temperature == 1 else wanted / temperature)
        kl = torch.dot(teacher.chances.flatten(), teacher.logs.sub_(softened.logs).flatten())
        loss = (1 - weight) * loss + weight * temperature**2 * kl
        by_kl = teacher.chances.neg_().add_(softened.chances).mul_(temperature)
        gradient = gradient.lerp_(by_kl, weight)
    gradient[torch.arange(len(targets), device=targets.device), targets] -= 1 - weight
    return loss, gradient


class _Distribution(NamedTuple):
    """Softmax of logits and its logarithm, (R, V)."""

    chances: torch.Tensor
    logs: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor) -> _Distribution:
        # Each made of the logits: the exponential of the logarithms is slow where chances are next to nothing.
        return cls(logits.softmax(dim=-1), F.log_softmax(logits, dim=-1))


def relative_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the sum over tokens of |student - teacher|^2 / |teacher|^2 for hidden states (P, D)."""
    student, teacher = student.float(), teacher.float()
    return ((student - teacher).square().sum(-1) / teacher.square().sum(-1)).sum()


def learnt(values: torch.Tensor, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a model gave where a learnt token comes next, (P, D) of `values` (B, T, D), and those tokens (P,)."""
    targets = labels_of(blocks)[:, 1:]
    chosen = targets != NOT_LEARNT
    if chosen.all():  # the gradient of a choice is slow
        return values[:, :-1].flatten(0, 1), targets.flatten()
    return values[:, :-1][chosen], targets[chosen]
