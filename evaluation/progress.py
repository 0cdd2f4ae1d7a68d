"""The one display of a run in a terminal: the run, its stage, and the loops inside it.

While it is shown the log goes to `run.log` only, but for warnings and a line for every stage that is over. Where there is no
terminal, or several runs share one, nothing is shown and the log is printed as plain lines.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.result import RunResult
from pruning.progress import Step, shown_on

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@contextmanager
def run_display(folder: Path, alone: bool) -> Iterator[None]:
    """Show the run that works in `folder` while the block is carried out, where it has a terminal for itself.

    Args:
        folder: of the run.
        alone: whether no other run prints to the same terminal.
    """
    from rich.live import Live

    console = terminal()
    if not (alone and console.is_terminal):
        yield
        return
    display = RunDisplay(folder.name, expected_seconds(folder), console)
    with (
        Live(display, console=console, transient=True, redirect_stdout=sys.stdout.isatty()),
        quiet_terminal_logs(),
        shown_on(display),
    ):
        yield


@cache
def terminal() -> Console:
    """Return the console of this process's terminal: what is shown there at the same time stands one below the other."""
    from rich.console import Console

    return Console(stderr=True)


def expected_seconds(folder: Path) -> dict[str, float]:
    """Return the seconds of every stage of the newest finished run beside `folder`; empty when there is none."""
    results = sorted(folder.parent.glob("*/result.json"), key=lambda path: path.stat().st_mtime)
    newest = RunResult.read(results[-1]) if results else None
    return newest.timings if newest else {}


@contextmanager
def quiet_terminal_logs() -> Iterator[None]:
    """Let only warnings pass to the terminal, through the display so that they stand above it."""
    with ExitStack() as restored:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream.isatty():
                restored.callback(handler.setLevel, handler.level)
                restored.callback(handler.setStream, handler.stream)
                handler.setLevel(logging.WARNING)
                handler.setStream(sys.stderr)
        yield


@dataclass
class Line:
    """One loop that is running."""

    text: str
    total: int
    done: int = 0
    started: float = field(default_factory=lambda: time.monotonic())

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far."""
        return self.seconds * (self.total - self.done) / self.done if self.done else None


class RunDisplay:
    """Draws the run and the loops that are open. The outermost loop is a stage of the run."""

    def __init__(self, name: str, expected: Mapping[str, float], console: Console) -> None:
        """Begin the clock of the run.

        Args:
            name: of the run.
            expected: stage -> seconds that it is likely to take; what is left of the run is estimated by it.
            console: the terminal.
        """
        self.console = console
        self._run = Line(name, 1)
        self._to_come = dict(expected)
        self._open: list[Line] = []

    @contextmanager
    def loop(self, description: str, total: int) -> Iterator[Step]:
        """Show a loop as long as the context is open; print a line when a stage is over."""
        line = Line(description, total)
        self._open.append(line)

        def step(done: int = 1, now: str | None = None) -> None:
            line.done += done
            line.text = f"{description}: {now}" if now else line.text

        try:
            yield step
            if line is self._open[0]:
                self.console.print(f"  [green]✓[/] {description} [dim]{clock(line.seconds)}[/]", highlight=False)
        finally:
            self._open.remove(line)
            self._to_come.pop(description, None)

    def __rich__(self) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for width in (20, 9, 7, 12):
            table.add_column(width=width, justify="right", no_wrap=True)
        running = list(self._open)
        stage_left = self._stage_seconds_left(running)
        run_left = self._run_seconds_left(running, stage_left)
        table.add_row(self._run.text, "", "", clock(self._run.seconds), left(run_left))
        for depth, line in enumerate(running):
            bar = ProgressBar(line.total, line.done, width=20) if line.total > 1 else ""
            count = f"{line.done}/{line.total}" if line.total > 1 else ""
            remaining = line.seconds_left if depth else stage_left
            table.add_row("  " * (depth + 1) + line.text, bar, count, clock(line.seconds), left(remaining))
        return table

    def _stage_seconds_left(self, running: Sequence[Line]) -> float | None:
        """Return what is left of the present stage: by what it took before, and at least what its first loop needs."""
        known = [line.seconds_left for line in running[1:2] if line.seconds_left is not None]
        for stage in running[:1]:
            if stage.text in self._to_come:
                known.append(max(0.0, self._to_come[stage.text] - stage.seconds))
        return max(known) if known else None

    def _run_seconds_left(self, running: Sequence[Line], stage_left: float | None) -> float | None:
        present = {stage.text: stage_left or 0.0 for stage in running[:1]}
        return sum((self._to_come | present).values()) if self._to_come else None


def clock(seconds: float) -> str:
    """Return minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def left(seconds: float | None) -> str:
    """Return what is left as the display shows it; nothing when it is not known."""
    return "" if seconds is None else f"{clock(seconds)} left"
