"""What is measured at one moment of a run, observation by observation, so that moments are compared on the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evaluation.statistics import Strata, stratified_error, stratified_mean

if TYPE_CHECKING:
    from evaluation.perplexity import TextScore

Means = Callable[[Sequence[Strata]], Any]
"""Takes the same observations at several moments; returns the mean at each, or all its resampled means, (resamples,)."""


@dataclass(frozen=True)
class TaskItems:
    """The items of one task of the zero-shot mean."""

    outcomes: list[float]
    """By the metric that the task enters the mean with: right (1) or wrong (0), (N,)."""

    chance: float
    """Accuracy of a model that knows nothing."""


@dataclass(frozen=True)
class Probe:
    """Next-token accuracy and loss on the probe text, and the zero-shot mean where it is measured around events."""

    text: TextScore
    zeroshot: Mapping[str, TaskItems] | None = None
    """Task -> its items, for the tasks of the zero-shot mean."""

    fingerprint: str = ""
    """Of the model that was measured: its configuration and every weight, bit by bit."""

    def observations(self) -> dict[str, Strata]:
        """Return measure -> observations: tok_acc and loss (nats per token) of every block, zeroshot of every item."""
        tokens = self.text.tokens_per_block
        found: dict[str, Strata] = {
            "tok_acc": [[correct / tokens for correct in self.text.correct]],
            "loss": [[total / tokens for total in self.text.loss_sums]],
        }
        return found | ({"zeroshot": [task.outcomes for task in self.zeroshot.values()]} if self.zeroshot else {})

    def measures(self) -> dict[str, float]:
        """Return measure -> its value."""
        return {name: stratified_mean(strata) for name, strata in self.observations().items()}

    def zeroshot_chance(self) -> float:
        """Return the zero-shot mean of a model that knows nothing; NaN where the mean is not known to be above it.

        Known means: by two standard errors, over the items.
        """
        tasks = list((self.zeroshot or {}).values())
        chance = sum(task.chance for task in tasks) / max(1, len(tasks))
        outcomes = [task.outcomes for task in tasks]
        above = stratified_mean(outcomes) - chance if tasks else 0.0
        return chance if above > 0 and above >= 2 * stratified_error(outcomes) else float("nan")
