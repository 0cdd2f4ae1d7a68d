"""The noise floor of zero-shot scores: how far the shape of a batch alone moves them, in the precision of the model.

Each item is scored twice by the same model: among the others, as all figures are taken, and alone. In float32 the two agree
to about a thousandth of a nat; in 16 bits a sum that is taken in another order can change which choice wins.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evaluation.zeroshot import SEVEN, main_metric

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

NOISE_ITEMS = 25


def items_scored_twice(asked: int | None, dtype: torch.dtype) -> int:
    """Return `evaluation.noise_items`; where it is null, 0 for float32 and 25 for smaller types."""
    if asked is not None:
        return asked
    return NOISE_ITEMS if dtype.itemsize < 4 else 0


def noise_metrics(scores: Mapping[str, Mapping[str, Any]], alone: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the flat `zeroshot/*/noise_*` metrics of one model.

    noise_floor = sqrt(mean of d^2 / n), with d the difference between an item's two outcomes by the task's main metric (-1,
    0 or 1) and n the items of the task's score: the standard deviation of the score over batch shapes, if items move
    independently, beside the standard error sqrt(variance / n) over items. noise_nats: the largest difference between two
    log-likelihoods of a choice. zeroshot/mean_noise_floor: of the mean of seven, as its standard error.

    Args:
        scores: task -> its score as all figures are taken.
        alone: task -> the score of its first items, each alone in a batch.
    """
    found: dict[str, float] = {}
    for task, score in scores.items():
        pairs = list(zip(score["outcomes"], alone[task]["outcomes"], strict=False))
        main = main_metric(task, score["metrics"])
        changes = sum((first[main] - second[main]) ** 2 for first, second in pairs) / len(pairs)
        found[f"zeroshot/{task}/noise_floor"] = math.sqrt(changes / score["metrics"]["n"])
        nats = [zip(first["loglikelihoods"], second["loglikelihoods"], strict=True) for first, second in pairs]
        # A log-likelihood that is not finite is kept as None.
        gaps = [abs(a - b) for pair in nats for a, b in pair if a is not None and b is not None]
        found[f"zeroshot/{task}/noise_nats"] = max(gaps, default=math.nan)
    floors = [found[f"zeroshot/{task}/noise_floor"] for task in SEVEN if task in scores]
    if floors:
        found["zeroshot/mean_noise_floor"] = math.hypot(*floors) / len(floors)
    for task, score in scores.items():
        _judge(task, found[f"zeroshot/{task}/noise_floor"], score["metrics"]["stderr"])
    return found


def _judge(task: str, floor: float, error: float) -> None:
    """Warn where the noise is above a fifth of the standard error."""
    if floor > error / 5:
        log.warning(
            "%s: the shape of a batch alone moves the score by %.3f (its standard error is %.3f); model.dtype=float32 has "
            "no such noise",
            task,
            floor,
            error,
        )
