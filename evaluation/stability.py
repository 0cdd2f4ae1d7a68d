"""Stability of a run: how its events are probed, and what their instabilities (event.py) come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluation.event import EventReport


@dataclass
class StabilityConfig:
    """How events are probed, and which controls a run is compared with."""

    text: str = "passages"
    """Held-out text that the probes read: a bundled corpus by name, or a .txt or .jsonl file."""

    blocks: int = 64
    """Blocks of the probe."""

    length: int = 128
    """Tokens in each."""

    zeroshot: bool = True
    """Whether the zero-shot mean is measured around every event too (free for a one-shot schedule)."""

    kl: bool = False
    """Whether the predictions before and after a cut are compared token by token. Holds a second copy of the model during the
    cut, and takes two more passes over the probe text."""

    out_of_domain: str | None = None
    """Second held-out text of the generalization gap: a bundled corpus by name, or a .txt or .jsonl file. null: the first of
    evaluation.texts that is of another corpus than the data, if there is one."""

    control: bool = True
    """Whether the run is compared with the unpruned model given the same recovery."""

    random_control: bool = False
    """Whether the run is also compared with one-shot random pruning at the same ratio, given the same recovery."""

    confidence: float = 0.95
    """Of the paired bootstrap intervals, in (0, 1)."""

    resamples: int = 2000

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"stability.confidence={self.confidence}: must be in (0, 1)")
        for name, low in (("blocks", 2), ("length", 2), ("resamples", 1)):
            if (value := getattr(self, name)) < low:
                raise ValueError(f"stability.{name}={value}: must be at least {low}")


def stability_summary(events: Sequence[EventReport], config: StabilityConfig) -> dict[str, float]:
    """Return `stability/*`: what the events' figures come to, and the recovered fraction of the last event.

    Intervals: blocks and items are resampled once for all events, which share them.
    """
    from functools import partial

    from evaluation.event import point_means
    from evaluation.statistics import resampled_means, with_intervals

    if not events:
        return {}
    removed = events[-1].ratio_reached
    point, resampled = (
        run_figures([event.figures(means) for event in events], removed)
        for means in (point_means, partial(resampled_means, resamples=config.resamples))
    )
    found = with_intervals(point, resampled, config.confidence)
    return {f"stability/{name}": value for name, value in found.items()}


def run_figures(events: Sequence[Mapping[str, Any]], removed: float) -> dict[str, Any]:
    """Return a run's figures from those of its events, each a number or its resampled values.

    Args:
        events: `EventReport.figures` of every event, in order.
        removed: fraction removed by all events together; instability_per_ratio is the sum of the instabilities over it.
    """
    import numpy as np

    from evaluation.event import ratio

    found: dict[str, Any] = {}
    for figure, last in events[-1].items():
        kind, name = figure.split("/")
        values = np.array([event[figure] for event in events])
        if kind == "instability":
            found[f"instability_mean/{name}"] = values.mean(axis=0)  # the paper's: unweighted
            found[f"instability_max/{name}"] = values.max(axis=0)
            found[f"instability_sum/{name}"] = values.sum(axis=0)
            found[f"instability_last/{name}"] = last
            found[f"instability_per_ratio/{name}"] = ratio(values.sum(axis=0), removed)
        elif kind == "stability_pct":
            found[f"pct_mean/{name}"] = values.mean(axis=0)
        elif kind == "recovered_frac":
            found[f"recovered_frac/{name}"] = last
    return found
