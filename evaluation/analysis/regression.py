"""Lines and curvature: least squares with its errors, the median of slopes, the quadratic term."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Term:
    """One coefficient of a regression."""

    value: float
    stderr: float
    p: float
    low: float
    high: float


def least_squares(x: np.ndarray, y: np.ndarray, confidence: float, *, quadratic: bool = False) -> Term:
    """Return the slope of the least-squares line, or the coefficient of x^2 in y = a + b x + c x^2.

    Standard error: sqrt of the diagonal of s^2 (X'X)^-1 with s^2 = residual sum of squares / (n - columns); p and interval by
    Student's t with n - columns degrees of freedom. All NaN where x takes fewer values than there are columns, or nothing is
    left to estimate s^2 from.

    Args:
        x: (N,).
        y: (N,).
        confidence: of the interval, in (0, 1).
        quadratic: whether the model has x^2, and its coefficient is returned. It does not depend on the origin of x.
    """
    from scipy.stats import t

    size = np.abs(x - x.mean()).max()
    columns = 3 if quadratic else 2
    free = len(x) - columns
    if len(np.unique(x)) < columns or free < 1:
        return Term(*[math.nan] * 5)
    design = np.vander((x - x.mean()) / size, columns)
    fitted, *_ = np.linalg.lstsq(design, y, rcond=None)
    variance = ((y - design @ fitted) ** 2).sum() / free
    unit = size ** (columns - 1)
    value = float(fitted[0]) / unit
    stderr = math.sqrt(variance * np.linalg.inv(design.T @ design)[0, 0]) / unit
    half = stderr * float(t.ppf((1 + confidence) / 2, free))
    p = float(2 * t.sf(abs(value) / stderr, free)) if stderr else float(not value)
    return Term(value, stderr, p, value - half, value + half)


def theil_sen(x: np.ndarray, y: np.ndarray, confidence: float) -> Term:
    """Return the median of the slopes of all pairs of runs (Theil 1950), with Sen's interval (1968); p and error are NaN."""
    from scipy.stats import theilslopes

    found = theilslopes(y, x, alpha=confidence)
    return Term(float(found.slope), math.nan, math.nan, float(found.low_slope), float(found.high_slope))


def line_band(
    x: np.ndarray, y: np.ndarray, at: np.ndarray, confidence: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the least-squares line at the points `at` (M,), and the ends of the interval of its mean, (M,) each.

    Half width: t s sqrt(1 / n + (at - mean x)^2 / sum (x - mean x)^2), with n - 2 degrees of freedom.
    """
    from scipy.stats import t

    centre, free = x.mean(), len(x) - 2
    spread = ((x - centre) ** 2).sum()
    slope = ((x - centre) * y).sum() / spread
    deviation = math.sqrt(((y - y.mean() - slope * (x - centre)) ** 2).sum() / free)
    line = y.mean() + slope * (at - centre)
    half = t.ppf((1 + confidence) / 2, free) * deviation * np.sqrt(1 / len(x) + (at - centre) ** 2 / spread)
    return line, line - half, line + half


def holm(p_values: list[float]) -> list[float]:
    """Return the p-values corrected for how many there are (Holm 1979); NaN stays NaN and does not count.

    The k-th smallest of m, from 0, becomes the largest of (m - j) p_j over j <= k, and at most 1.
    """
    order = sorted((index for index, p in enumerate(p_values) if not math.isnan(p)), key=lambda index: p_values[index])
    found, largest = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        found[index] = largest
    return found
