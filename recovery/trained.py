"""What the recoveries that train have in common: the text, the steps, the loop, and what is kept of it.

A training is done once, saved, and then always loaded from what was saved: a run that finds it in the cache goes on exactly
like the one that trained. The last step is taken, never the best of several on test data.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pruning.autocast import check_bf16, is_in_bfloat16, passes
from pruning.mixture import MixturePart, check_parts, part_documents
from pruning.progress import loop
from recovery.base import Log, Recovery
from recovery.objectives import Objective
from recovery.processes import check_processes, processes_on
from recovery.task import RecoveryReport, RecoveryTask

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pruning.cache import Cache
    from pruning.documents import Documents
    from pruning.removal import UnitRemoval

logger = logging.getLogger(__name__)


@dataclass
class TrainedRecovery(Recovery):
    """Base of the options that train something."""

    kind: ClassVar[str]
    """What is kept in the cache, and under which name."""

    is_adapter: ClassVar[bool] = False
    """Whether what is kept is an adapter in peft's own format."""

    objective: Objective = field(default_factory=Objective)
    data: dict[str, MixturePart] = field(default_factory=dict)
    """Text of the recovery's own, in named parts as in data=mixture; without any it reads the run's `data`."""

    learning_rate: float = 1e-3
    warmup_steps: int = 16
    scheduler: str = "linear"
    """Name of a transformers learning-rate schedule."""

    weight_decay: float = 0.0
    steps: int = 240
    """Optimiser steps in all, over all trainings."""

    batch_size: int = 4
    """Blocks in one step."""

    micro_batch_size: int = 4
    """Blocks in one forward pass; gradients are added up to `batch_size`."""

    length: int = 128
    """Tokens in a block."""

    target_modules: list[str] | None = None
    """Last parts of the names of the linear maps that are trained, e.g. [q_proj, v_proj]; null: see the option."""

    patience: int | None = None
    """Scorings of the validation blocks, one every `watch_every` steps, without a better one after which training ends; the
    best state is taken then. null: all steps, and the last state."""

    validation_blocks: int = 16
    """With patience: blocks of the recovery's own held-out text. They are not in any figure that is reported."""

    save_every: int = 100
    """Steps from one checkpoint to the next: a run that was killed goes on from the last, to the same result."""

    gradient_checkpointing: bool = False
    """Whether activations are computed again for the gradient instead of kept: less memory, about a third slower."""

    bf16: bool | str = False
    """Whether training computes matrix products in bfloat16, by autocast, while weights, sums and the loss keep their type;
    auto: for a float32 model where processor or GPU computes in it. Scores in between are taken without."""

    processes: int | str = 1
    """Processes that share out each step, one on each GPU, or auto for one on every visible GPU; the result is the same up to
    rounding."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parts(self.data, "recovery.data")
        for name in ("steps", "batch_size", "micro_batch_size", "length", "validation_blocks", "save_every"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"recovery.{name}={value}: must be at least 1")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"recovery.micro_batch_size={self.micro_batch_size}: must divide recovery.batch_size={self.batch_size}"
            )
        check_bf16("recovery.bf16", self.bf16)
        if isinstance(self.processes, int):
            check_processes(self.processes, self.batch_size, self.micro_batch_size)
        elif self.processes != "auto":
            raise ValueError(f"recovery.processes={self.processes}: must be a number, or auto for one on each GPU")
        if self.learning_rate <= 0:
            raise ValueError(f"recovery.learning_rate={self.learning_rate}: must be above 0")
        if self.target_modules is not None and not self.target_modules:
            raise ValueError(
                "recovery.target_modules=[]: must name linear maps, or be null for the option's own choice"
            )
        if self.patience is not None:
            if self.patience < 1:
                raise ValueError(f"recovery.patience={self.patience}: must be at least 1, or null")
            if self.watch_every is None:
                raise ValueError(
                    f"recovery.patience={self.patience}: needs recovery.watch_every, the steps between scorings"
                )

    @property
    def total_steps(self) -> int:
        """The `steps`."""
        return self.steps

    def blocks_needed(self) -> tuple[int, int]:
        """Return the blocks of one pass without repetition: steps x batch size, and their length."""
        return self.steps * self.batch_size, self.length

    def documents(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, seed: int
    ) -> list[Documents]:
        """Return the documents of `data`."""
        return part_documents(self.data, "recovery.data", model, tokenizer, cache, seed)

    def validation_needed(self) -> tuple[int, int]:
        """Return the blocks that decide on an early end, and their length."""
        return (self.validation_blocks, self.length) if self.patience is not None else (0, 0)

    def check_removal(self, removal: UnitRemoval, events: int) -> None:
        """Raise, too, where a state could be taken in which units are still removed; see the base class."""
        super().check_removal(removal, events)
        if removal.is_temporary and self.patience is not None:
            raise ValueError(
                f"recovery.patience={self.patience}: the best state may be one in which units are still removed for a while; "
                "set it to null, or use removal=cut"
            )
        if removal.needs_trained_base and self.target_modules is not None:
            raise ValueError(
                f"{removal.needs_trained_base}: every map that the units lie in must be trained; set recovery.target_modules "
                "to null"
            )

    def check_model(self, model: PreTrainedModel) -> None:
        """Raise where the model cannot be trained as asked for."""
        from recovery.targets import linear_maps

        linear_maps(model, self.target_modules)
        processes_on(model.device.type, self)
        if self.gradient_checkpointing and not model.supports_gradient_checkpointing:
            raise ValueError(
                f"recovery.gradient_checkpointing=true: {type(model).__name__} does not support it; set it to false"
            )

    def trained_maps(self, model: PreTrainedModel, cut_maps: Collection[str] | None) -> list[str]:
        """Return the names of the linear maps that are trained."""
        from recovery.targets import linear_maps

        return linear_maps(model, self.target_modules)

    def adapt(self, model: PreTrainedModel, maps: Sequence[str]) -> nn.Module:
        """Return what is trained so that these linear maps are: of it, the parameters that require gradients."""
        raise NotImplementedError

    def keep(self, trained: nn.Module, folder: Path) -> None:
        """Write what was trained into a folder, and leave the model fit for `take`."""
        raise NotImplementedError

    def take(self, model: PreTrainedModel, folder: Path, batch: torch.Tensor) -> float:
        """Put what was kept into the model, and return the error of that: see `RecoveryReport.merge_error`."""
        raise NotImplementedError

    def computing(self, model: PreTrainedModel) -> AbstractContextManager[Any]:
        """Return the context in which `model` can run while it is adapted."""
        return nullcontext()

    def learning(self, model: PreTrainedModel) -> AbstractContextManager[Any]:
        """Return the context of the passes that are learnt from."""
        return passes(self.bf16, model) if is_in_bfloat16(self.bf16, model) else self.computing(model)

    def recover(self, model: PreTrainedModel, task: RecoveryTask, cache: Cache, log: Log) -> RecoveryReport:
        """Train for some of the steps and take the result into the model; see the base class."""
        from pruning.files import remove
        from recovery.training import REPORT, Training

        steps = task.steps
        own = task.blocks[steps.start * self.batch_size : steps.stop * self.batch_size]
        training = Training(self, model, self.trained_maps(model, task.cut_maps), replace(task, blocks=own))
        inputs = training.inputs()
        unfinished = cache.unfinished(self.kind, inputs)
        trained_now = []

        def log_step(step: int, loss: float) -> None:
            log({"recovery/step": steps.start + step, "recovery/loss": loss})

        def train(folder: Path) -> None:
            with loop("training", len(steps)) as step_over:

                def log_live(step: int, loss: float) -> None:
                    log_step(step, loss)
                    step_over()

                training.carry_out(cache, folder, unfinished, log_live)
            trained_now.append(folder)

        folder = cache.folder(self.kind, inputs, train)
        remove(unfinished)
        report = json.loads((folder / REPORT).read_text())
        losses = report.pop("losses")
        if not trained_now:
            for step, loss in enumerate(losses, start=1):
                log_step(step, loss)
        if report["diverged"]:
            logger.warning(
                "the recovery diverged at step %d (loss %s): the state after step %d is taken; lower recovery.learning_rate",
                steps.start + len(losses),
                losses[-1],
                report["taken_step"],
            )
        error = self.take(model, folder, own[: self.micro_batch_size].to(model.device))
        model.requires_grad_(True).eval()
        return RecoveryReport(**report, steps=steps, adapter=folder if self.is_adapter else None, merge_error=error)
