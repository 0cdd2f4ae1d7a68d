"""A training whose loss is no number any more, or runs away, is stopped, and its last good state is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from transformers import TrainerCallback

from recovery.kept_state import KeptState, trained_weights

WINDOW = 5
"""Steps over which losses are averaged."""

RISE = 2.0
"""Nats per token that the average may lie above its lowest; more, and the training has diverged."""


def has_diverged(losses: Sequence[float]) -> bool:
    """Say whether the last loss is not finite, or the mean of the last steps far above its lowest so far."""
    if not math.isfinite(losses[-1]):
        return True
    sums = list(accumulate(losses, initial=0.0))
    means = [(stop - start) / WINDOW for start, stop in zip(sums, sums[WINDOW:], strict=False)]
    return bool(means) and means[-1] > min(means) + RISE


class DivergenceCallback(TrainerCallback):
    """Stops a training that diverges. The loss of a step is that of the weights before it, so these are what proves good.

    Args:
        kept: receives the weights before each step whose loss is good.
        keeps: whether it does; else something else fills `kept`.
    """

    def __init__(self, kept: KeptState, keeps: bool) -> None:
        self.kept = kept
        self.keeps = keeps
        self.diverged = False
        self._before: dict[str, torch.Tensor] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the weights aside."""
        if self.keeps:
            self._before = trained_weights(kwargs["model"])

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Judge the step that was just logged."""
        losses = [row["loss"] for row in state.log_history if "loss" in row]
        if not losses or "loss" not in state.log_history[-1]:
            return
        if has_diverged(losses):
            self.diverged = True
            control.should_training_stop, control.should_save = True, False
        elif self.keeps and losses[-1] <= min(losses) + RISE:
            self.kept.keep(self._before, state.global_step - 1)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Judge the last weights, which no loss has been computed with."""
        if not all(weight.isfinite().all() for weight in trained_weights(kwargs["model"]).values()):
            self.diverged = True
