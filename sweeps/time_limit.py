"""A limit on the time of a run.

Two clocks: an alarm that raises in the run, after which the sweep goes on; and, for code that does not come back to Python,
a watchdog that writes where the program hangs and ends the process. The same command then goes on with the other runs.
"""

from __future__ import annotations

import faulthandler
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

GRACE = 60.0
"""Seconds that a run has to end after its alarm, which is raised again every sixtieth of them."""


class TimeLimitExceeded(Exception):
    """A run took longer than `time_limit`."""


@contextmanager
def time_limit(minutes: float | None, log: Path, grace: float = GRACE) -> Iterator[None]:
    """Raise in the block when it takes longer than `minutes`, and end the process when that does not help.

    Args:
        minutes: None for no limit.
        log: file that the watchdog writes the threads' stacks to.
        grace: seconds between the alarm and the end of the process.

    Raises:
        TimeLimitExceeded: the time is over. In a thread other than the main one only the watchdog works.
    """
    if minutes is None:
        yield
        return

    def expired(signum: int, frame: FrameType | None) -> None:
        if not _imports(frame):  # a library whose import is broken off cannot be imported again: the next alarm will do
            raise TimeLimitExceeded(f"time_limit={minutes:g}: the run took longer than {minutes:g} minutes")

    with log.open("a", encoding="utf-8") as file:
        faulthandler.dump_traceback_later(minutes * 60 + grace, exit=True, file=file)
        try:
            if threading.current_thread() is threading.main_thread():
                with _alarm(expired, minutes * 60, again=grace / 60):
                    yield
            else:
                yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def _imports(frame: FrameType | None) -> bool:
    """Say whether a module is being imported where `frame` is."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


@contextmanager
def _alarm(handler: Callable[[int, FrameType | None], None], seconds: float, again: float) -> Iterator[None]:
    """Call `handler` in the block after some seconds, and again every so many."""
    handler_before = signal.signal(signal.SIGALRM, handler)
    timer_before = signal.setitimer(signal.ITIMER_REAL, seconds, again)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # the alarm may strike in the lines above
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler_before)
        signal.setitimer(signal.ITIMER_REAL, *timer_before)
