"""The live table of a sweep: in a terminal, a line for every job while they run.

A job that runs in this process draws its own display below the table. What other processes print would go through it, so
it goes to `sweep.log` in the study's folder.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.identity import resolved
from evaluation.dashboard.runs import RunRecord, find_runs, flat, read_state
from evaluation.progress import quiet_terminal_logs, terminal
from sweeps.estimate import duration, seconds_left, seconds_taken
from sweeps.jobs import Job, labels
from sweeps.tables import Row, counts, live_table

if TYPE_CHECKING:
    from rich.console import Console, Group

SECONDS = 2.0
"""Between two looks at the folders."""

OTHER_LINES = 12
"""Of the terminal, which are left to headings, to the counts and to the display of a run."""

OWN_COLUMN = ("pruning.ratio", "importance")
"""Overrides that the table has a column for."""


@contextmanager
def sweep_display(jobs: Sequence[Job], in_this_process: bool) -> Iterator[None]:
    """Show the jobs while the block runs them, where there is a terminal.

    Args:
        jobs: of the sweep, with those that are done.
        in_this_process: whether the block runs them here, one after the other.
    """
    from rich.live import Live

    if not terminal().is_terminal:
        yield
        return
    with ExitStack() as stack:
        console = terminal()
        if not in_this_process:
            console = stack.enter_context(prints_go_to(jobs[0].folder.parent / "sweep.log"))
        display = SweepDisplay(jobs, console)
        stdout = sys.stdout.isatty()
        stack.enter_context(
            Live(display, console=console, transient=True, refresh_per_second=1, redirect_stdout=stdout)
        )
        stack.enter_context(quiet_terminal_logs())
        yield


@contextmanager
def prints_go_to(path: Path) -> Iterator[Console]:
    """Let what this process, and those that it starts, print to the terminal go to a file.

    Yields:
        A console that writes to the terminal all the same.
    """
    from rich.console import Console

    shown = [stream for stream in (1, 2) if os.isatty(stream)]
    kept = {stream: os.dup(stream) for stream in shown}
    with path.open("a", encoding="utf-8") as file, os.fdopen(os.dup(2), "w", encoding="utf-8") as screen:
        try:
            for stream in shown:
                os.dup2(file.fileno(), stream)
            yield Console(file=screen)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, own in kept.items():
                os.dup2(own, stream)
                os.close(own)
    print(f"what the jobs printed: {path}")


class SweepDisplay:
    """Draws the jobs of a sweep by what their folders show."""

    def __init__(self, jobs: Sequence[Job], console: Console) -> None:
        """Look at the folders of the jobs, and at the other runs of the study, by which times are estimated.

        Args:
            jobs: of the sweep.
            console: the terminal.
        """
        self.console = console
        self._jobs = list({job.folder: job for job in jobs}.values())
        self._labels = _short_labels(self._jobs)
        self._about: list[dict[str, Any]] = [
            {"config": flat(resolved(job.config)), "choices": dict(job.config.hydra.runtime.choices)}
            for job in self._jobs
        ]
        own = {str(job.folder) for job in self._jobs}
        others = map(read_state, find_runs({job.folder.parent for job in self._jobs}))
        self._others = [run for run in others if run.state == "done" and run.folder not in own]
        self._rows: list[Row] = []
        self._looked = -SECONDS

    def __rich__(self) -> Group:
        from rich.console import Group

        now = time.monotonic()
        if now - self._looked >= SECONDS:
            self._rows = self._look()
            self._looked = now
        rows = window(self._rows, max(3, self.console.height - OTHER_LINES))
        part = "" if len(rows) == len(self._rows) else f" ({len(rows)} shown)"
        return Group(live_table(rows), f"\n{counts(self._rows)}{part}. {self._time_left()}")

    def _look(self) -> list[Row]:
        """Return the jobs as they are now."""
        before: list[RunRecord | None] = [row.run for row in self._rows] or [None] * len(self._jobs)
        runs = [
            run
            if run and run.state == "done" and (job.folder / "result.json").exists()  # force=true removes it
            else replace(read_state(job.folder), **about)
            for job, run, about in zip(self._jobs, before, self._about, strict=True)
        ]
        finished = [run for run in runs if run.state == "done"] + self._others
        if [run.state for run in runs] != [run and run.state for run in before]:
            return [self._row(index, run, finished) for index, run in enumerate(runs)]
        return [
            self._row(index, run, finished) if run.state == "running" else row
            for index, (run, row) in enumerate(zip(runs, self._rows, strict=True))
        ]

    def _row(self, index: int, run: RunRecord, finished: Sequence[RunRecord]) -> Row:
        seconds = seconds_taken(run) if run.state == "done" else seconds_left(run, run.config, finished)
        return Row(self._labels[index], run, seconds)

    def _time_left(self) -> str:
        """Return how long the jobs may take that are not over, as many at once as run now."""
        left = [row.seconds for row in self._rows if row.run.state in ("running", "pending", "stopped")]
        known = [seconds for seconds in left if seconds is not None]
        running = sum(row.run.state == "running" for row in self._rows)
        return f"About {duration(sum(known) / max(1, running))} left." if known else ""


def window(rows: Sequence[Row], room: int) -> Sequence[Row]:
    """Return as many rows as there is room for, those that run and what is near them."""
    running = next((index for index, row in enumerate(rows) if row.run.state == "running"), 0)
    start = max(0, min(running - room // 3, len(rows) - room))
    return rows[start : start + room]


def _short_labels(jobs: Sequence[Job]) -> list[str]:
    """Return what jobs differ in beside OWN_COLUMN."""
    others = [
        replace(job, overrides=tuple(line for line in job.overrides if line.partition("=")[0] not in OWN_COLUMN))
        for job in jobs
    ]
    return ["" if label == job.folder.name else label for label, job in zip(labels(others), jobs, strict=True)]
