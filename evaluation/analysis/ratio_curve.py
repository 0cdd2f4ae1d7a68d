"""Quality over the ratio removed, as a curve that never rises, and the largest ratio that keeps enough of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.analysis.estimate import Settings
from evaluation.analysis.observations import RATIO, Study

NEVER = -math.inf
"""The largest ratio of a curve that is too low at its smallest measured ratio already."""


@dataclass(frozen=True)
class Curve:
    """A piecewise linear curve that does not rise, given by its points. It says nothing beyond its ends."""

    ratios: np.ndarray
    """Rising, (K,)."""

    values: np.ndarray
    """Not rising, (K,)."""

    def largest(self, least: float) -> float:
        """Return the largest measured or interpolated ratio at which the curve is at least `least`; NEVER if none is."""
        enough = np.flatnonzero(self.values >= least)
        if not len(enough):
            return NEVER
        last = enough[-1]
        if last == len(self.ratios) - 1:
            return float(self.ratios[-1])
        (r, next_r), (v, next_v) = self.ratios[last : last + 2], self.values[last : last + 2]
        return float(r + (v - least) / (v - next_v) * (next_r - r))


@dataclass(frozen=True)
class RatioCurve:
    """The curve of one set of options beside seed and ratio, and the largest ratio within some points of the dense model."""

    name: str
    measure: str
    runs: int
    ratios: tuple[float, ...]
    """Measured ratios, mean over the runs that were asked for the same one, (G,)."""

    means: tuple[float, ...]
    """Mean quality of these runs."""

    dense: float
    points: float
    """Tolerance, in points: hundredths of accuracy."""

    fitted: tuple[float, ...] = ()
    """The curve at `ratios`; empty when there is none."""

    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()
    """Interval of the curve at `ratios`; empty where a ratio has a single run."""

    largest: float = math.nan
    largest_low: float = math.nan
    largest_high: float = math.nan
    """Largest ratio within `points` of dense, with its interval; NEVER (-inf) where that was not reached."""

    trouble: str = ""
    """Why there is no curve."""


def fit_curve(ratios: np.ndarray, means: np.ndarray, counts: np.ndarray) -> Curve:
    """Return the curve that does not rise and is nearest to the runs in squares (isotonic regression).

    Runs at one ratio count as their mean with the weight of their number, which gives the same curve.

    Args:
        ratios: rising, (G,).
        means: mean quality at each ratio, higher = better, (G,).
        counts: number of runs at each ratio, (G,).
    """
    from scipy.optimize import isotonic_regression

    return Curve(ratios, isotonic_regression(means, weights=counts, increasing=False).x)


def ratio_curves(study: Study, measure: str, points: float, settings: Settings) -> list[RatioCurve]:
    """Return the curve of every set of options beside seed and ratio that has runs with the measure.

    Args:
        study: the finished runs.
        measure: an accuracy at a stage, such as `recovered/zeroshot/mean`.
        points: how far below the dense model is near enough, in hundredths of accuracy.
        settings: of the interval.
    """
    quality, ratios, asked = study.column(measure), study.column(RATIO), study.asked()
    dense = study.column("dense/" + measure.partition("/")[2])
    found = []
    for name in dict.fromkeys(study.curves):
        own = np.array([curve == name for curve in study.curves]) & np.isfinite(quality) & np.isfinite(ratios)
        if own.any():
            groups = [np.flatnonzero(own & (asked == ratio)) for ratio in np.unique(asked[own])]
            level = float(dense[own].mean())  # the dense model of every run of a curve is the same
            found.append(_ratio_curve(name, measure, groups, ratios, quality, level, points, settings))
    return found


def _ratio_curve(
    name: str,
    measure: str,
    groups: Sequence[np.ndarray],
    ratios: np.ndarray,
    quality: np.ndarray,
    dense: float,
    points: float,
    settings: Settings,
) -> RatioCurve:
    at, means = (np.array([column[group].mean() for group in groups]) for column in (ratios, quality))
    counts = np.array([len(group) for group in groups], float)
    known: dict[str, Any] = {
        "name": name,
        "measure": measure,
        "runs": sum(map(len, groups)),
        "dense": dense,
        "points": points,
    }
    known |= {"ratios": tuple(at.tolist()), "means": tuple(means.tolist())}
    if len(groups) < 2:
        return RatioCurve(**known, trouble=f"one ratio only ({at[0]:.3f}): a curve needs two")
    curve = fit_curve(at, means, counts)
    drawn = [fit_curve(at, row, counts) for row in _resampled_means([quality[group] for group in groups], settings)]
    ends = np.array([1 - settings.confidence, 1 + settings.confidence]) / 2
    if drawn:
        lows, highs = np.quantile([one.values for one in drawn], ends, axis=0)
        known |= {"lows": tuple(lows.tolist()), "highs": tuple(highs.tolist())}
    known["fitted"] = tuple(curve.values.tolist())
    if math.isfinite(least := dense - points / 100):
        known["largest"] = curve.largest(least)
        if drawn:
            low, high = np.quantile([one.largest(least) for one in drawn], ends, method="nearest")
            known |= {"largest_low": float(low), "largest_high": float(high)}
    return RatioCurve(**known)


def _resampled_means(groups: Sequence[np.ndarray], settings: Settings) -> np.ndarray:
    """Return the mean quality (R, G) of runs drawn anew within each ratio; R = 0 where a ratio has a single run.

    A single run has no spread, and an interval that left this out would be too narrow.
    """
    if min(map(len, groups)) < 2:
        return np.empty((0, len(groups)))
    generator = np.random.default_rng(0)
    columns = [generator.choice(group, (settings.resamples, len(group))).mean(axis=1) for group in groups]
    return np.column_stack(columns)
