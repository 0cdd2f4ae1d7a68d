"""Probes of models that do not exist: their figures are chosen, block by block and item by item."""

from __future__ import annotations

import random
from collections.abc import Sequence

from evaluation.event import EventReport
from evaluation.perplexity import TextScore
from evaluation.probe import Probe, TaskItems
from evaluation.stability import StabilityConfig

CONFIG = StabilityConfig(resamples=200)


def text(correct: Sequence[int], loss: float = 2.0, tokens: int = 10) -> TextScore:
    return TextScore([loss * tokens] * len(correct), list(correct), tokens)


def probe(accuracy: float, loss: float, zeroshot: float | None = None) -> Probe:
    """Return a probe of four equal blocks, and of ten items of which the fraction `zeroshot` is right; chance is 0.25."""
    right = None if zeroshot is None else round(zeroshot * 10)
    items = None if right is None else {"piqa": TaskItems([1.0] * right + [0.0] * (10 - right), 0.25)}
    return Probe(text([round(accuracy * 10)] * 4, loss), items)


def event(index: int, pre: Probe, post: Probe, rec: Probe) -> EventReport:
    return EventReport(index, 0.1 * (index + 1), 0.09 * (index + 1), pre, post, rec)


def three_events() -> list[EventReport]:
    return [
        event(0, probe(0.5, 2.0), probe(0.4, 2.5), probe(0.5, 2.1)),  # drops 0.2 and 0.5
        event(1, probe(0.5, 2.1), probe(0.2, 4.1), probe(0.4, 3.1)),  # drops 0.6 and 2.0
        event(2, probe(0.4, 3.1), probe(0.3, 3.6), probe(0.4, 3.5)),  # drops 0.25 and 0.5
    ]


def noisy_probe(accuracy: float, loss: float, seed: int, blocks: int = 40) -> Probe:
    """Return a probe whose blocks and items differ; the same for the same seed."""
    draw = random.Random(seed)
    hard = [draw.gauss(0, 0.05) for _ in range(blocks)]
    correct = [round(100 * (accuracy + one)) for one in hard]
    losses = [100 * (loss - 4 * one + draw.gauss(0, 0.02)) for one in hard]
    tasks = {
        task: TaskItems([float(draw.random() < accuracy + 0.2) for _ in range(size)], 0.25)
        for task, size in (("piqa", 30), ("boolq", 50))
    }
    return Probe(TextScore(losses, correct, 100), tasks)
