"""The stability target: events as large as their instability may be, whatever the curve they are measured on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pruning.stability_target import StabilityTarget

CURVES: dict[str, Callable[[float, float], float]] = {
    "linear": lambda before, ratio: 0.5 * (ratio - before),
    "square": lambda before, ratio: ratio**2 - before**2,
    "step": lambda before, ratio: 0.0 if ratio < 0.105 else 0.4,
    "flat": lambda before, ratio: 0.01,
    "steep": lambda before, ratio: min(1.0, 50 * (ratio - before)),
}
"""Instability of an event from one cumulative ratio to the next."""


def events(schedule: StabilityTarget, curve: Callable[[float, float], float], target: float) -> list[float]:
    """Return the ratios of a whole run."""
    ratios = [0.0]
    while ratios[-1] < target:
        before = ratios[-1]
        ratios.append(schedule.next_ratio(len(ratios) - 1, before, target, lambda ratio: curve(before, ratio)))  # noqa: B023
    return ratios


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("goal", [0.01, 0.03, 0.2])
def test_every_event_is_within_tolerance_or_the_largest_that_is_stable(name: str, goal: float) -> None:
    curve, step = CURVES[name], 0.004
    schedule = StabilityTarget(instability=goal, tolerance=goal / 10, smallest_step=step, max_events=1000)
    ratios = events(schedule, curve, 0.3)
    assert ratios[-1] == 0.3
    for before, ratio in zip(ratios, ratios[1:], strict=False):
        assert ratio - before >= step * (1 - 1e-9)
        found = curve(before, ratio)
        if abs(found - goal) <= schedule.tolerance or (ratio == 0.3 and found < goal):
            continue
        # the way is divided evenly into steps of less than twice the smallest
        if found < goal:  # then one step more is too much
            assert curve(before, ratio + 2 * step) > goal
        else:
            assert ratio - before < 2 * step


def test_a_straight_line_is_divided_evenly() -> None:
    """At half a point of instability per point of ratio, 0.1 each are events of 0.2; what is left at the end is smaller."""
    schedule = StabilityTarget(instability=0.1, tolerance=0.0001, smallest_step=0.0001)
    assert events(schedule, CURVES["linear"], 0.5) == pytest.approx([0, 0.2, 0.4, 0.5], abs=5e-4)


def test_the_search_halves() -> None:
    asked: list[float] = []

    def measured(ratio: float) -> float:
        asked.append(ratio)
        return ratio

    StabilityTarget(instability=0.03, tolerance=0, smallest_step=0.001).next_ratio(0, 0.0, 0.512, measured)
    assert asked[:4] == pytest.approx([0.512, 0.256, 0.128, 0.064])
    assert len(asked) <= 1 + 9


def test_the_last_event_allowed_takes_all_that_is_left_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    schedule = StabilityTarget(instability=0.01, tolerance=0.001, smallest_step=0.001, max_events=3)
    ratios = events(schedule, CURVES["linear"], 0.3)
    assert len(ratios) == 4
    assert "schedule.max_events=3" in caplog.text
    assert ratios[-1] - ratios[-2] > 0.2


def test_a_smallest_step_that_is_too_much_is_taken_and_said(caplog: pytest.LogCaptureFixture) -> None:
    schedule = StabilityTarget(instability=0.01, tolerance=0.001, smallest_step=0.1, max_events=9)
    assert events(schedule, CURVES["steep"], 0.3) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert caplog.text.count("less stable than asked") == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"instability": 0.0}, r"schedule\.instability=0\.0: must be in \(0, 1\)"),
        ({"tolerance": 0.05}, r"schedule\.tolerance=0\.05: must be in \[0, schedule\.instability=0\.05\)"),
        ({"smallest_step": 1.0}, r"schedule\.smallest_step=1\.0"),
        ({"max_events": 0}, r"schedule\.max_events=0"),
    ],
)
def test_values_out_of_range_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StabilityTarget(**values)


@pytest.mark.parametrize(("target", "finest"), [(0.005, 0.001), (0.3, 0.02)])
def test_a_step_that_no_unit_fits_into_or_the_way_is_too_short_for_is_refused(target: float, finest: float) -> None:
    with pytest.raises(ValueError, match=r"schedule\.smallest_step=0\.01: .*pruning\.ratio"):
        StabilityTarget().check(target, finest)
