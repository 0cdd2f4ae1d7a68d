"""The tables of ratio-quality curves, and the largest ratio in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evaluation.analysis.ratio_curve import NEVER, RatioCurve
from evaluation.analysis.tables import new_table, shown_interval

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NUMBER = ".4f"
"""Format of accuracies."""


def print_curves(curves: Sequence[RatioCurve], console: Console) -> None:
    """Print the ratio-quality curves of one measure, and how many arms have none."""
    fitted = [curve for curve in curves if curve.fitted]
    if fitted:
        console.print(curve_table(fitted))
        for curve in fitted:
            console.print(f"  {curve.name}: {largest_ratio(curve)}", highlight=False, markup=False)
        console.print()
    if alone := len(curves) - len(fitted):
        have = "1 arm has" if alone == 1 else f"{alone} arms have"
        console.print(f"{curves[0].measure}: {have} one ratio only, and no curve\n", highlight=False)


def curve_table(curves: Sequence[RatioCurve]) -> Table:
    """Return the table of the ratio-quality curves of one measure."""
    from rich.markup import escape

    table = new_table("ratio", "measured", "curve", "interval", title=f"{curves[0].measure} over the ratio removed")
    for curve in curves:
        table.add_row(f"[bold]{escape(curve.name)}[/], {curve.runs} runs; dense {_number(curve.dense)}")
        for index, ratio in enumerate(curve.ratios):
            fitted = _number(curve.fitted[index]) if curve.fitted else ""
            band = (curve.lows[index], curve.highs[index]) if curve.lows else None
            table.add_row(f"  {ratio:.3f}", _number(curve.means[index]), fitted, shown_interval(band, NUMBER))
    return table


def largest_ratio(curve: RatioCurve) -> str:
    """Return in words the largest ratio at which a fitted curve stays near the dense model."""
    within = f"within {curve.points:g} point{'s' if curve.points != 1 else ''} of dense"
    if math.isnan(curve.largest):
        return f"{within}: the dense model was not measured"
    if curve.largest == NEVER:
        distance = 100 * (curve.dense - curve.fitted[0])
        return f"{within}: not reached; {distance:.2f} points below at {curve.ratios[0]:.3f}, the smallest measured"
    found = "every measured ratio, up to" if curve.largest == curve.ratios[-1] else "up to ratio"
    if math.isnan(curve.largest_low):
        return f"{within}: {found} {curve.largest:.3f} (no interval: some ratio has a single run)"
    low, high = (_limit(value, curve) for value in (curve.largest_low, curve.largest_high))
    return f"{within}: {found} {curve.largest:.3f} (interval {low} to {high})"


def _limit(value: float, curve: RatioCurve) -> str:
    if value == NEVER:
        return f"below {curve.ratios[0]:.3f}"
    return f"{value:.3f} or more" if value == curve.ratios[-1] else f"{value:.3f}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:{NUMBER}}"
