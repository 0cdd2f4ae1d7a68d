"""No recovery: the model stays as the cut left it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recovery.base import Log, Recovery, RecoveryReport

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruning.cache import Cache
    from pruning.noise import Noise
    from recovery.objectives import Teacher


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

    def recover(
        self,
        model: PreTrainedModel,
        blocks: torch.Tensor,
        *,
        steps: range,
        seed: int,
        cache: Cache,
        log: Log,
        watched: Mapping[str, torch.Tensor],
        teacher: Teacher,
        cut_maps: Collection[str] | None = None,
        noise: Noise | None = None,
    ) -> RecoveryReport:
        """Leave the model as it is."""
        return RecoveryReport()
