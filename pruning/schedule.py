"""Schedules: a target ratio becomes the cumulative ratios at which the events of a run cut.

s is the target, K the number of events, k = 1..K. Every schedule ends exactly at s; a target of 0 has no events.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Schedule:
    """Base of the `schedule` options."""

    def ratios(self, target: float) -> tuple[float, ...]:
        """Return strictly increasing cumulative ratios, the last one equal to `target`."""
        events = self.num_events
        if target == 0:
            return ()
        return (*(self.fraction(k / events, target) for k in range(1, events)), target)

    @property
    def num_events(self) -> int:
        """Number of events, K."""
        raise NotImplementedError

    def fraction(self, progress: float, target: float) -> float:
        """Return the cumulative ratio at `progress` = k/K in (0, 1)."""
        raise NotImplementedError


@dataclass
class OneShot(Schedule):
    """Everything in one event."""

    @property
    def num_events(self) -> int:
        """Number of events, K."""
        return 1

    def fraction(self, progress: float, target: float) -> float:
        """Return the target: there is no event before the last."""
        return target


@dataclass
class IterativeSchedule(Schedule):
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
