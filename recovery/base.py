"""The contract of a recovery: train a model for a given number of steps on given text, and hand it back merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pruning.cache import Cache
    from pruning.documents import Documents
    from pruning.removal import UnitRemoval
    from recovery.task import RecoveryReport, RecoveryTask

Log = Callable[[dict[str, float]], None]


class When(Enum):
    """After which events a model is recovered."""

    last = "last"
    each = "each"


@dataclass
class Recovery:
    """Base of the `recovery` options."""

    trains_base: ClassVar[bool] = False
    """Whether the model's own weights are trained, not adapters that are added to them."""

    when: When = When.last
    """last: after the last event, with all steps; each: after every event, steps in proportion to its ratio."""

    tail: float = 0.0
    """With when=each: fraction of all steps that is kept for after the last event."""

    watch_every: int | None = None
    """Steps from one scoring of the watched texts to the next; null: they are not watched."""

    def __post_init__(self) -> None:
        if not 0 <= self.tail < 1:
            raise ValueError(f"recovery.tail={self.tail:g}: must be in [0, 1)")
        if self.watch_every is not None and self.watch_every < 1:
            raise ValueError(f"recovery.watch_every={self.watch_every}: must be at least 1, or null")

    @property
    def total_steps(self) -> int:
        """Number of optimiser steps in all."""
        raise NotImplementedError

    def steps_after(self, before: float, now: float) -> range:
        """Return the steps that are due after an event, of all steps from 0 on; empty when none are.

        Args:
            before: progress before the event, in [0, 1].
            now: progress after it; 1 after the last event.
        """
        if self.when is When.last:
            return range(self.total_steps if now >= 1 else 0)
        shared = self.total_steps - round(self.tail * self.total_steps)
        start, stop = (int(shared * progress + 1e-9) for progress in (before, now))  # 3 * (1 / 3) may be below 1
        return range(start, self.total_steps if now >= 1 else stop)

    def check_events(self, events: int) -> None:
        """Raise when an event of `events` equal ones would be followed by no step, though when=each."""
        if self.when is When.last or not self.total_steps:
            return
        if not all(self.steps_after(event / events, (event + 1) / events) for event in range(events)):
            raise ValueError(
                f"recovery.steps={self.total_steps}: too few to recover after each of {events} events with "
                f"recovery.tail={self.tail:g}: give more steps, or recovery.when=last"
            )

    def check_removal(self, removal: UnitRemoval, events: int) -> None:
        """Raise when units that are removed for a while would have no training to come back in, or could not."""
        if not removal.is_temporary:
            return
        if not self.total_steps:
            raise ValueError(
                "recovery=none: units that are removed for a while come back in training; use recovery=lora or "
                "recovery=full, or removal=cut"
            )
        if self.when is When.last and events > 1:
            raise ValueError(
                f"recovery.when=last: of {events} events only the last would be followed by steps for the removal to last; "
                "use recovery.when=each, or schedule=one_shot"
            )
        if removal.needs_trained_base and not self.trains_base:
            raise ValueError(
                f"{removal.needs_trained_base}: the units can grow only where their own weights are trained, and this "
                "recovery freezes them and trains adapters; use recovery=full, or have them restored"
            )

    def blocks_needed(self) -> tuple[int, int]:
        """Return the number and length (N, T) of the token blocks that all steps together train on; (0, 0) for none."""
        raise NotImplementedError

    def validation_needed(self) -> tuple[int, int]:
        """Return the number and length (N, T) of the held-out blocks that may end the training early; (0, 0) for none."""
        return 0, 0

    def check_model(self, model: PreTrainedModel) -> None:
        """Raise where the model cannot be trained as asked for."""

    def documents(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, seed: int
    ) -> list[Documents]:
        """Return the documents of the recovery's own text; empty where it reads the run's `data`."""
        return []

    def recover(self, model: PreTrainedModel, task: RecoveryTask, cache: Cache, log: Log) -> RecoveryReport:
        """Train `model` in place for some of the steps.

        The result depends on the model and the task only, so it is kept in the cache.

        Args:
            model: in evaluation mode before and after.
            task: what is done.
            cache: where the result is kept.
            log: receives the training loss as it comes, with its step.
        """
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Return the hyper-parameters as plain values."""
        return asdict(self)
