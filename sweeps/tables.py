"""The runs of a sweep in one table of 100 columns: its results when it has ended, or what is planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluation.contamination import MARKS, mark
from evaluation.dashboard.runs import RunRecord
from sweeps.estimate import duration, seconds_taken

if TYPE_CHECKING:
    from rich.table import Table

FIGURES = (
    ("zero-shot mean", "zeroshot/mean", "{:.3f}"),
    ("perplexity", "ppl/", "{:.1f}"),
    ("token accuracy", "probe/tok_acc", "{:.3f}"),
)
"""Heading, metric or the beginning of its name, form; the first two that were measured are shown. The perplexity is that of
the first text by name."""

LONGEST_ERROR = 300
"""Characters of an error that are shown; its log has all of it."""


@dataclass(frozen=True)
class Row:
    """One run of a sweep, labelled by what it differs in from the others."""

    label: str
    run: RunRecord
    seconds: float | None
    """That it took, or that it is expected to take; None where nobody knows."""


def counts(rows: Sequence[Row]) -> str:
    """Return how many runs are in which state, in words."""
    states = [row.run.state for row in rows]
    order = [state for state in dict.fromkeys(("done", *sorted(states))) if state in states]
    return f"{len(rows)} run{'' if len(rows) == 1 else 's'}: " + ", ".join(
        f"{states.count(state)} {state}" for state in order
    )


def results_table(rows: Sequence[Row]) -> Table:
    """Return one line a run, with the figures of the pruned and the recovered model."""
    from rich.markup import escape

    figures = shown_figures(rows)
    table = _table("state", "run", "removed", *(heading(rows, *figure[:2]) for figure in figures), "time")
    for row in rows:
        reached = row.run.metrics.get("pruned/ratio_reached")
        cells = [_pair(row.run, name, form) for _, name, form in figures]
        removed = "" if reached is None else f"{reached:.1%}"
        time = "" if row.run.state != "done" else duration(seconds_taken(row.run))
        table.add_row(row.run.state, escape(row.label), removed, *cells, time)
    return table


def live_table(rows: Sequence[Row]) -> Table:
    """Return one line a run that shows how far it is."""
    from rich.markup import escape

    figures = shown_figures(rows)
    headings = [heading(rows, *figure[:2]) for figure in figures]
    table = _table("state", "run", "ratio", "estimator", *headings, "time")
    table.columns[1].no_wrap = True  # as many lines as rows
    for row in rows:
        run = row.run
        stage = run.stage if run.state == "running" else None
        cells = [_pair(run, name, form) for _, name, form in figures]
        forms = {"done": "{}", "running": "{} left", "pending": "about {}", "stopped": "about {}"}
        time = "" if row.seconds is None else forms.get(run.state, "").format(duration(row.seconds))
        what = " · ".join(filter(None, (row.label, stage)))
        ratio = f"{run.config['pruning.ratio']:g}"
        table.add_row(run.state, escape(what), ratio, run.choices["importance"], *cells, time)
    return table


def shown_figures(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Return the first two of FIGURES that any run has."""
    return [figure for figure in FIGURES if any(_metric(row.run, figure[1]) for row in rows)][:2]


def heading(rows: Sequence[Row], title: str, name: str) -> str:
    """Return the heading of a figure. A text that any of the runs is in domain or contaminated with is marked so."""
    measured = next(filter(None, (_metric(row.run, name) for row in rows)), "")
    text = measured.partition("/ppl/")[2].rpartition("@")[0]
    kind = f"text/{text}" if text else "probe" if "/probe/" in measured else ""
    known = {metric: value for row in rows for metric, value in row.run.metrics.items() if value}
    return f"{title}{mark(known, kind)}".replace(" (", "\n(")


def notes(rows: Sequence[Row]) -> list[str]:
    """Return what the marks in the headings mean."""
    shown = " ".join(heading(rows, *figure[:2]) for figure in shown_figures(rows))
    return [f"{words}: {meaning}" for words, meaning in MARKS.items() if f"({words})" in shown]


def plan_table(rows: Sequence[Row]) -> Table:
    """Return one line a run: its state, and how long it took or is expected to take."""
    from rich.markup import escape

    table = _table("state", "run", "time")
    for row in rows:
        about = "" if row.run.state == "done" else "about "
        table.add_row(row.run.state, escape(row.label), "?" if row.seconds is None else about + duration(row.seconds))
    return table


def errors(rows: Sequence[Row]) -> list[str]:
    """Return two lines for every run that failed or stopped: which and why, and where to look."""
    lines = []
    for row in rows:
        if row.run.state in ("failed", "stopped", "unreadable"):
            why = " ".join((row.run.error or "its process ended while it ran").split())
            short = why if len(why) <= LONGEST_ERROR else f"{why[:LONGEST_ERROR]} ..."
            lines += [f"{row.run.state}: {row.label}: {short}", f"  {row.run.folder}/run.log"]
    return lines


def _table(*titles: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in titles:
        left = title in ("state", "run", "estimator")
        table.add_column(title, justify="left" if left else "right", no_wrap=title != "run", overflow="fold")
    return table


def _metric(run: RunRecord, name: str) -> str | None:
    """Return the full name of a metric of the recovered model that the run has a figure of."""
    beginning = f"recovered/{name}"
    names = (
        full for full in sorted(run.metrics) if full == beginning or (name[-1] == "/" and full.startswith(beginning))
    )
    return next((full for full in names if run.metrics[full] is not None and not full.endswith("_stderr")), None)


def _pair(run: RunRecord, name: str, form: str) -> str:
    after = _metric(run, name)
    if after is None:
        return ""
    values = [run.metrics.get(after.replace("recovered", stage, 1)) for stage in ("pruned", "recovered")]
    return " > ".join(form.format(value) for value in values if value is not None)
