"""Intervals and tests that the metrics share. Resampling is seeded: the same figures give the same interval."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

AT_ONCE = 10_000_000
"""Resampled values of one array that are held in memory at a time."""


def bootstrap_interval(
    samples: Sequence[Any], statistic: Callable[..., Any], *, paired: bool, confidence: float, resamples: int
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of `statistic(*samples)`.

    Args:
        samples: arrays of observations, (N,) each; equally long where they are paired.
        statistic: takes resampled arrays and `axis`, the axis of the observations.
        paired: whether the arrays are resampled together, or each on its own.
        confidence: in (0, 1).
        resamples: number of resamples.

    Returns:
        (low, high); NaN where an array has a single observation, or a resample has no statistic.
    """
    import numpy as np
    from scipy.stats import DegenerateDataWarning, bootstrap

    sizes = [len(sample) for sample in samples]
    if min(sizes) < 2:
        return math.nan, math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # which NaN says as well
        interval = bootstrap(
            [np.asarray(sample, float) for sample in samples],
            statistic,
            paired=paired,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, AT_ONCE // max(sizes)),
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
    return float(interval.low), float(interval.high)


def sign_test(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of as many differences on one side of zero, were both sides equally likely.

    For differences of outcomes that are right (1) or wrong (0) this is McNemar's exact test. Differences of zero say nothing.
    """
    from scipy.stats import binomtest

    above = sum(difference > 0 for difference in differences)
    below = sum(difference < 0 for difference in differences)
    return float(binomtest(above, above + below).pvalue) if above + below else 1.0
