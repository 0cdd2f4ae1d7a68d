"""Scores of the watched texts in the course of a training: the points that trajectories are drawn from.

One of them may stop the training: `validation`, when it has not become better for some scorings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import TrainerCallback

from pruning.packing import model_inputs
from recovery.kept_state import KeptState, trained_weights
from recovery.losses import learnt

WATCHED = "watched"
"""Key of a point in the Trainer's own history, which it keeps in its checkpoints."""


class WatchCallback(TrainerCallback):
    """Scores the texts before the first of the steps, after the last, and after every so many.

    Args:
        watched: name -> token ids (N, T).
        steps: which of all steps this training does.
        every: steps of the whole budget from one scoring to the next; None for none in between.
        batch_size: blocks in one forward pass.
        computing: makes the context in which the model is run.
        patience: scorings without a better `validation` text after which the training is stopped; None for never.
        kept: receives the weights that are best on it.
    """

    def __init__(
        self,
        watched: Mapping[str, torch.Tensor],
        steps: range,
        every: int | None,
        batch_size: int,
        computing: Callable[[], AbstractContextManager[Any]],
        patience: int | None,
        kept: KeptState,
    ) -> None:
        self.watched = watched
        self.steps = steps
        self.every = every
        self.batch_size = batch_size
        self.computing = computing
        self.patience = patience
        self.kept = kept

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score what the training begins with, but not what it goes on from after a kill."""
        if state.global_step == 0:
            self._score(state, control, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score where it is due."""
        step = self.steps.start + state.global_step
        if step == self.steps.stop or (self.every and step % self.every == 0):
            self._score(state, control, kwargs["model"])

    def _score(self, state: Any, control: Any, model: nn.Module) -> None:
        if not self.watched:
            return
        with self.computing():
            found = [scores(model, self.watched, self.batch_size)]
        broadcast_object_list(found)  # processes that did not agree on when to stop would wait for each other
        state.log_history.append({WATCHED: {"step": self.steps.start + state.global_step, **found[0]}})
        if self.patience is None:
            return
        waited = scorings_since_best([row["validation/loss"] for row in trajectory(state)])
        if waited == 0:
            self.kept.keep(trained_weights(model), state.global_step)
        elif waited >= self.patience:
            control.should_training_stop = True


def trajectory(state: Any) -> list[dict[str, float]]:
    """Return the points scored so far, from a Trainer's state."""
    return [row[WATCHED] for row in state.log_history if WATCHED in row]


def scorings_since_best(losses: Sequence[float]) -> int:
    """Return how long ago the lowest loss was, its first time; 0 when it is the last one. NaN is never the best."""
    finite = [loss if loss == loss else float("inf") for loss in losses]
    return len(finite) - 1 - finite.index(min(finite))


def scores(model: nn.Module, watched: Mapping[str, torch.Tensor], batch_size: int) -> dict[str, float]:
    """Return `<name>/loss` and `<name>/tok_acc` of each text: nats per token, and the fraction that are the most likely.

    Args:
        model: left in the mode that it was in.
        watched: name -> token ids (N, T), or rows (N, 3, T) of which what is learnt counts.
        batch_size: blocks in one forward pass.
    """
    training = model.training
    device = next(model.parameters()).device
    model.eval()
    found: dict[str, float] = {}
    with torch.no_grad():
        for name, blocks in watched.items():
            loss, right, count = 0.0, 0, 0
            for batch in blocks.to(device).split(batch_size):
                logits, targets = learnt(model(**model_inputs(batch), use_cache=False).logits, batch)
                loss += float(nn.functional.cross_entropy(logits.float(), targets, reduction="sum"))
                right += int((logits.argmax(-1) == targets).sum())
                count += len(targets)
            found |= {f"{name}/loss": loss / count, f"{name}/tok_acc": right / count}
    model.train(training)
    return found
