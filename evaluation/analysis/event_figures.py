"""Figures along the events of runs, and along the ratio removed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.analysis.observations import Study
from evaluation.analysis.plotting import looks, words
from evaluation.analysis.ratio_curve import NEVER, RatioCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEASURE = "tok_acc"
MOMENTS = (("pre", 0), ("post", 0), ("rec", 1))
"""When a probe is taken, and how many events later it is drawn: a cut is a vertical line."""

RECOVERED = ("instability", "recovered_frac")


def event_counts(study: Study) -> list[int]:
    """Return the different numbers of events of the runs, rising."""
    return sorted({len(run.events) for run in study.runs if saw_tooth(run.events).size})


def saw_tooth(events: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return the points (3 K, 2) of a run with K events: event and token accuracy before, after and recovered."""
    rows = enumerate(events)
    points = _known(
        [[at + later, event.get(f"event/{MEASURE}/{when}")] for at, event in rows for when, later in MOMENTS]
    )
    return points if len(points) == 3 * len(events) else points[:0]


def draw_saw_teeth(panel: Axes, study: Study, events: int) -> None:
    """Draw the runs with that many events: thin lines for runs, a thick one for the mean of an arm."""
    for arm, style in looks(study.arms).items():
        teeth = [
            saw_tooth(run.events)
            for run, name in zip(study.runs, study.arms, strict=True)
            if name == arm and len(run.events) == events
        ]
        teeth = [points for points in teeth if len(points)]
        if not teeth:
            continue
        for points in teeth if len(teeth) > 1 else []:
            panel.plot(*points.T, color=style["color"], linewidth=0.6, alpha=0.4)
        mean = np.mean(teeth, axis=0)
        panel.plot(*mean.T, label=arm, markersize=4.5, markeredgecolor="white", markeredgewidth=0.4, **style)
    ticks = range(events + 1) if events <= 10 else range(0, events + 1, math.ceil(events / 8))
    panel.set_xticks(list(ticks), [str(tick + 1) if tick < events else "end" for tick in ticks])
    panel.set(title=f"{events} event{'s' if events > 1 else ''}", xlabel="event")


def draw_recovered(panel: Axes, study: Study) -> int:
    """Draw what fraction of its damage every event recovered against its instability; return the number of events drawn.

    An event whose damage cannot be told from none has no fraction.
    """
    drawn = 0
    for arm, style in looks(study.arms).items():
        events = [
            event for run, name in zip(study.runs, study.arms, strict=True) if name == arm for event in run.events
        ]
        points = _known([[event.get(f"event/{name}/{MEASURE}") for name in RECOVERED] for event in events])
        if len(points):
            drawn += len(points)
            panel.scatter(points[:, 0], points[:, 1], s=22, linewidths=0.5, edgecolors="white", label=arm, **style)
    panel.axhline(1, color="black", linewidth=0.8, linestyle=":")
    panel.axhline(0, color="black", linewidth=0.8)
    panel.set(xlabel="instability of the event, token accuracy", ylabel="recovered fraction of the drop")
    return drawn


def draw_ratio_curves(panel: Axes, curves: Sequence[RatioCurve]) -> None:
    """Draw the means at every ratio, the curves that do not rise, their intervals, and dense less the tolerance."""
    styles = looks([curve.name for curve in curves])
    for curve in curves:
        style = styles[curve.name]
        panel.scatter(curve.ratios, curve.means, s=24, linewidths=0.5, edgecolors="white", zorder=3, **style)
        label = curve.name if not math.isfinite(curve.largest) else f"{curve.name}: up to {curve.largest:.3f}"
        label = f"{curve.name}: not reached" if curve.largest == NEVER else label
        if curve.fitted:
            panel.plot(curve.ratios, curve.fitted, color=style["color"], label=label)
        if curve.lows:
            panel.fill_between(curve.ratios, curve.lows, curve.highs, color=style["color"], alpha=0.15, linewidth=0)
    dense = [curve.dense for curve in curves if math.isfinite(curve.dense)]
    for value in sorted(set(np.round(dense, 6))):
        panel.axhline(value, color="black", linestyle="--", linewidth=1)
        panel.axhline(value - curves[0].points / 100, color="black", linestyle=":", linewidth=1)
    panel.set(xlabel="ratio removed, reached", ylabel=words(curves[0].measure), xlim=(0, None))


def _known(rows: list[list[Any]]) -> np.ndarray:
    """Return the rows of two numbers in which neither is missing, (M, 2)."""
    table = np.array(rows, float).reshape(-1, 2)  # None becomes NaN
    return table[np.isfinite(table).all(axis=1)]
