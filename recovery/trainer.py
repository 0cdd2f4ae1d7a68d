"""The training loop: transformers' Trainer, checkpoints to go on from, and a watch over it.

A checkpoint counts once its last file, the kept state, is there: after a process was killed while it wrote one, the training
goes on from the one before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from recovery.divergence import DivergenceCallback
from recovery.kept_state import KeptState, load_weights, trained_weights
from recovery.noise import NoiseCallback
from recovery.objectives import BatchLoss
from recovery.watching import WatchCallback, trajectory

if TYPE_CHECKING:
    from pruning.noise import Noise

logger = logging.getLogger(__name__)

TRAINED = "trained.safetensors"
KEPT = "kept.safetensors"

LogStep = Callable[[int, float], None]
"""Receives a step of one training, from 1 on, and its loss."""


@dataclass(frozen=True)
class Course:
    """How a training went."""

    losses: list[float]
    """Of every step carried out, nats per token, in training mode."""

    trajectory: list[dict[str, float]]
    diverged: bool
    taken_step: int
    """Steps after which the weights were as they are taken."""


class ObjectiveTrainer(Trainer):
    """A Trainer whose loss is an objective's, and whose checkpoints hold only the weights that are trained.

    Args:
        trained: the model; its parameters that require gradients are trained.
        batch_loss: the objective's.
        learning: makes the context of the passes that are learnt from.
        options: the Trainer's.
    """

    def __init__(
        self,
        trained: nn.Module,
        batch_loss: BatchLoss,
        learning: Callable[[], AbstractContextManager[Any]],
        **options: Any,
    ) -> None:
        super().__init__(model=trained, **options)
        self.trained = trained
        self.batch_loss = batch_loss
        self.learning = learning
        self.model_accepts_loss_kwargs = True  # so that the learnt tokens of a step are counted ...
        self.loss_is_scaled_for_ga = True  # ... and the loss is not divided once more

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the objective's loss of a batch, times the number of processes: the mean over them is taken of gradients.

        Dropout is drawn anew for every batch by the place of its first row, so it is the same whichever process has it.
        """
        torch.manual_seed(1_000_003 * self.args.seed + int(inputs["index"][0]))
        with self.learning():
            return self.batch_loss(model, inputs, num_items_in_batch) * self.accelerator.num_processes

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: the Trainer cannot tell them from these batches, and nobody reads them."""
        return 0

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained weights into a checkpoint."""
        assert output_dir is not None
        if self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            save_file(trained_weights(self.trained), Path(output_dir) / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self.trained, load_file(Path(resume_from_checkpoint) / TRAINED))


class CheckpointCallback(TrainerCallback):
    """Writes the kept state into every checkpoint as its last file, and reads it when a training goes on."""

    def __init__(self, kept: KeptState, resumed: Path | None) -> None:
        self.kept = kept
        self.resumed = resumed

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up what was kept."""
        if self.resumed:
            self.kept.load(self.resumed / KEPT)
            device = next(kwargs["model"].parameters()).device
            self.kept.weights = {name: weight.to(device) for name, weight in self.kept.weights.items()}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write none after the last step."""
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Complete the checkpoint."""
        if state.is_world_process_zero:
            self.kept.save(Path(args.output_dir) / f"checkpoint-{state.global_step}" / KEPT)


class LogCallback(TrainerCallback):
    """Hands every step's loss on, after a resumption those of the steps before it first."""

    def __init__(self, log: LogStep) -> None:
        self.log = log

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Hand on the losses of the steps done before a kill."""
        for step, loss in enumerate(losses_of(state), start=1):
            self.log(step, loss)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hand on a step's loss."""
        logs = kwargs["logs"]
        if "loss" in logs:
            if state.global_step % max(1, state.max_steps // 10) == 0:
                logger.info("  step %d of %d: loss %.3f", state.global_step, state.max_steps, logs["loss"])
            self.log(state.global_step, float(logs["loss"]))


def train(
    model: nn.Module,
    rows: Sequence[dict[str, Any]],
    loss: BatchLoss,
    learning: Callable[[], AbstractContextManager[Any]],
    arguments: TrainingArguments,
    watch: WatchCallback,
    log: LogStep,
    noise: Noise | None,
) -> Course:
    """Train the parameters of `model` that require gradients, and leave in them what is taken.

    Args:
        model: in place.
        rows: what is trained on, in this order.
        loss: of a batch.
        learning: makes the context of the passes that are learnt from.
        arguments: the Trainer's; the last complete checkpoint in its output folder is gone on from.
        watch: scores texts in the course of it.
        log: receives the losses.
        noise: acts on the model from the first step on.

    Raises:
        RuntimeError: the loss is not finite from the first step on, so there is no good state.
    """
    kept, resumed = watch.kept, last_checkpoint(Path(str(arguments.output_dir)))
    divergence = DivergenceCallback(kept, keeps=watch.patience is None)
    noises = [NoiseCallback(noise)] if noise else []
    trainer = ObjectiveTrainer(
        model,
        loss,
        learning,
        args=arguments,
        train_dataset=rows,
        callbacks=[*noises, CheckpointCallback(kept, resumed), LogCallback(log), watch, divergence],
    )
    trainer.remove_callback(PrinterCallback)
    if resumed:
        logger.info("  going on from %s", resumed.name)
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    losses, taken = losses_of(trainer.state), trainer.state.global_step
    if divergence.diverged or watch.patience is not None:
        if kept.step is None:
            raise RuntimeError(f"the recovery cannot begin: the loss of the model is {losses[-1]} before any training")
        kept.restore(model)
        taken = kept.step
    return Course(losses, trajectory(trainer.state), divergence.diverged, taken)


def losses_of(state: Any) -> list[float]:
    """Return the losses of the steps carried out so far, from a Trainer's state."""
    return [float(row["loss"]) for row in state.log_history if "loss" in row]


def last_checkpoint(folder: Path) -> Path | None:
    """Return the complete checkpoint with the most steps in a Trainer's output folder, or None."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{KEPT}")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
