"""What a recovery minimises. Letters: N blocks or rows, B of them in a batch, T tokens, V vocabulary.

A training sees its text as batches of `{"blocks": (B, T) or (B, 3, T), "index": (B,), "labels": (B, T)}`: the rows of
`pruning.packing`, where each stands among all rows of the recovery, and the labels, by which the learnt tokens of a step are
counted. The loss is a sum over learnt tokens divided by their number in the whole step, so it does not depend on how a step
is shared out over forward passes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruning.cache import Cache

Batch = dict[str, "torch.Tensor"]

BatchLoss = Callable[["torch.nn.Module", Batch, "torch.Tensor | int"], "torch.Tensor"]
"""From the model, a batch and the number of learnt tokens in its step to the batch's part of the loss, nats per token."""

Teacher = Callable[[], "PreTrainedModel"]
"""Loads the dense model."""

Computing = Callable[["PreTrainedModel"], AbstractContextManager[Any]]
"""From a model to the context, of autocast, in which it computes in a training."""


@dataclass
class Objective:
    """Next-token cross-entropy on what the text says, and the base of the other objectives.

    Of examples with a prompt only the response counts.
    """

    def cache_inputs(self, teacher: Teacher) -> dict[str, Any]:
        """Return what a training depends on besides the settings, the model and the blocks."""
        return {}

    def batch_loss(
        self, model: PreTrainedModel, blocks: torch.Tensor, teacher: Teacher, cache: Cache, computing: Computing
    ) -> BatchLoss:
        """Return the loss of a batch, once what it needs for all blocks is ready.

        Args:
            model: the pruned model, before adapters are put in.
            blocks: all blocks (N, T) or rows (N, 3, T) of the training; a batch's `index` counts them.
            teacher: loads the dense model; called only where an objective needs it.
            cache: where what many runs share is kept.
            computing: in which what is needed of the dense model is computed, too.

        Raises:
            ValueError: the objective does not fit the model.
        """
        from recovery.head import is_last
        from recovery.losses import TokenLoss

        return TokenLoss(is_last(model, blocks[:1].to(model.device)))


@dataclass
class Distillation(Objective):
    """Predict what the dense model predicts (Hinton et al., "Distilling the knowledge in a neural network", 2015)."""

    temperature: float = 1.0
    """Both models' logits are divided by it, and the divergence multiplied by its square, as there."""

    weight: float = 0.5
    """Of the divergence; the cross-entropy on the text has 1 - weight. In [0, 1]."""

    hidden_weight: float = 0.0
    """Of the squared distance of the last hidden states, relative to the dense model's; needs equal hidden widths."""

    store_gb: float = 2.0
    """The dense model's last hidden states of all blocks, from which its head makes its logits, are computed once and kept in
    the cache where they take at most so much; otherwise the dense model runs along with every batch."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"recovery.objective.temperature={self.temperature:g}: must be above 0")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"recovery.objective.weight={self.weight:g}: must be in [0, 1]")
        for name in ("hidden_weight", "store_gb"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"recovery.objective.{name}={value:g}: must be at least 0")
        if self.weight == 0 and self.hidden_weight == 0:
            raise ValueError(
                "recovery.objective.weight=0: nothing is left to distill; use recovery/objective=language_modelling"
            )

    def cache_inputs(self, teacher: Teacher) -> dict[str, Any]:
        """Return the dense model's fingerprint."""
        from pruning.model import fingerprint

        return {"teacher": fingerprint(teacher())}

    def batch_loss(
        self, model: PreTrainedModel, blocks: torch.Tensor, teacher: Teacher, cache: Cache, computing: Computing
    ) -> BatchLoss:
        """Return the mixed loss, after the dense model's states are in the cache; see the base class."""
        from recovery.distillation import require_equal_widths, teacher_outputs
        from recovery.head import is_last
        from recovery.losses import TokenLoss

        dense = teacher()
        if self.hidden_weight:
            require_equal_widths(model, dense)
        with computing(dense):
            outputs = teacher_outputs(dense, blocks, cache, int(self.store_gb * 1e9))
        lean = is_last(model, blocks[:1].to(model.device))
        return TokenLoss(lean, outputs, self.temperature, self.weight, self.hidden_weight)


def training_rows(blocks: torch.Tensor) -> list[dict[str, Any]]:
    """Return the rows that a Trainer makes batches of, one for each of the blocks (N, T) or rows (N, 3, T)."""
    from pruning.packing import as_rows

    return [
        {"blocks": block, "index": index, "labels": row[1]}
        for index, (block, row) in enumerate(zip(blocks, as_rows(blocks), strict=True))
    ]
