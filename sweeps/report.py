"""What is printed about a sweep, and the dashboard that is written at its end."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from conf.identity import resolved
from evaluation.dashboard import write_dashboard
from evaluation.dashboard.runs import RunRecord, find_runs, flat, read_run
from sweeps.estimate import duration, seconds_left, seconds_taken
from sweeps.jobs import Job, labels
from sweeps.tables import Row, counts, errors, notes, plan_table, results_table

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)


def print_results(jobs: Sequence[Job]) -> bool:
    """Print what has become of the jobs of a sweep, and write the dashboard of every study they are in.

    Returns:
        Whether every run is done.
    """
    rows = _rows(jobs)
    _print(results_table(rows), ["", *notes(rows), *errors(rows), counts(rows)])
    for study in sorted({job.folder.parent for job in jobs}):
        try:
            print(f"dashboard: {write_dashboard(study)}")
        except OSError as error:  # a full disk: what the runs wrote is there
            log.error("dashboard of %s not written: %s", study, error)
    return all(row.run.state == "done" for row in rows)


def print_plan(jobs: Sequence[Job]) -> None:
    """Print which jobs of a sweep are done, which are left, and how long these may take one after the other."""
    rows = _rows(jobs)
    left = [row.seconds for row in rows if row.run.state != "done"]
    known = [seconds for seconds in left if seconds is not None]
    if not left:
        time = "Nothing is left to be run."
    elif known:
        time = f"About {duration(sum(known))} left, one run after the other, by the finished runs of the study."
    else:
        time = "No finished run in the study tells how long they may take."
    _print(plan_table(rows), ["", *errors(rows), f"{counts(rows)}. {time}"])


def _rows(jobs: Sequence[Job]) -> list[Row]:
    jobs = list({job.folder: job for job in jobs}.values())  # a search may come back to a point
    studies = {job.folder.parent for job in jobs}
    runs = {run.folder: run for run in map(read_run, find_runs(study for study in studies if study.is_dir()))}
    finished = [run for run in runs.values() if run.state == "done"]
    return [
        _row(label, job, runs.get(str(job.folder)) or read_run(job.folder), finished)
        for job, label in zip(jobs, labels(jobs), strict=True)
    ]


def _row(label: str, job: Job, run: RunRecord, finished: Sequence[RunRecord]) -> Row:
    if run.state == "done":
        return Row(label, run, seconds_taken(run))
    return Row(label, run, seconds_left(run, flat(resolved(job.config)), finished))


def _print(table: Table, lines: Sequence[str]) -> None:
    from rich.console import Console

    Console(width=None if Console().is_terminal else 100, highlight=False).print(table)
    for line in lines:
        print(textwrap.fill(line, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
