"""Figures of runs as marks: one figure of a run against another, coloured by arm, with the line and what is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.analysis.association import Association
from evaluation.analysis.estimate import Settings
from evaluation.analysis.observations import Study
from evaluation.analysis.plotting import legend_below, looks, signed, spread_of, words
from evaluation.analysis.regression import line_band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_scatter(
    figure: Figure, axes: Sequence[Axes], study: Study, found: Sequence[Association], settings: Settings
) -> None:
    """Draw one panel for every association: marks by arm, least-squares line with its interval, r and tau above it."""
    styles = looks(study.arms)
    for one, panel in zip(found, axes, strict=False):
        _draw_panel(panel, study, one, styles, settings)
    for panel in axes[len(found) :]:
        panel.set_visible(False)
    legend_below(figure, axes)


def _draw_panel(
    panel: Axes, study: Study, one: Association, styles: dict[str, dict[str, Any]], settings: Settings
) -> None:
    xs, ys = study.column(one.x), study.column(one.y)
    both = np.isfinite(xs) & np.isfinite(ys)
    for arm, style in styles.items():
        own = both & np.array([name == arm for name in study.arms])
        panel.scatter(xs[own], ys[own], s=26, linewidths=0.5, edgecolors="white", zorder=3, label=arm, **style)
    if not one.trouble:
        at = np.linspace(*spread_of(xs[both]), 60)
        line, low, high = line_band(xs[both], ys[both], at, settings.confidence)
        panel.plot(at, line, color="black", zorder=2)
        panel.fill_between(at, low, high, color="black", alpha=0.12, linewidth=0, zorder=1)
    panel.set(xlabel=words(one.x), ylabel=words(one.y), title=statistics_title(one))


def statistics_title(one: Association) -> str:
    """Return r with its interval, tau, the slope and n in two lines, or why there are none."""
    if one.trouble:
        return one.trouble
    r, tau, slope = (one.estimates[kind] for kind in ("pearson", "kendall", "slope"))
    low, high = (signed(end) for end in r.intervals["normal"])
    steep = f"{slope.value:.3g} ± {slope.stderr:.2g}".replace("-", "\N{MINUS SIGN}")
    return f"r = {signed(r.value)} [{low}, {high}], τ = {signed(tau.value)}\nslope {steep}, n = {one.runs}"


def draw_forest(panel: Axes, found: Sequence[Association]) -> None:
    """Draw the correlation of every pair with its intervals: pooled, over whole arms, inside arms, with covariates constant."""
    rows = [one for one in found if not one.trouble]
    kinds = (
        ("pearson", "normal", "pooled (Fisher's z)", "#0072b2", "o"),
        ("pearson", "arms", "pooled (bootstrap over arms)", "#56b4e9", "D"),
        ("within", "normal", "inside arms", "#d55e00", "s"),
        ("partial", "normal", "given ratio and tail", "#009e73", "^"),
    )
    for place, (kind, interval, label, colour, marker) in enumerate(kinds):
        known = [
            (row, one.estimates[kind]) for row, one in enumerate(rows) if interval in one.estimates[kind].intervals
        ]
        if not known:
            continue
        values = np.array([estimate.value for _, estimate in known])
        ends = np.array([estimate.intervals[interval] for _, estimate in known])
        heights = np.array([row for row, _ in known]) + 0.18 * (place - 1.5)
        whiskers = np.abs(ends - values[:, None]).T
        panel.errorbar(
            values, heights, xerr=whiskers, fmt=marker, color=colour, markersize=5, elinewidth=1.3, label=label
        )
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set(xlim=(-1.02, 1.02), ylim=(len(rows) - 0.4, -0.6), xlabel="correlation with its interval")
    panel.set_yticks(range(len(rows)), [f"{words(one.y)}\nn = {one.runs}" for one in rows])
    panel.grid(axis="y", visible=False)


def draw_rates(panel: Axes, by_rate: Sequence[tuple[str, Sequence[tuple[float, Association]]]]) -> None:
    """Draw the correlation within each rate of pruning with Fisher's interval, one line for every y."""
    styles = looks([y for y, _ in by_rate])
    for place, (y, rows) in enumerate(by_rate):
        known = [(rate, one.estimates["pearson"]) for rate, one in rows if not one.trouble]
        if not known:
            continue
        values = np.array([r.value for _, r in known])
        whiskers = np.abs(np.array([r.intervals["normal"] for _, r in known]) - values[:, None]).T
        rates = np.array([rate for rate, _ in known]) * (1 + 0.03 * (place - (len(by_rate) - 1) / 2))
        panel.errorbar(
            rates, values, yerr=whiskers, label=words(y).replace("\n", " "), elinewidth=1.2, markersize=5, **styles[y]
        )
    ticks = sorted({rate for _, rows in by_rate for rate, one in rows if not one.trouble})
    panel.axhline(0, color="black", linewidth=0.8)
    against = words(by_rate[0][1][0][1].x)
    panel.set(xscale="log", ylim=(-1.05, 1.05), xlabel="percent removed per event", ylabel=f"r with {against}")
    panel.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
    panel.minorticks_off()
