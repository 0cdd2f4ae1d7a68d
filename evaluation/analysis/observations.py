"""The finished runs of a study as a table: one row a run, its arm, its figures.

The surprise: an arm is everything that a run was asked for except its seed, the ratio included. Runs of one arm are
repetitions; arms are what an experiment chose.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.dashboard.comparison import arms
from evaluation.dashboard.runs import RunRecord, find_runs, read_run

RATIO = "pruned/ratio_reached"
TAIL_STEPS = "recovery/tail_steps"
"""Steps of the recovery that came after the last event; worked out from the configuration."""


@dataclass(frozen=True)
class Study:
    """Finished runs, in columns of equal length N."""

    title: str
    runs: tuple[RunRecord, ...]
    curves: tuple[str, ...]
    """Name of each run's options without seed and ratio: the runs of one ratio-quality curve."""

    arms: tuple[str, ...]
    """Name of each run's options without seed."""

    left_out: Mapping[str, int]
    """State -> number of runs that are not finished, and so not in the table."""

    def column(self, name: str) -> np.ndarray:
        """Return the metric `name` of every run, (N,); NaN where a run does not have it."""
        if name == TAIL_STEPS:
            return np.array([tail_steps(run) for run in self.runs])
        found = np.array([_number(run.metrics.get(name)) for run in self.runs], float)
        return np.where(self.asked() == 0, 0.0, found) if name == RATIO else found

    def asked(self) -> np.ndarray:
        """Return the ratio that every run was asked for, (N,)."""
        return np.array([_number(run.config.get("pruning.ratio")) for run in self.runs], float)

    def names(self) -> list[str]:
        """Return the names of all metrics that are a number in some run."""
        found = {name for run in self.runs for name, value in run.metrics.items() if math.isfinite(_number(value))}
        return sorted(found | {TAIL_STEPS})

    def rates(self) -> np.ndarray:
        """Return the percentage removed per event of every run, (N,), rounded to 0.01; NaN for a run without events."""
        events = np.array([len(run.events) or math.nan for run in self.runs], float)
        return np.round(100 * self.asked() / events, 2)


def read_study(folders: Sequence[Path]) -> Study:
    """Read every run under `folders`; those that are not finished are counted and left out.

    Raises:
        ValueError: a folder is not there, or none of its runs is finished.
    """
    found = [read_run(folder) for folder in find_runs(folders)]
    runs = [run for run in found if run.state == "done"]
    states = Counter(run.state for run in found if run.state != "done")
    if not runs:
        said = ", ".join(f"{count} {state}" for state, count in states.items()) or "no runs at all"
        raise ValueError(f"{', '.join(map(str, folders))}: no finished run to analyse ({said})")
    curves = arms(runs)
    ratios = [run.config.get("pruning.ratio") for run in runs]
    several = len(set(ratios)) > 1
    named = [f"{curve} · r={ratio}" if several else curve for curve, ratio in zip(curves, ratios, strict=True)]
    title = ", ".join(dict.fromkeys(folder.resolve().name for folder in folders))
    return Study(title, tuple(runs), tuple(curves), tuple(named), dict(states))


def matching(study: Study, patterns: Sequence[str], option: str) -> list[str]:
    """Return the metrics of a study that the patterns name, in their order, each once.

    Args:
        study: the finished runs.
        patterns: names of metrics, or patterns with `*`; patterns leave out ends of intervals and standard errors.
        option: what the error calls the option they are from.

    Raises:
        ValueError: a pattern names no metric that a finished run has.
    """
    known, found = study.names(), []
    for pattern in patterns:
        fitting = _fitting(known, pattern)
        if not fitting:
            near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.4)
            hint = f"; near names: {', '.join(near)}" if near else ""
            raise ValueError(
                f"{option} {pattern}: no finished run has such a metric (docs/metrics.md lists them){hint}"
            )
        found += fitting
    return list(dict.fromkeys(found))


def present(study: Study, patterns: Sequence[str]) -> list[str]:
    """Return the metrics of a study that the patterns name, as `matching` does; one that nothing has is passed over."""
    known = study.names()
    return list(dict.fromkeys(name for pattern in patterns for name in _fitting(known, pattern)))


def tail_steps(run: RunRecord) -> float:
    """Return how many steps of a run's recovery came after its last event, as `Recovery.steps_after` deals them out.

    With `recovery.when=last` all of them; with `each` the part `recovery.tail`, and of the others what falls to the last
    event, in proportion to the progress it made.
    """
    steps = _number(run.metrics.get("recovery/steps"))
    if run.config.get("recovery.when", "last") != "each" or not run.events or math.isnan(steps):
        return steps
    shared = steps - round(_number(run.config.get("recovery.tail", 0.0)) * steps)
    return steps - int(shared * (1 - _last_progress(run)) + 1e-9)


def _last_progress(run: RunRecord) -> float:
    """Return the part of the schedule that the last event made: of the ratio where events are sized as they come."""
    if run.choices.get("schedule") != "stability_target":
        return 1 / len(run.events)
    asked = [_number(event.get("event/ratio_asked")) for event in run.events]
    return 1 - asked[-2] / asked[-1] if len(asked) > 1 else 1.0


def _fitting(known: Sequence[str], pattern: str) -> list[str]:
    from fnmatch import fnmatchcase

    if "*" not in pattern:
        return [pattern] if pattern in known else []
    ends = ("_low", "_high", "_stderr", "_se")
    return [name for name in known if fnmatchcase(name, pattern) and not name.endswith(ends)]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
