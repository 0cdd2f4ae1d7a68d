"""Which steps are due after which event."""

from __future__ import annotations

import pytest

from recovery.base import Recovery, When
from recovery.lora import Lora
from recovery.none import NoRecovery
from recovery.task import RecoveryReport, whole_report


def steps_of(recovery: Recovery, events: int) -> list[list[int]]:
    return [list(recovery.steps_after(event / events, (event + 1) / events)) for event in range(events)]


def test_at_the_end_all_steps_are_done_and_before_it_none() -> None:
    assert steps_of(Lora(steps=5), 3) == [[], [], [0, 1, 2, 3, 4]]
    assert Lora(steps=5).steps_after(0.0, 1.0) == range(5)


@pytest.mark.parametrize("events", [1, 2, 3, 7, 9, 10])
@pytest.mark.parametrize("tail", [0.0, 0.25, 0.9])
def test_after_each_event_every_step_is_done_once_and_in_order(events: int, tail: float) -> None:
    shares = steps_of(Lora(steps=120, when=When.each, tail=tail), events)
    assert [step for share in shares for step in share] == list(range(120))
    kept = round(120 * tail)
    assert len(shares[-1]) - kept in (((120 - kept) // events), -(-(120 - kept) // events))
    assert max(map(len, shares[:-1]), default=0) <= (120 - kept) // events + 1


def test_steps_go_with_progress_where_events_are_unequal() -> None:
    recovery = Lora(steps=100, when=When.each, tail=0.5)
    assert recovery.steps_after(0.0, 0.3) == range(15)
    assert recovery.steps_after(0.3, 0.4) == range(15, 20)
    assert recovery.steps_after(0.4, 1.0) == range(20, 100)


def test_without_recovery_nothing_is_due() -> None:
    recovery = NoRecovery(when=When.each)
    recovery.check_events(5)
    assert not recovery.steps_after(0.0, 1.0)


def test_too_few_steps_for_the_events_are_refused() -> None:
    Lora(steps=3, when=When.each).check_events(3)
    Lora(steps=2, when=When.last).check_events(3)
    with pytest.raises(ValueError, match=r"recovery\.steps=2: too few .* 3 events"):
        Lora(steps=2, when=When.each).check_events(3)
    with pytest.raises(ValueError, match=r"recovery\.tail=0\.5"):
        Lora(steps=4, when=When.each, tail=0.5).check_events(3)


@pytest.mark.parametrize("options", [{"tail": 1.0}, {"tail": -0.1}, {"watch_every": 0}])
def test_values_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=rf"recovery\.{next(iter(options))}="):
        NoRecovery(**options)


def test_the_report_of_a_whole_run_adds_up() -> None:
    first = RecoveryReport(range(2), 10, 5, 3.0, None, [{"step": 0}])
    second = RecoveryReport(range(2, 6), 20, 4, 2.0, None, [{"step": 2}])
    assert whole_report([first, second]) == RecoveryReport(range(6), 30, 4, 2.0, None, [{"step": 0}, {"step": 2}])
    assert whole_report([]).metrics()["recovery/steps"] == 0
