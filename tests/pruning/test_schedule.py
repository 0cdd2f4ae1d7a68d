"""Schedules: increasing, ending at the target, with the curves they are named after."""

from __future__ import annotations

import pytest

from pruning.schedule import Cubic, Exponential, Linear, OneShot, Schedule

ALL = [OneShot(), Linear(events=5), Cubic(events=5), Exponential(events=5), Linear(events=1)]


@pytest.mark.parametrize("schedule", ALL, ids=str)
@pytest.mark.parametrize("target", [0.01, 0.2, 0.9])
def test_ratios_increase_strictly_and_end_at_the_target(schedule: Schedule, target: float) -> None:
    ratios = schedule.ratios(target)
    assert len(ratios) == schedule.num_events
    assert all(low < high for low, high in zip((0.0, *ratios), ratios, strict=False))
    assert ratios[-1] == target


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_a_target_of_zero_has_no_events(schedule: Schedule) -> None:
    assert schedule.ratios(0.0) == ()


def test_curves_by_hand() -> None:
    assert Linear(events=4).ratios(0.4) == pytest.approx((0.1, 0.2, 0.3, 0.4))
    assert Cubic(events=2).ratios(0.4) == pytest.approx((0.4 * (1 - 0.125), 0.4))
    assert Exponential(events=2).ratios(0.75) == pytest.approx((0.5, 0.75))


def test_too_few_events_are_refused() -> None:
    with pytest.raises(ValueError, match=r"schedule\.events=0"):
        Linear(events=0)
