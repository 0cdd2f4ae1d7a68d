"""The contract of a recovery: train a model for a given number of steps on given text, and hand it back merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruning.cache import Cache

Log = Callable[[dict[str, float]], None]


class When(Enum):
    """After which events a model is recovered."""

    last = "last"
    each = "each"


@dataclass(frozen=True)
class RecoveryReport:
    """What a recovery did."""

    steps: int
    tokens: int
    """Tokens trained on, repetitions counted."""

    trained_parameters: int
    train_loss: float
    """Mean loss over the last tenth of the steps, nats per token, in training mode. NaN when there were no steps."""

    adapter: Path | None = None
    """Folder of the trained adapter in peft's own format."""

    def metrics(self) -> dict[str, float]:
        """Return the figures under their logged names."""
        names = ("steps", "tokens", "trained_parameters", "train_loss")
        return {f"recovery/{name}": float(getattr(self, name)) for name in names}


@dataclass
class Recovery:
    """Base of the `recovery` options."""

    when: When = When.last
    """last: after the last event, with all steps; each: after every event, with the steps shared out equally."""

    def parts(self, events: int) -> int:
        """Return into how many trainings the steps are divided when there are that many events."""
        return max(1, events) if self.when is When.each else 1

    def blocks_needed(self) -> tuple[int, int]:
        """Return the number and length (N, T) of the token blocks that all parts together train on; (0, 0) for none."""
        raise NotImplementedError

    def recover(
        self, model: PreTrainedModel, blocks: torch.Tensor, *, part: int, parts: int, seed: int, cache: Cache, log: Log
    ) -> RecoveryReport:
        """Train `model` in place on part `part` of `parts`, adapters merged at the end.

        The result depends on the model, the blocks, the part and the seed only, so it is kept in the cache.

        Args:
            model: in evaluation mode before and after.
            blocks: token ids for all parts, (N, T).
            part: 0-based.
            parts: number of parts the steps and blocks are divided into.
            seed: of the adapters' initial values, dropout and the order of the blocks.
            cache: where the trained adapters are kept.
            log: receives the training loss as it comes, with its step.
        """
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Return the hyper-parameters as plain values."""
        return asdict(self)
