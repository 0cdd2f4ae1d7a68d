"""No recovery: the model stays as the cut left it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recovery.base import Log, Recovery
from recovery.task import RecoveryReport, RecoveryTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.cache import Cache


@dataclass
class NoRecovery(Recovery):
    """Trains nothing."""

    @property
    def total_steps(self) -> int:
        """0."""
        return 0

    def blocks_needed(self) -> tuple[int, int]:
        """Return (0, 0): no text is needed."""
        return 0, 0

    def recover(self, model: PreTrainedModel, task: RecoveryTask, cache: Cache, log: Log) -> RecoveryReport:
        """Leave the model as it is."""
        return RecoveryReport()
