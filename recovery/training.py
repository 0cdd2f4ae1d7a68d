"""One training: what it starts from and reads, what its result depends on, and what is written of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, TrainingArguments, set_seed

from pruning.autocast import is_in_bfloat16
from pruning.cache import Cache
from pruning.model import fingerprint
from pruning.packing import token_count
from recovery.kept_state import KeptState
from recovery.objectives import BatchLoss, training_rows
from recovery.processes import processes_on
from recovery.task import RecoveryTask
from recovery.trainer import Course, LogStep, train
from recovery.watching import WatchCallback
from recovery.workers import carry_out, save_work

if TYPE_CHECKING:
    from recovery.trained import TrainedRecovery

REPORT = "report.json"

WORK = "work.pt"
"""What the processes of a training read, beside its checkpoints while it lasts."""

SCHEDULING = ("when", "tail", "steps", "save_every", "data", "processes")
"""Settings that say when, how far, on what and by how many is trained: what one training comes to depends on its own blocks
alone, and up to rounding not on the number of processes."""


@dataclass(frozen=True)
class Training:
    """What one training starts from and reads; see `Recovery.recover`."""

    recovery: TrainedRecovery
    model: PreTrainedModel
    maps: list[str]
    """Names of the linear maps that are trained."""

    task: RecoveryTask
    """Its blocks are those of its own steps."""

    def inputs(self) -> dict[str, Any]:
        """Return what the result depends on."""
        recovery, task = self.recovery, self.task
        settings = recovery.settings() | {"bf16": is_in_bfloat16(recovery.bf16, self.model)}
        return {
            "model": fingerprint(self.model),
            "settings": {name: value for name, value in settings.items() if name not in SCHEDULING},
            "objective": [type(recovery.objective).__name__, recovery.objective.cache_inputs(task.teacher)],
            "maps": self.maps,
            "steps": [task.steps.start, task.steps.stop],
            "seed": task.seed,
            "blocks": task.blocks.tolist(),
            "watched": {name: text.tolist() for name, text in task.watched.items()},
            "noise": task.noise and task.noise.identity,
        }

    def carry_out(self, cache: Cache, folder: Path, unfinished: Path, log: LogStep) -> None:
        """Train, and write what came of it, and a report, into `folder`; checkpoints are in `unfinished` meanwhile."""
        device, places = self.model.device.type, (folder, unfinished, KeptState())
        processes = processes_on(device, self.recovery)
        if processes == 1:
            self.train(self._loss(cache), *places, log)
            return
        unfinished.mkdir(parents=True, exist_ok=True)
        without_teacher = replace(self, task=replace(self.task, teacher=no_teacher))
        save_work(partial(without_teacher.train, self._loss(cache), *places), unfinished / WORK)
        with off_the_gpu(self.model):
            carry_out(unfinished / WORK, processes, device, log)

    def _loss(self, cache: Cache) -> BatchLoss:
        task = self.task
        return self.recovery.objective.batch_loss(self.model, task.blocks, task.teacher, cache, self.recovery.learning)

    def train(self, loss: BatchLoss, folder: Path, unfinished: Path, kept: KeptState, log: LogStep) -> None:
        """Train with a loss that is ready, as one of the recovery's processes; see `carry_out`.

        Args:
            loss: of a batch.
            folder: for what came of it.
            unfinished: for checkpoints.
            kept: nothing yet; it knows when the work began.
            log: receives the losses.
        """
        recovery, model, task = self.recovery, self.model, self.task
        set_seed(task.seed)
        adapted = recovery.adapt(model, self.maps)
        watch = WatchCallback(
            task.watched,
            task.steps,
            recovery.watch_every,
            recovery.micro_batch_size,
            partial(recovery.computing, model),
            recovery.patience,
            kept,
        )
        arguments = trainer_arguments(recovery, unfinished, len(task.steps), task.seed, model.device.type)
        with unchanged_config(model), less_memory(model, recovery.gradient_checkpointing):
            learning = partial(recovery.learning, model)
            course = train(adapted, training_rows(task.blocks), loss, learning, arguments, watch, log, task.noise)
        if arguments.should_save:  # one of the processes does
            report = self._report(course) | {
                "trained_parameters": sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad),
                "seconds": kept.seconds,
            }
            recovery.keep(adapted, folder)
            (folder / REPORT).write_text(json.dumps(report))
        model.eval()
        torch.cuda.empty_cache()

    def _report(self, course: Course) -> dict[str, Any]:
        good = course.losses[: course.taken_step]
        tail = good[-max(1, len(good) // 10) :]
        return {
            "tokens": token_count(self.task.blocks[: len(course.losses) * self.recovery.batch_size]),
            "train_loss": sum(tail) / len(tail) if tail else math.nan,
            "diverged": course.diverged,
            "taken_step": self.task.steps.start + course.taken_step,
            "losses": course.losses,
            "trajectory": course.trajectory,
        }


def trainer_arguments(recovery: TrainedRecovery, folder: Path, steps: int, seed: int, device: str) -> TrainingArguments:
    """Return the Trainer's arguments for so many steps on a type of device; `folder` holds its checkpoints."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=recovery.micro_batch_size,
        gradient_accumulation_steps=recovery.batch_size // (recovery.micro_batch_size * processes_on(device, recovery)),
        train_sampling_strategy="sequential",
        learning_rate=recovery.learning_rate,
        warmup_steps=min(recovery.warmup_steps, steps // 2),
        lr_scheduler_type=recovery.scheduler,
        weight_decay=recovery.weight_decay,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=recovery.save_every,
        save_total_limit=2,
        report_to="none",
        seed=seed,
        data_seed=seed,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device != "cpu",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,  # the run's own display shows the steps
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # a process has one GPU; the Trainer would make the batches larger for those it finds
    return arguments


def no_teacher() -> PreTrainedModel:
    """Stand for a teacher where the loss is ready."""
    raise AssertionError("the loss is ready")


@contextmanager
def off_the_gpu(model: PreTrainedModel) -> Iterator[None]:
    """Leave the model's place on its GPU to the process that trains a copy there."""
    device = model.device
    model.to("cpu")  # type: ignore[arg-type]
    torch.cuda.empty_cache()
    try:
        yield
    finally:
        model.to(device)  # type: ignore[arg-type]


@contextmanager
def unchanged_config(model: PreTrainedModel) -> Iterator[None]:
    """Undo what the Trainer changes in the model's configuration, which would be saved with it."""
    known, before = hasattr(model.config, "use_cache"), getattr(model.config, "use_cache", None)
    yield
    if known:
        model.config.use_cache = before
    else:
        del model.config.use_cache


@contextmanager
def less_memory(model: PreTrainedModel, checkpointing: bool) -> Iterator[None]:
    """Have activations computed again for the gradient inside the block, where that is asked for."""
    if not checkpointing:
        yield
        return
    model.activation_checkpointing_enable({"use_reentrant": False})
    yield
    model.activation_checkpointing_disable()
