"""What a recovery is given, and what it reports."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from pruning.noise import Noise
    from recovery.objectives import Teacher


@dataclass(frozen=True)
class RecoveryTask:
    """What a recovery is to do with a model, besides its own settings."""

    blocks: torch.Tensor
    """Token ids for all steps, (N, T), or rows of examples (N, 3, T) (`pruning.packing`); the blocks of step s are
    s * batch_size to (s + 1) * batch_size - 1. Only those of the steps that are done now count."""

    steps: range
    """Which of all steps are done now, at least one."""

    seed: int
    """Of the adapters' initial values and of dropout."""

    teacher: Teacher
    """Loads the dense model, for objectives that need it."""

    watched: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Name -> token ids (N, T), scored in evaluation mode before the first of the steps, after the last, and after every
    `watch_every` steps."""

    cut_maps: Collection[str] | None = None
    """Names of the linear maps that pruning may cut; None for all but the head."""

    noise: Noise | None = None
    """Acts on the model from the first of the steps on; what it is belongs to what the result depends on."""


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
    """Time that the training took when it was done, in all processes that worked on it, what its objective needs of the dense
    model included."""

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
