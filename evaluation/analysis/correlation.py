"""Correlation coefficients of weighted observations, for one row of weights (N,) or many (R, N) at once.

A weight says how often an observation counts. With weights of one they are the coefficients that scipy computes. NaN where one
of the columns does not vary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

LEAST = 1e-12
"""Part of a column's variance that counts as none: what rounding leaves of a column that is constant in a resample."""

Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(x (N,), y (N,), weights (..., N)) -> (...)."""


def pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Pearson's r: the covariance over the product of the standard deviations."""
    return _correlation(_centred(x), _centred(y), weights)


def spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Spearman's rho: Pearson's r of the ranks, which equal values share."""
    return _correlation(_ranks(x, weights), _ranks(y, weights), weights)


def kendall(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Kendall's tau-b: the sum over pairs of sign(dx) sign(dy), over the root of the pairs untied in x and in y."""
    signs = [np.sign(column[:, None] - column[None, :]) for column in (x, y)]

    def over_pairs(matrix: np.ndarray) -> np.ndarray:
        return ((weights @ matrix) * weights).sum(axis=-1)

    untied = over_pairs(signs[0] ** 2) * over_pairs(signs[1] ** 2)
    return _divided(over_pairs(signs[0] * signs[1]), np.sqrt(untied), untied > 0)


def slope(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the slope of the least-squares line, in units of y per unit of x."""
    size = np.abs(x - x.mean()).max()
    centred = _centred(x)
    xy, xx = _moment(centred, y, weights), _moment(centred, centred, weights)
    return _divided(xy, xx * size, xx > LEAST)


def partial(covariates: np.ndarray) -> Statistic:
    """Return the statistic that correlates what least squares on `covariates` (N, C) and an intercept leave of x and y."""
    design = np.column_stack([np.ones(len(covariates)), *map(_centred, covariates.T)])

    def statistic(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
        x_rest, y_rest = (_residuals(_centred(column), design, weights) for column in (x, y))
        return _correlation(x_rest, y_rest, weights)

    return statistic


def fisher_interval(r: float, count: int, covariates: int, confidence: float) -> tuple[float, float]:
    """Return the interval of Pearson's r by Fisher's z = atanh r, with standard error 1 / sqrt(n - C - 3).

    Args:
        r: a correlation.
        count: n, the number of observations.
        covariates: C, the number of independent columns that were held constant (Fisher 1924: each costs an observation).
        confidence: in (0, 1).
    """
    from scipy.special import ndtri

    free = count - covariates - 3
    if free < 1 or not abs(r) <= 1:
        return math.nan, math.nan
    z, half = np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15)), ndtri((1 + confidence) / 2) / math.sqrt(free)
    return float(np.tanh(z - half)), float(np.tanh(z + half))


def t_test(r: float, count: int, covariates: int) -> float:
    """Return the two-sided p-value of r under no correlation: t = r sqrt(f / (1 - r^2)), f = n - C - 2 degrees of freedom."""
    from scipy.stats import t

    free = count - covariates - 2
    if free < 1 or not abs(r) <= 1:
        return math.nan
    return float(2 * t.sf(abs(r) * math.sqrt(free / (1 - r**2)), free)) if abs(r) < 1 else 0.0


def independent_columns(covariates: np.ndarray) -> int:
    """Return how many columns of `covariates` (N, C) neither an intercept nor the other columns give."""
    design = np.column_stack([np.ones(len(covariates)), *map(_centred, covariates.T)])
    return int(np.linalg.matrix_rank(design)) - 1


def _correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    xx, yy = _moment(x, x, weights), _moment(y, y, weights)
    varies = (xx > LEAST * _size(x)) & (yy > LEAST * _size(y))
    return np.clip(_divided(_moment(x, y, weights), np.sqrt(xx * yy), varies), -1, 1)


def _moment(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted covariance times the total weight."""
    total = weights.sum(axis=-1, keepdims=True)
    x_mean, y_mean = ((column * weights).sum(axis=-1, keepdims=True) / total for column in (x, y))
    return (weights * (x - x_mean) * (y - y_mean)).sum(axis=-1)


def _size(column: np.ndarray) -> float:
    """Return the square of the largest value, beside which rounding is small; 1 for a column that `_centred` has scaled."""
    return max(1.0, float(np.max(np.abs(column))) ** 2)


def _centred(column: np.ndarray) -> np.ndarray:
    """Return a column without its mean, scaled to [-1, 1]: correlations stay, rounding becomes comparable."""
    rest = column - column.mean()
    size = np.abs(rest).max()
    return rest / size if size else rest


def _ranks(column: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the ranks from 1 of every observation among the weighted ones, (..., N); equal values share the mean of theirs."""
    below = (column[None, :] < column[:, None]) + 0.5 * (column[None, :] == column[:, None])
    return weights @ below.T + 0.5


def _residuals(column: np.ndarray, design: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return what weighted least squares on `design` (N, C) leaves of `column`, (..., N)."""
    count, columns = design.shape
    squares = (design[:, :, None] * design[:, None, :]).reshape(count, columns**2)
    products = (weights @ squares).reshape(*weights.shape[:-1], columns, columns)
    along = ((weights * column) @ design)[..., None]
    fitted = np.linalg.pinv(products, rcond=1e-10, hermitian=True) @ along
    return column - (design @ fitted)[..., 0]


def _divided(above: np.ndarray, below: np.ndarray, sound: np.ndarray) -> np.ndarray:
    return np.where(sound, above / np.where(sound, below, 1.0), np.nan)
