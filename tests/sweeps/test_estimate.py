from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from evaluation.dashboard.runs import RunRecord
from sweeps.estimate import duration, seconds_left


def finished(seconds: float, **config: object) -> RunRecord:
    return RunRecord(
        folder="f", name="n", study="s", state="done", config=config, timings={"load": 1.0, "dense": seconds - 1}
    )


def waiting(state: str = "pending", started: str | None = None) -> RunRecord:
    return RunRecord(folder="f", name="n", study="s", state=state, started=started)


def test_a_run_takes_as_long_as_the_finished_runs_that_are_most_like_it() -> None:
    runs = [finished(100, ratio=0.1, steps=10), finished(120, ratio=0.2, steps=10), finished(900, ratio=0.1, steps=100)]
    assert seconds_left(waiting(), {"ratio": 0.3, "steps": 10}, runs) == pytest.approx(110)
    assert seconds_left(waiting(), {"ratio": 0.2, "steps": 10}, runs) == pytest.approx(120)
    assert seconds_left(waiting(), {"ratio": 0.3, "steps": 100}, runs) == pytest.approx(900)
    assert seconds_left(waiting("failed"), {"ratio": 0.3, "steps": 1}, runs) == pytest.approx((100 + 120 + 900) / 3)


def test_the_time_a_running_run_has_had_is_taken_off() -> None:
    started = (datetime.now(UTC) - timedelta(seconds=40)).isoformat(timespec="seconds")
    assert seconds_left(waiting("running", started), {}, [finished(100)]) == pytest.approx(60, abs=3)
    assert seconds_left(waiting("stopped", started), {}, [finished(100)]) == pytest.approx(100)
    assert seconds_left(waiting("running", started), {}, [finished(10)]) == 0


def test_nothing_is_left_of_a_finished_run_and_nothing_is_known_without_one() -> None:
    assert seconds_left(finished(5), {}, []) == 0
    assert seconds_left(waiting(), {}, []) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (61, "1 min 01 s"),
        (3599.6, "1 h 00 min"),
        (90000, "25 h 00 min"),
    ],
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
