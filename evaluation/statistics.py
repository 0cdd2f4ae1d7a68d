"""Means over observations, intervals and tests that the metrics share. Resampling is seeded: equal figures, equal intervals.

A measure is kept as its strata: tuples of observations, one for every task of a zero-shot mean, a single one for the blocks of
a text. Its value is the unweighted mean over the strata of their means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

Strata: TypeAlias = Sequence[Sequence[float]]

AT_ONCE = 10_000_000
"""Resampled observations of one stratum that are held in memory at a time."""


def stratified_mean(strata: Strata) -> float:
    """Return the unweighted mean over the strata of their means."""
    return float(np.mean([np.mean(stratum) for stratum in strata]))


def stratified_error(strata: Strata) -> float:
    """Return the standard error of `stratified_mean`: sqrt(sum of s^2 / n over the K strata) / K.

    s is a stratum's sample standard deviation, n its number of observations. Infinite where a stratum has only one.
    """
    if any(len(stratum) < 2 for stratum in strata):
        return math.inf
    return math.sqrt(sum(np.var(stratum, ddof=1) / len(stratum) for stratum in strata)) / len(strata)


def paired_differences(first: Strata, second: Strata) -> Strata:
    """Return first - second, observation by observation."""
    return [np.subtract(*pair).tolist() for pair in zip(first, second, strict=True)]


def resampled_means(samples: Sequence[Strata], resamples: int) -> np.ndarray:
    """Return `stratified_mean` of samples of the same observations in bootstrap resamples, (len(samples), resamples).

    The observations of every stratum are drawn with replacement, the same ones for all samples (Efron and Tibshirani 1993,
    chapter 8). The draws depend on the sizes of the strata only: calls for samples of equal sizes belong together as well.

    Returns:
        NaN where a stratum has a single observation.
    """
    draw = np.random.default_rng(0)
    found = np.zeros((len(samples), resamples))
    for strata in zip(*samples, strict=True):
        values = np.array(strata, float)
        size = values.shape[1]
        at_once = max(1, AT_ONCE // size)
        for start in range(0, resamples, at_once):
            chosen = draw.integers(size, size=(min(at_once, resamples - start), size))
            for row, sample in enumerate(values):
                found[row, start : start + len(chosen)] += sample[chosen].mean(axis=1)
        if size < 2:
            found[:] = np.nan
    return found / len(samples[0])


def percentile_interval(resampled: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic (Efron 1979).

    Args:
        resampled: the statistic in every resample, (resamples,).
        confidence: in (0, 1).

    Returns:
        (low, high); NaN where the statistic is NaN in a resample.
    """
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def with_intervals(
    values: Mapping[str, float], resampled: Mapping[str, np.ndarray], confidence: float
) -> dict[str, float]:
    """Return every value, followed by the ends of its percentile interval as `<name>_low` and `<name>_high`."""
    found: dict[str, float] = {}
    for name, value in values.items():
        low, high = percentile_interval(resampled[name], confidence)
        found |= {name: float(value), f"{name}_low": low, f"{name}_high": high}
    return found


def sign_test(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of as many differences on one side of zero, were both sides equally likely.

    For differences of outcomes that are right (1) or wrong (0) this is McNemar's exact test. Differences of zero say nothing.
    """
    from scipy.stats import binomtest

    above = sum(difference > 0 for difference in differences)
    below = sum(difference < 0 for difference in differences)
    return float(binomtest(above, above + below).pvalue) if above + below else 1.0
