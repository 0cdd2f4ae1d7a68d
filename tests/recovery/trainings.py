"""A small text that is easy to learn, and a way to train on it in one line."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from pruning.cache import Cache
from recovery.task import RecoveryReport, RecoveryTask
from recovery.trained import TrainedRecovery

SMALL: dict[str, Any] = {
    "steps": 12,
    "batch_size": 4,
    "micro_batch_size": 2,
    "length": 16,
    "learning_rate": 1e-2,
    "warmup_steps": 1,
}


def text(recovery: TrainedRecovery) -> torch.Tensor:
    """Counting modulo 20."""
    count, length = recovery.blocks_needed()
    starts = torch.randint(20, (count, 1), generator=torch.Generator().manual_seed(0))
    return (starts + torch.arange(length)) % 20 + 2


def recover(
    model: PreTrainedModel, recovery: TrainedRecovery, cache: Cache, **options: Any
) -> tuple[RecoveryReport, list[dict[str, float]]]:
    logged: list[dict[str, float]] = []
    given = {"blocks": text(recovery), "steps": range(recovery.steps), "seed": 0, "teacher": lambda: model} | options
    report = recovery.recover(model, RecoveryTask(**given), cache, logged.append)
    return report, logged


def loss(model: PreTrainedModel, blocks: torch.Tensor) -> float:
    with torch.no_grad():
        return model(input_ids=blocks, labels=blocks).loss.item()
