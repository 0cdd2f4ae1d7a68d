"""No recovery: the model stays as the cut left it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recovery.base import Log, Recovery, RecoveryReport

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruning.cache import Cache


@dataclass
class NoRecovery(Recovery):
    """Trains nothing."""

    def blocks_needed(self) -> tuple[int, int]:
        """Return (0, 0): no text is needed."""
        return 0, 0

    def recover(
        self, model: PreTrainedModel, blocks: torch.Tensor, *, part: int, parts: int, seed: int, cache: Cache, log: Log
    ) -> RecoveryReport:
        """Leave the model as it is."""
        return RecoveryReport(steps=0, tokens=0, trained_parameters=0, train_loss=float("nan"))
