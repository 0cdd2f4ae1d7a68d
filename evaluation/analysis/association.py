"""How one figure of a run goes with another, over the runs of a study.

A pooled correlation mixes two things: arms that differ in both figures, and runs of one arm. So beside it stand the correlation
inside arms (arm means removed), the one with covariates held constant, and an interval from resampling whole arms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from evaluation.analysis import correlation
from evaluation.analysis.estimate import Estimate, Resampled, Settings, of_term
from evaluation.analysis.observations import Study
from evaluation.analysis.regression import holm, least_squares, theil_sen

FEWEST_RUNS = 8
"""Below this number no statistic is given: r = 0.7 of 7 runs cannot be told from 0."""


@dataclass(frozen=True)
class Association:
    """y against x over runs that have both."""

    x: str
    y: str
    runs: int
    arms: int
    trouble: str = ""
    """Why there are no estimates."""

    estimates: dict[str, Estimate] = field(default_factory=dict)
    """pearson, spearman, kendall, partial, within, slope, theil_sen, quadratic."""


def associate(study: Study, x: str, y: str, settings: Settings, among: np.ndarray | None = None) -> Association:
    """Return how y goes with x over the runs that have both, or why that cannot be said.

    Args:
        study: the finished runs.
        x: name of a metric.
        y: name of a metric.
        settings: of the intervals, and what is held constant.
        among: which runs are looked at, (N,) bool; None for all.
    """
    xs, ys = study.column(x), study.column(y)
    both = np.isfinite(xs) & np.isfinite(ys) & (True if among is None else among)
    labels = [arm for arm, kept in zip(study.arms, both, strict=True) if kept]
    about = Association(x, y, len(labels), len(set(labels)))
    xs, ys = xs[both], ys[both]
    if trouble := _trouble(xs, ys):
        return replace(about, trouble=trouble)
    given = {name: study.column(name)[both] for name in settings.given}
    return replace(about, estimates=_estimates(xs, ys, labels, given, settings))


def associate_all(study: Study, pairs: Sequence[tuple[str, str]], settings: Settings) -> list[Association]:
    """Return the association of every pair (x, y), with p-values corrected for the number of pairs (Holm)."""
    found = [associate(study, x, y, settings) for x, y in pairs]
    for kind in ("pearson", "spearman", "kendall", "partial", "within", "slope", "quadratic"):
        tested = [one for one in found if kind in one.estimates]
        for one, p in zip(tested, holm([one.estimates[kind].p for one in tested]), strict=True):
            one.estimates[kind] = replace(one.estimates[kind], p_holm=p)
    return found


def associate_by_rate(study: Study, x: str, y: str, settings: Settings) -> list[tuple[float, Association]]:
    """Return the association within each rate of pruning (percent removed per event), by rising rate."""
    rates = study.rates()
    return [
        (float(rate), associate(study, x, y, settings, rates == rate)) for rate in np.unique(rates[np.isfinite(rates)])
    ]


def _trouble(xs: np.ndarray, ys: np.ndarray) -> str:
    if not len(xs):
        return "no run has both"
    if len(xs) < FEWEST_RUNS:
        return f"too few runs: {len(xs)}, and {FEWEST_RUNS} are needed"
    constant = [axis for axis, values in (("x", xs), ("y", ys)) if np.ptp(values) == 0]
    return f"{' and '.join(constant)} the same in all runs" if constant else ""


def _estimates(
    xs: np.ndarray, ys: np.ndarray, labels: list[str], given: dict[str, np.ndarray], settings: Settings
) -> dict[str, Estimate]:
    from scipy import stats

    resampled = Resampled(xs, ys, labels, settings)
    p_values = [float(test(xs, ys).pvalue) for test in (stats.pearsonr, stats.spearmanr, stats.kendalltau)]
    fisher = correlation.fisher_interval(float(np.corrcoef(xs, ys)[0, 1]), len(xs), 0, settings.confidence)
    line = least_squares(xs, ys, settings.confidence)
    return {
        "pearson": resampled.estimate(correlation.pearson, p_values[0], normal=fisher),
        "spearman": resampled.estimate(correlation.spearman, p_values[1]),
        "kendall": resampled.estimate(correlation.kendall, p_values[2]),
        "partial": _given(resampled, given),
        "within": _within(resampled, labels),
        "slope": resampled.estimate(correlation.slope, line.p, normal=(line.low, line.high), stderr=line.stderr),
        "theil_sen": of_term(theil_sen(xs, ys, settings.confidence)),
        "quadratic": _quadratic(xs, ys, settings.confidence),
    }


def _given(resampled: Resampled, given: dict[str, np.ndarray]) -> Estimate:
    """Return the partial correlation given the covariates that vary."""
    missing = [name for name, column in given.items() if not np.isfinite(column).all()]
    if missing:
        return Estimate(math.nan, note=f"{', '.join(missing)} is missing in some runs")
    varying = {name: column for name, column in given.items() if np.ptp(column) > 0}
    if not varying:
        why = f"{', '.join(given)} does not vary" if given else "nothing was given"
        return Estimate(math.nan, note=f"nothing to hold constant: {why}")
    found = resampled.partial(np.column_stack(list(varying.values())))
    return replace(found, note="; ".join(filter(None, ["given " + ", ".join(varying), found.note])))


def _within(resampled: Resampled, labels: list[str]) -> Estimate:
    """Return the correlation inside arms: the partial one given which arm a run is of, so that arm means are removed."""
    arms = sorted(set(labels))
    if len(arms) == len(labels):
        return Estimate(math.nan, note="every arm has a single run")
    if len(arms) == 1:
        return Estimate(math.nan, note="there is one arm: the same as pooled")
    member = np.array([[label == arm for arm in arms[1:]] for label in labels], float)
    return resampled.partial(member)


def _quadratic(xs: np.ndarray, ys: np.ndarray, confidence: float) -> Estimate:
    found = of_term(least_squares(xs, ys, confidence, quadratic=True))
    return replace(found, note="x takes two values only") if math.isnan(found.value) else found
