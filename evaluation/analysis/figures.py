"""The figures of a study, each as SVG and PNG. What the runs do not have is not drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from evaluation.analysis.event_figures import draw_ratio_curves, draw_recovered, draw_saw_teeth, event_counts
from evaluation.analysis.plotting import axes_grid, legend_below, save
from evaluation.analysis.scatter_figures import draw_forest, draw_rates, draw_scatter, statistics_title
from evaluation.analysis.study_analysis import FINAL, GAIN, GAP, RECOVERED, StudyAnalysis
from pruning.files import whole_folder

MOST_PANELS = 4
"""Of saw-teeth beside each other."""

RATED = (FINAL, GAIN, GAP)
"""What the figure over rates shows: more lines would hide each other."""


def write_figures(analysis: StudyAnalysis, folder: Path) -> list[str]:
    """Draw every figure that the runs have data for into `folder`, which is replaced; return their names."""
    figures: dict[str, Callable[[StudyAnalysis, Path, str], bool]] = {
        "saw_tooth": _saw_tooth,
        "stability_generalization": _stability_generalization,
        "correlation_by_rate": _correlation_by_rate,
        "flatness_stability": _flatness_stability,
        "recovered_fraction": _recovered_fraction,
        "correlations": _correlations,
        "ratio_quality": _ratio_quality,
    }
    with whole_folder(folder) as place:
        return [name for name, draw in figures.items() if draw(analysis, place, name)]


def _saw_tooth(analysis: StudyAnalysis, folder: Path, name: str) -> bool:
    counts = event_counts(analysis.study)[-MOST_PANELS:]
    if not counts:
        return False
    with axes_grid(len(counts), sharey=True) as (figure, axes):
        for panel, events in zip(axes, counts, strict=True):
            draw_saw_teeth(panel, analysis.study, events)
        axes[0].set_ylabel("token accuracy on the probe text")
        legend_below(figure, axes)
        save(figure, folder, name)
    return True


def _stability_generalization(analysis: StudyAnalysis, folder: Path, name: str) -> bool:
    pairs = [one for one in analysis.pairs if one.runs]
    shown = [one for one in pairs if one.y in RATED] or pairs[:3]
    if not shown:
        return False
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    with axes_grid(columns, rows) as (figure, axes):
        draw_scatter(figure, axes, analysis.study, shown, analysis.settings)
        save(figure, folder, name)
    return True


def _correlation_by_rate(analysis: StudyAnalysis, folder: Path, name: str) -> bool:
    by_rate = [(y, rows) for y, rows in analysis.by_rate.items() if any(not one.trouble for _, one in rows)]
    by_rate = [(y, rows) for y, rows in by_rate if y in RATED] or by_rate[:3]
    if not by_rate:
        return False
    with axes_grid(1, width=6.2) as (figure, axes):
        draw_rates(axes[0], by_rate)
        legend_below(figure, axes)
        save(figure, folder, name)
    return True


def _flatness_stability(analysis: StudyAnalysis, folder: Path, name: str) -> bool:
    shown = [one for one in analysis.tested() if one.runs and one.y.startswith("flatness/")]
    if not shown:
        return False
    columns = min(3, len(shown))
    with axes_grid(columns, math.ceil(len(shown) / columns)) as (figure, axes):
        draw_scatter(figure, axes, analysis.study, shown, analysis.settings)
        save(figure, folder, name)
    return True


def _recovered_fraction(analysis: StudyAnalysis, folder: Path, name: str) -> bool:
    with axes_grid(1, width=6.2) as (figure, axes):
        events = draw_recovered(axes[0], analysis.study)
        if not events:
            return False
        of_runs = [statistics_title(one) for one in analysis.pairs if one.y == RECOVERED and not one.trouble]
        title = "\n".join([f"{events} events", *(f"per run: {said}" for said in of_runs)])
        axes[0].set_title(title)
        legend_below(figure, axes)
        save(figure, folder, name)
    return True


def _correlations(analysis: StudyAnalysis, folder: Path, name: str) -> bool:
    tested = [one for one in analysis.tested() if not one.trouble]
    if not tested:
        return False
    with axes_grid(1, width=6.6, height=1.2 + 0.55 * len(tested)) as (figure, axes):
        draw_forest(axes[0], tested)
        axes[0].set_title(f"correlation with {tested[0].x}, {analysis.study.title}")
        legend_below(figure, axes)
        save(figure, folder, name)
    return True


def _ratio_quality(analysis: StudyAnalysis, folder: Path, name: str) -> bool:
    drawn = [curves for curves in analysis.curves.values() if any(curve.fitted for curve in curves)]
    if not drawn:
        return False
    with axes_grid(len(drawn), width=3.8) as (figure, axes):
        for panel, curves in zip(axes, drawn, strict=True):
            draw_ratio_curves(panel, curves)
            panel.legend(frameon=False, fontsize=7, title=f"dense less {curves[0].points:g} points (dotted)")
        save(figure, folder, name)
    return True
