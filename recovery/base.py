"""The contract of a recovery: train a model for a given number of steps on given text, and hand it back merged."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pruning.cache import Cache
    from pruning.documents import Documents
    from pruning.noise import Noise
    from pruning.removal import UnitRemoval
    from recovery.objectives import Teacher

Log = Callable[[dict[str, float]], None]


class When(Enum):
    """After which events a model is recovered."""

    last = "last"
    each = "each"


@dataclass(frozen=True)
class RecoveryReport:
    """What one training did."""

    steps: range = range(0)
    """Which of all steps were due."""

    tokens: int = 0
    """Tokens trained on, repetitions counted."""

    trained_parameters: int = 0
    train_loss: float = math.nan
    """Mean loss over the last tenth of the steps, nats per token, in training mode. NaN when there were no steps."""

    adapter: Path | None = None
    """Folder of the trained adapter in peft's own format."""

    trajectory: list[dict[str, float]] = field(default_factory=list)
    """One row for each step at which the watched texts were scored: `step`, of the whole budget, and of each text
    `<name>/loss` (nats per token) and `<name>/tok_acc` (fraction), in evaluation mode."""

    diverged: bool = False
    """Whether the loss was no number any more or ran away, so that training stopped and an earlier state was taken."""

    taken_step: int = 0
    """Steps of all steps done when the weights were as they were taken: the last, unless it diverged or was ended early."""

    merge_error: float = 0.0
    """Largest difference of the logits on one batch before and after merging, relative to the largest logit."""

    seconds: float = field(default=0.0, compare=False)
    """Time that the training took when it was done, what its objective needs of the dense model included."""

    def metrics(self) -> dict[str, float]:
        """Return the figures under their logged names."""
        names = ("tokens", "trained_parameters", "train_loss", "diverged", "taken_step", "merge_error", "seconds")
        return {"recovery/steps": float(len(self.steps))} | {
            f"recovery/{name}": float(getattr(self, name)) for name in names
        }


def whole_report(reports: Sequence[RecoveryReport]) -> RecoveryReport:
    """Return one report of all trainings of a run, in their order: sums, and else what the last one has."""
    if not reports:
        return RecoveryReport()
    return replace(
        reports[-1],
        steps=range(reports[0].steps.start, reports[-1].steps.stop),
        tokens=sum(report.tokens for report in reports),
        diverged=any(report.diverged for report in reports),
        merge_error=max(report.merge_error for report in reports),
        seconds=sum(report.seconds for report in reports),
        trajectory=[row for report in reports for row in report.trajectory],
    )


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
        """Train `model` in place for some of the steps.

        The result depends on the model, the blocks of these steps, the watched texts and the seed only, so it is kept in the
        cache.

        Args:
            model: in evaluation mode before and after.
            blocks: token ids for all steps, (N, T), or rows of examples (N, 3, T) (`pruning.packing`); the blocks of step s
                are s * batch_size to (s + 1) * batch_size - 1.
            steps: which of all steps are done now, at least one.
            seed: of the adapters' initial values and of dropout.
            cache: where the result is kept.
            log: receives the training loss as it comes, with its step.
            watched: name -> token ids (N, T), scored in evaluation mode before the first of the steps, after the last, and
                after every `watch_every` steps.
            teacher: loads the dense model, for objectives that need it.
            cut_maps: names of the linear maps that pruning may cut; None for all but the head.
            noise: acts on the model from the first of the steps on; what it is belongs to what the result depends on.
        """
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Return the hyper-parameters as plain values."""
        return asdict(self)
