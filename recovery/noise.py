"""Noise on some units while a model is trained: when it acts, and which recoveries it goes with."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from pruning.noise import Noise


class NoiseCallback(TrainerCallback):
    """Has the noise act from the first step on for as many steps as it lasts, at most to the end of the training.

    Must come before the callbacks that score the model. No checkpoint is written meanwhile: weights would be saved as the
    noise has made them.
    """

    def __init__(self, noise: Noise) -> None:
        self.noise = noise
        self.stack = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin, unless the training goes on from a checkpoint: then the noise is over."""
        if state.global_step == 0:
            self.stack.enter_context(self.noise.acting())

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Go on to the next step."""
        if 0 < state.global_step < self.noise.steps:
            self.noise.renew()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End where it is time."""
        if state.global_step >= min(self.noise.steps, state.max_steps):
            self.stack.close()
        else:
            control.should_save = False

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End, should the training have stopped early."""
        self.stack.close()
