"""Schedules: the cumulative ratios at which the events of a run cut, on the way to a target ratio.

s is the target, K the number of events, k = 1..K. Every schedule ends exactly at s; a target of 0 has no events.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Instability = Callable[[float], float]
"""Cumulative ratio -> the instability on next-token accuracy, a fraction, of the event that would reach it."""


@dataclass
class Schedule:
    """Base of the `schedule` options."""

    @property
    def num_events(self) -> int:
        """Number of events, K; at least, where they are sized as they come."""
        raise NotImplementedError

    def check(self, target: float, finest: float) -> None:
        """Raise a ValueError when this schedule cannot go on to `target`. Called before any work.

        Args:
            target: s, above 0.
            finest: the smallest ratio that whole units can make up; 0 where it is not known.
        """

    def next_ratio(self, event: int, before: float, target: float, instability: Instability) -> float:
        """Return the cumulative ratio that an event cuts to: above `before`, at most `target`.

        Args:
            event: how many events there were before.
            before: the cumulative ratio that the last of them cut to.
            target: s.
            instability: measures what a ratio would do to the model as it is now.
        """
        raise NotImplementedError

    def progress(self, event: int, ratio: float, target: float) -> float:
        """Return how far the run is when the event that cuts to `ratio` is over, in (0, 1]; 1 after the last."""
        raise NotImplementedError


@dataclass
class FixedSchedule(Schedule):
    """Base of the schedules whose ratios are known beforehand."""

    def next_ratio(self, event: int, before: float, target: float, instability: Instability) -> float:
        """Return the ratio of the event; nothing is measured."""
        return self.ratios(target)[event]

    def progress(self, event: int, ratio: float, target: float) -> float:
        """Return k/K."""
        return (event + 1) / self.num_events

    def ratios(self, target: float) -> tuple[float, ...]:
        """Return strictly increasing cumulative ratios, the last one equal to `target`."""
        events = self.num_events
        if target == 0:
            return ()
        return (*(self.fraction(k / events, target) for k in range(1, events)), target)

    def fraction(self, progress: float, target: float) -> float:
        """Return the cumulative ratio at `progress` = k/K in (0, 1)."""
        raise NotImplementedError


@dataclass
class OneShot(FixedSchedule):
    """Everything in one event."""

    @property
    def num_events(self) -> int:
        """Number of events, K."""
        return 1

    def fraction(self, progress: float, target: float) -> float:
        """Return the target: there is no event before the last."""
        return target


@dataclass
class IterativeSchedule(FixedSchedule):
    """Base of the schedules with several events; importance is scored again before each."""

    events: int = 4
    """Number of events, K."""

    def __post_init__(self) -> None:
        if self.events < 1:
            raise ValueError(f"schedule.events={self.events}: must be at least 1")

    @property
    def num_events(self) -> int:
        """Number of events, K."""
        return self.events


@dataclass
class Linear(IterativeSchedule):
    """Equal steps: s k/K (the schedule of the generalization-stability paper)."""

    def fraction(self, progress: float, target: float) -> float:
        """Return s k/K."""
        return target * progress


@dataclass
class Cubic(IterativeSchedule):
    """Large steps first: s (1 - (1 - k/K)^3) (Zhu and Gupta, 2017)."""

    def fraction(self, progress: float, target: float) -> float:
        """Return s (1 - (1 - k/K)^3)."""
        return target * (1 - (1 - progress) ** 3)


@dataclass
class Exponential(IterativeSchedule):
    """The same fraction of what is left at each event: 1 - (1 - s)^(k/K)."""

    def fraction(self, progress: float, target: float) -> float:
        """Return 1 - (1 - s)^(k/K)."""
        return 1 - (1 - target) ** progress
