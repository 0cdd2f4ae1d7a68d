"""The schedule that has a stability for its target instead of a number of events."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from pruning.schedule import Instability, Schedule

log = logging.getLogger(__name__)


@dataclass
class StabilityTarget(Schedule):
    """Every event as large as its instability may be: many small stable events or few large unstable ones in one number.

    Instability is the relative drop of next-token accuracy on the probe text, (t_pre - t_post) / t_pre (Bartoldson et al.,
    NeurIPS 2020). The ratio of an event is found by bisection, on units that are held at zero for the time being.
    """

    instability: float = 0.05
    """What every event is to have, in (0, 1)."""

    tolerance: float = 0.005
    """The search ends when the measured instability is as near to that."""

    smallest_step: float = 0.01
    """Ratios are tried in steps no smaller than this; at least one unit."""

    max_events: int = 16
    """Events at most; the last one takes what is left, whatever its instability."""

    def __post_init__(self) -> None:
        for name in ("instability", "smallest_step"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise ValueError(f"schedule.{name}={value}: must be in (0, 1)")
        if not 0 <= self.tolerance < self.instability:
            raise ValueError(
                f"schedule.tolerance={self.tolerance}: must be in [0, schedule.instability={self.instability})"
            )
        if self.max_events < 1:
            raise ValueError(f"schedule.max_events={self.max_events}: must be at least 1")

    @property
    def num_events(self) -> int:
        """1: one event may be stable enough."""
        return 1

    def check(self, target: float, finest: float) -> None:
        """Raise when the smallest step is larger than the whole way, or smaller than a unit."""
        if not finest <= self.smallest_step <= target:
            raise ValueError(
                f"schedule.smallest_step={self.smallest_step}: must be at least the smallest unit that may leave "
                f"({finest:.2g} of the model) and at most pruning.ratio={target}"
            )

    def next_ratio(self, event: int, before: float, target: float, instability: Instability) -> float:
        """Return the largest ratio found whose event is as stable as asked: `target` if it is, else by bisection.

        Ratios divide the way that is left evenly, so that the rest is never smaller than `smallest_step`.
        """
        parts = max(1, int((target - before) / self.smallest_step + 1e-9))  # 0.3 / 0.1 is below 3
        ratios = [before + (target - before) * part / parts for part in range(parts)] + [target]
        if event == self.max_events - 1:
            log.warning("schedule.max_events=%d: the last event takes all that is left", self.max_events)
            return target
        stable, unstable = 0, parts
        if instability(target) <= self.instability + self.tolerance:
            return target
        while unstable - stable > 1:
            middle = (stable + unstable) // 2
            found = instability(ratios[middle])
            if abs(found - self.instability) <= self.tolerance:
                return ratios[middle]
            stable, unstable = (middle, unstable) if found < self.instability else (stable, middle)
        if not stable:
            log.warning("the smallest step, to a ratio of %.4f, is less stable than asked; it is taken", ratios[1])
        return ratios[max(1, stable)]

    def progress(self, event: int, ratio: float, target: float) -> float:
        """Return how much of the way is gone: ratio / s."""
        return ratio / target
