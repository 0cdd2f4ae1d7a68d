"""Bootstrap and jackknife as weights.

A resample of N runs is how often each run was drawn, a row of weights (N,). So one weighted statistic serves the bootstrap over
runs, the bootstrap over whole arms and the jackknife. Draws are seeded: the same figures give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SOUND = 0.9
"""Least part of the resamples in which a statistic must exist, for an interval to be given."""

FEWEST_CLUSTERS = 5
"""Below this number of arms a bootstrap over arms says nothing: 3 arms make 10 different resamples."""

Interval = tuple[float, float]

NO_INTERVAL = (math.nan, math.nan)


def run_weights(count: int, resamples: int) -> np.ndarray:
    """Return the weights (R, N) of `resamples` draws of N out of N runs with replacement."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)


def cluster_weights(labels: Sequence[str], resamples: int) -> np.ndarray:
    """Return the weights (R, N) of draws of whole clusters: as many as there are, with replacement.

    Args:
        labels: the cluster of each run, (N,).
        resamples: R.
    """
    names, index = np.unique(np.asarray(labels), return_inverse=True)
    return run_weights(len(names), resamples)[:, index]


def jackknife_weights(count: int) -> np.ndarray:
    """Return the weights (N, N) that leave out one run each."""
    return np.ones((count, count)) - np.eye(count)


def bca_interval(estimate: float, drawn: np.ndarray, left_out: np.ndarray, confidence: float) -> Interval:
    """Return the bias-corrected and accelerated bootstrap interval (Efron 1987).

    Its ends are the quantiles Phi(z0 + (z0 + z) / (1 - a (z0 + z))) of the resampled statistic, z the normal quantiles of the
    confidence, z0 the normal quantile of the share of resamples below the estimate (equal ones count half), and
    a = sum d^3 / (6 (sum d^2)^1.5) with d = mean - value of the jackknife.

    Args:
        estimate: the statistic of the sample.
        drawn: the statistic of each resample, (R,); NaN where it does not exist.
        left_out: the statistic without each of the observations, (N,).
        confidence: in (0, 1).
    """
    from scipy.special import ndtr, ndtri

    drawn = _sound(drawn)
    if not len(drawn) or math.isnan(estimate) or not np.isfinite(left_out).all():
        return NO_INTERVAL
    bias = ndtri(((drawn < estimate).mean() + (drawn <= estimate).mean()) / 2)
    d = left_out.mean() - left_out
    spread = (d**2).sum() ** 1.5
    acceleration = (d**3).sum() / (6 * spread) if spread else 0.0
    tails = bias + ndtri(np.array([1 - confidence, 1 + confidence]) / 2)
    levels = ndtr(bias + tails / (1 - acceleration * tails))
    low, high = np.quantile(drawn, levels) if np.isfinite(levels).all() else NO_INTERVAL
    return float(low), float(high)


def percentile_interval(drawn: np.ndarray, confidence: float) -> Interval:
    """Return the quantiles of a resampled statistic (R,) between which `confidence` of it lies."""
    drawn = _sound(drawn)
    if not len(drawn):
        return NO_INTERVAL
    low, high = np.quantile(drawn, np.array([1 - confidence, 1 + confidence]) / 2)
    return float(low), float(high)


def _sound(drawn: np.ndarray) -> np.ndarray:
    """Return the resamples in which the statistic exists; none of them when these are too few."""
    found = drawn[np.isfinite(drawn)]
    return found if len(found) >= SOUND * len(drawn) else found[:0]
