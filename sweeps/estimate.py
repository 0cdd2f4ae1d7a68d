"""How long the runs that are left may take, by what finished runs of the study took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from evaluation.dashboard.runs import RunRecord


def seconds_left(run: RunRecord, config: Mapping[str, Any], finished: Sequence[RunRecord]) -> float | None:
    """Estimate how long a run will still take: as long as the finished runs that are most like it did.

    Runs are alike in as many keys as have equal values.

    Args:
        run: the run.
        config: its configuration, dotted key -> value.
        finished: finished runs of the study.

    Returns:
        Seconds: 0 for a finished run, None where there is nothing to estimate from.
    """
    if run.state == "done":
        return 0.0
    if not finished:
        return None
    likeness = [sum(other.config.get(key) == value for key, value in config.items()) for other in finished]
    alike = [seconds_taken(other) for other, equal in zip(finished, likeness, strict=True) if equal == max(likeness)]
    expected = sum(alike) / len(alike)
    if run.state == "running" and run.started:
        expected -= (datetime.now(UTC) - datetime.fromisoformat(run.started)).total_seconds()
    return max(0.0, expected)


def seconds_taken(run: RunRecord) -> float:
    """Return how long a finished run took: the sum of its stages, in seconds."""
    return sum(run.timings.values())


def duration(seconds: float) -> str:
    """Return a time for a person: seconds, minutes and seconds, or hours and minutes."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
