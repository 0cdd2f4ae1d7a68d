"""What the command prints, at most 100 columns wide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evaluation.analysis.association import FEWEST_RUNS, Association
from evaluation.analysis.estimate import Estimate
from evaluation.analysis.observations import Study
from evaluation.analysis.resampling import Interval

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 100

SIGNED, GENERAL = "+.2f", ".2g"
"""Formats of correlations and of slopes."""

KINDS = {
    "pearson": "Pearson r",
    "spearman": "Spearman rho",
    "kendall": "Kendall tau-b",
    "within": "r inside arms",
    "partial": "partial r",
    "slope": "slope",
    "theil_sen": "Theil-Sen slope",
    "quadratic": "coefficient of x²",
}

NOTE = (
    "normal: Fisher's z for r, Student's t for the slope and x², Sen's ranks for Theil-Sen. BCa: bootstrap over runs. "
    "over arms: bootstrap over whole arms, the one to believe when the arms were chosen. p Holm: corrected over the pairs."
)


def print_study(study: Study, console: Console) -> None:
    """Print what is analysed, and what is not."""
    left_out = ", ".join(f"{count} {state}" for state, count in study.left_out.items())
    said = f"{study.title}: {len(study.runs)} finished runs in {len(set(study.arms))} arms"
    console.print(f"{said}{f'; left out: {left_out}' if left_out else ''}\n", highlight=False)


def print_associations(found: Sequence[Association], console: Console) -> None:
    """Print one line a pair, then every statistic of the pairs that have enough runs."""
    for x in dict.fromkeys(one.x for one in found):
        console.print(summary_table([one for one in found if one.x == x]))
    for one in found:
        if not one.trouble:
            console.print(pair_table(one))
            for kind, estimate in one.estimates.items():
                if estimate.note:
                    console.print(f"  {KINDS[kind]}: {estimate.note}", highlight=False)
            console.print()
    if any(not one.trouble for one in found):
        console.print(f"{NOTE}\n", highlight=False)


def print_by_rate(by_rate: Mapping[str, Sequence[tuple[float, Association]]], console: Console) -> None:
    """Print the correlations within each rate of pruning, of every y that has enough runs at some rate."""
    sound = [rows for rows in by_rate.values() if any(not one.trouble for _, one in rows)]
    if by_rate and not sound:
        console.print(f"within each rate of pruning: too few runs ({FEWEST_RUNS} are needed)\n", highlight=False)
    for rows in sound:
        console.print(rate_table(rows))


def summary_table(found: Sequence[Association]) -> Table:
    """Return the table with one line for every y against one x."""
    columns = ("runs", "arms", "r", "over arms", "inside", "partial", "p Holm", "sign")
    table = new_table("y", *columns, title=f"correlation with {found[0].x}")
    group = None
    for one in found:
        if group != (group := one.y.partition("/")[0]):
            table.add_row(f"{group}/")
        name, counts = f"  {one.y.partition('/')[2]}", (str(one.runs), str(one.arms))
        if one.trouble:
            table.add_row(name, *counts)
            table.add_row(f"    [yellow]{one.trouble}[/]")
            continue
        r = one.estimates["pearson"]
        others = [_signed(one.estimates[kind].value) for kind in ("within", "partial")]
        over_arms = shown_interval(r.intervals.get("arms"), SIGNED)
        table.add_row(name, *counts, _signed(r.value), over_arms, *others, _p(r.p_holm), sign(r))
    return table


def sign(estimate: Estimate) -> str:
    """Return + or - where every interval of an estimate leaves out zero on the same side, else `unclear`."""
    intervals = [interval for interval in estimate.intervals.values() if not any(map(math.isnan, interval))]
    if intervals and all(low > 0 for low, _ in intervals):
        return "+"
    return "-" if intervals and all(high < 0 for _, high in intervals) else "unclear"


def pair_table(one: Association) -> Table:
    """Return the table of one pair: every statistic with its intervals."""
    title = f"{one.y} against {one.x}\n{one.runs} runs in {one.arms} arms"
    table = new_table("", "value", "normal", "BCa", "over arms", "p", "p Holm", title=title)
    for kind, label in KINDS.items():
        estimate = one.estimates[kind]
        is_slope = kind in ("slope", "theil_sen", "quadratic")
        intervals = [
            shown_interval(estimate.intervals.get(name), GENERAL if is_slope else SIGNED)
            for name in ("normal", "bca", "arms")
        ]
        value = with_error(estimate) if is_slope else _signed(estimate.value)
        table.add_row(label, value, *intervals, _p(estimate.p), _p(estimate.p_holm))
    return table


def rate_table(by_rate: Sequence[tuple[float, Association]]) -> Table:
    """Return the table of one pair within each rate of pruning."""
    _, first = by_rate[0]
    columns = ("runs", "arms", "r", "normal", "tau-b", "slope")
    table = new_table("removed per event", *columns, title=f"{first.y} by rate,\nagainst {first.x}")
    for rate, one in by_rate:
        cells = [f"{rate:g} %", str(one.runs), str(one.arms)]
        if one.trouble:
            table.add_row(*cells)
            table.add_row(f"  [yellow]{one.trouble}[/]")
            continue
        r, tau, slope = (one.estimates[kind] for kind in ("pearson", "kendall", "slope"))
        normal = shown_interval(r.intervals["normal"], SIGNED)
        table.add_row(*cells, _signed(r.value), normal, _signed(tau.value), with_error(slope))
    return table


def with_error(estimate: Estimate) -> str:
    """Return a slope with its standard error."""
    if math.isnan(estimate.value):
        return "-"
    return f"{estimate.value:.3g}" + ("" if math.isnan(estimate.stderr) else f" ± {estimate.stderr:.2g}")


def new_table(*columns: str, title: str) -> Table:
    """Return an empty table whose columns are figures, but for the first."""
    from rich import box
    from rich.table import Table

    look = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0), "title_justify": "left"}
    table = Table(**look, title=title, title_style="bold")  # type: ignore[arg-type]
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def shown_interval(interval: Interval | None, form: str) -> str:
    """Return an interval in one of the formats; nothing for one that does not exist."""
    if interval is None or any(map(math.isnan, interval)):
        return ""
    return f"{interval[0]:{form}}..{interval[1]:{form}}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:{SIGNED}}"


def _p(value: float) -> str:
    return "" if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"
