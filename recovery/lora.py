"""LoRA recovery through peft and transformers' Trainer, on the pruned model, merged at the end.

The adapters are trained once, saved, and then always loaded from what was saved: a run that finds them in the cache goes
on exactly like the one that trained them. The last step is taken, never the best of several on test data.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.progress import loop
from recovery.base import Log, Recovery, RecoveryReport

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruning.cache import Cache

logger = logging.getLogger(__name__)

LogStep = Callable[[int, float], None]
"""Receives a step of one part, from 1 on, and its loss."""


@dataclass
class Lora(Recovery):
    """Low-rank adapters on the projections, trained on next-token loss. Defaults are LLM-Pruner's, steps apart."""

    r: int = 8
    """Rank of the adapters."""

    alpha: int = 16
    """The update is scaled by alpha / r."""

    dropout: float = 0.05
    target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    learning_rate: float = 1e-4
    warmup_steps: int = 10
    scheduler: str = "linear"
    """Name of a transformers learning-rate schedule."""

    weight_decay: float = 0.0
    steps: int = 100
    """Optimiser steps in all, over all parts."""

    batch_size: int = 8
    """Blocks in one step."""

    micro_batch_size: int = 4
    """Blocks in one forward pass; gradients are added up to `batch_size`."""

    length: int = 128
    """Tokens in a block."""

    def __post_init__(self) -> None:
        for name in ("r", "alpha", "steps", "batch_size", "micro_batch_size", "length"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"recovery.{name}={value}: must be at least 1")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"recovery.micro_batch_size={self.micro_batch_size}: must divide recovery.batch_size={self.batch_size}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"recovery.dropout={self.dropout}: must be in [0, 1)")
        if self.learning_rate <= 0:
            raise ValueError(f"recovery.learning_rate={self.learning_rate}: must be above 0")

    def parts(self, events: int) -> int:
        """Return the number of trainings; each must have a step.

        Raises:
            ValueError: there are fewer steps than events to recover after.
        """
        parts = super().parts(events)
        if self.steps < parts:
            raise ValueError(f"recovery.steps={self.steps}: must be at least the {parts} events it is shared out over")
        return parts

    def blocks_needed(self) -> tuple[int, int]:
        """Return the blocks of one pass without repetition: steps x batch size, and their length."""
        return self.steps * self.batch_size, self.length

    def recover(
        self, model: PreTrainedModel, blocks: torch.Tensor, *, part: int, parts: int, seed: int, cache: Cache, log: Log
    ) -> RecoveryReport:
        """Train adapters on one part of the steps and merge them; see the base class."""
        from peft import PeftModel

        from pruning.model import fingerprint

        done = self.steps * part // parts
        steps = self.steps * (part + 1) // parts - done
        own = blocks[done * self.batch_size : (done + steps) * self.batch_size]
        inputs = {
            "model": fingerprint(model),
            "settings": self.settings(),
            "part": [part, parts],
            "seed": seed,
            "blocks": own.tolist(),
        }
        trained_now = []

        def log_step(step: int, loss: float) -> None:
            log({"recovery/step": done + step, "recovery/loss": loss})

        def train(folder: Path) -> None:
            with loop("training", steps) as step_over:

                def log_live(step: int, loss: float) -> None:
                    log_step(step, loss)
                    step_over()

                self._train(model, own, steps, seed, folder, log_live)
            trained_now.append(folder)

        folder = cache.folder("adapters", inputs, train)
        report = json.loads((folder / "report.json").read_text())
        losses = report.pop("losses")
        if not trained_now:
            for step, loss in enumerate(losses, start=1):
                log_step(step, loss)
        merged = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=True).merge_and_unload()
        assert merged is model
        model.requires_grad_(True).eval()
        return RecoveryReport(**report, adapter=folder)

    def _train(
        self, model: PreTrainedModel, blocks: torch.Tensor, steps: int, seed: int, folder: Path, log: LogStep
    ) -> None:
        """Train adapters on `blocks` (N, T), save them and a report in `folder`, and take them out of the model."""
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import PrinterCallback, Trainer, set_seed

        use_cache = model.config.use_cache
        set_seed(seed)
        adapted = get_peft_model(
            model,
            LoraConfig(
                r=self.r,
                lora_alpha=self.alpha,
                lora_dropout=self.dropout,
                target_modules=list(self.target_modules),
                task_type="CAUSAL_LM",
            ),
        )
        trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
        rows = [{"input_ids": row, "labels": row} for row in blocks]
        callback = loss_callback(log)
        trainer = Trainer(
            model=adapted,
            args=self._arguments(folder, steps, seed, model.device.type),
            train_dataset=rows,
            callbacks=[callback],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        model.config.use_cache = use_cache  # the Trainer switches it off, and it would be saved so
        if not math.isfinite(callback.losses[-1]):
            raise RuntimeError(f"the recovery diverged: loss {callback.losses[-1]}; lower recovery.learning_rate")
        tail = callback.losses[-max(1, steps // 10) :]
        report = {
            "steps": steps,
            "tokens": blocks.numel(),
            "trained_parameters": trained,
            "train_loss": sum(tail) / len(tail),
            "losses": callback.losses,
        }
        adapted.save_pretrained(str(folder))
        (folder / "report.json").write_text(json.dumps(report))
        adapted.unload()
        model.eval()
        del trainer
        torch.cuda.empty_cache()

    def _arguments(self, folder: Path, steps: int, seed: int, device: str) -> Any:
        from transformers import TrainingArguments

        return TrainingArguments(
            output_dir=str(folder / "trainer"),
            max_steps=steps,
            per_device_train_batch_size=self.micro_batch_size,
            gradient_accumulation_steps=self.batch_size // self.micro_batch_size,
            learning_rate=self.learning_rate,
            warmup_steps=min(self.warmup_steps, steps // 2),
            lr_scheduler_type=self.scheduler,
            weight_decay=self.weight_decay,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            seed=seed,
            data_seed=seed,
            use_cpu=device == "cpu",
            dataloader_pin_memory=device != "cpu",
            remove_unused_columns=False,
            disable_tqdm=True,  # the run's own display shows the steps
        )


def loss_callback(log: LogStep) -> Any:
    """Return a Trainer callback that hands every step's loss to `log` and keeps the losses."""
    from transformers import TrainerCallback

    class LossCallback(TrainerCallback):
        def __init__(self) -> None:
            self.losses: list[float] = []

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                self.losses.append(float(logs["loss"]))
                if state.global_step % max(1, state.max_steps // 10) == 0:
                    logger.info("  step %d of %d: loss %.3f", state.global_step, state.max_steps, self.losses[-1])
                log(state.global_step, self.losses[-1])

    return LossCallback()
