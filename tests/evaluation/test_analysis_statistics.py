"""Every statistic across runs against scipy, scikit-learn, or the plain definition."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from evaluation.analysis import correlation
from evaluation.analysis.ratio_curve import NEVER, Curve, fit_curve
from evaluation.analysis.regression import holm, least_squares, line_band, theil_sen
from evaluation.analysis.resampling import (
    bca_interval,
    cluster_weights,
    jackknife_weights,
    percentile_interval,
    run_weights,
)

KINDS: dict[str, tuple[correlation.Statistic, Callable[..., float]]] = {
    "pearson": (correlation.pearson, lambda x, y: stats.pearsonr(x, y).statistic),
    "spearman": (correlation.spearman, lambda x, y: stats.spearmanr(x, y).statistic),
    "kendall": (correlation.kendall, lambda x, y: stats.kendalltau(x, y).statistic),
    "slope": (correlation.slope, lambda x, y: stats.linregress(x, y).slope),
}


def sample(seed: int, count: int = 14) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = np.round(rng.normal(size=count), 1)  # with ties
    return x, np.round(0.7 * x + rng.normal(size=count), 1)


def residuals(column: np.ndarray, covariates: np.ndarray) -> np.ndarray:
    design = np.column_stack([np.ones(len(column)), covariates])
    return column - design @ np.linalg.lstsq(design, column, rcond=None)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_a_weight_is_how_often_an_observation_is_there(kind: str, seed: int) -> None:
    ours, scipys = KINDS[kind]
    x, y = sample(seed)
    weights = run_weights(len(x), 20)
    expected = [scipys(np.repeat(x, row.astype(int)), np.repeat(y, row.astype(int))) for row in weights]
    assert ours(x, y, weights) == pytest.approx(expected, abs=1e-12)
    assert float(ours(x, y, np.ones(len(x)))) == pytest.approx(scipys(x, y))


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_does_not_vary_has_no_statistic(kind: str) -> None:
    statistic, _ = KINDS[kind]
    x = np.array([0.1, 0.1, 0.1, 0.7])
    y = np.array([1.0, 2.0, 3.0, 4.0])
    assert math.isnan(statistic(x, y, np.array([3.0, 2.0, 1.0, 0.0])))
    assert np.isfinite(statistic(x, y, np.ones(4)))


def test_the_partial_correlation_is_that_of_the_residuals() -> None:
    x, y = sample(1)
    covariates = np.random.default_rng(5).normal(size=(len(x), 2)) * [1, 1000]
    expected = np.corrcoef(residuals(x, covariates), residuals(y, covariates))[0, 1]
    assert float(correlation.partial(covariates)(x, y, np.ones(len(x)))) == pytest.approx(expected)
    weights = run_weights(len(x), 6)
    times = [np.repeat(np.arange(len(x)), row.astype(int)) for row in weights]
    expected_rows = [np.corrcoef(residuals(x[i], covariates[i]), residuals(y[i], covariates[i]))[0, 1] for i in times]
    assert correlation.partial(covariates)(x, y, weights) == pytest.approx(expected_rows)


def test_one_covariate_gives_the_closed_form_and_a_determined_column_nothing() -> None:
    x, y = sample(2)
    z = np.random.default_rng(6).normal(size=len(x))
    xy, xz, yz = (np.corrcoef(*pair)[0, 1] for pair in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert float(correlation.partial(z[:, None])(x, y, np.ones(len(x)))) == pytest.approx(expected)
    assert math.isnan(correlation.partial((3 * x + 1)[:, None])(x, y, np.ones(len(x))))


def test_the_test_of_a_partial_correlation_is_that_of_the_coefficient() -> None:
    """y on x and covariates by least squares: the t-test of the coefficient of x."""
    x, y = sample(3)
    z = np.random.default_rng(7).normal(size=(len(x), 3))
    design = np.column_stack([x, np.ones(len(x)), z])
    coefficients = np.linalg.solve(design.T @ design, design.T @ y)
    free = len(x) - 5
    variance = ((y - design @ coefficients) ** 2).sum() / free
    t = coefficients[0] / math.sqrt(variance * np.linalg.inv(design.T @ design)[0, 0])
    r = float(correlation.partial(z)(x, y, np.ones(len(x))))
    assert correlation.t_test(r, len(x), 3) == pytest.approx(2 * stats.t.sf(abs(t), free))


def test_fishers_interval_and_the_test_agree_with_scipy() -> None:
    x, y = sample(4)
    known = stats.pearsonr(x, y)
    assert correlation.fisher_interval(known.statistic, len(x), 0, 0.9) == pytest.approx(
        tuple(known.confidence_interval(0.9))
    )
    assert correlation.t_test(known.statistic, len(x), 0) == pytest.approx(known.pvalue)
    assert all(map(math.isnan, correlation.fisher_interval(0.5, 5, 2, 0.95)))
    z = math.atanh(0.5)  # each covariate costs an observation
    assert correlation.fisher_interval(0.5, 12, 5, 0.95)[0] == pytest.approx(math.tanh(z - 1.959964 / 2), abs=1e-6)


def test_columns_that_give_each_other_count_once() -> None:
    z = np.random.default_rng(0).normal(size=(9, 2)) * [1, 1e-4]
    assert correlation.independent_columns(z) == 2
    assert correlation.independent_columns(np.column_stack([z, z[:, 0] + 5, np.ones(9)])) == 2


def test_the_bca_interval_is_scipys_for_the_same_resamples() -> None:
    x, y = sample(5, 20)

    def statistic(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.corrcoef(a, b)[0, 1])

    known = stats.bootstrap(
        (x, y), statistic, paired=True, vectorized=False, n_resamples=600, method="BCa", rng=np.random.default_rng(1)
    )
    left_out = correlation.pearson(x, y, jackknife_weights(20))
    assert left_out[3] == pytest.approx(statistic(np.delete(x, 3), np.delete(y, 3)))
    found = bca_interval(statistic(x, y), known.bootstrap_distribution, left_out, 0.95)
    assert found == pytest.approx(tuple(known.confidence_interval), abs=1e-9)


def test_intervals_need_resamples_in_which_the_statistic_exists() -> None:
    drawn = np.where(np.arange(100) < 20, np.nan, np.linspace(-1, 1, 100))
    assert all(map(math.isnan, percentile_interval(drawn, 0.95)))
    assert all(map(math.isnan, bca_interval(0.3, drawn, np.zeros(5), 0.95)))
    assert percentile_interval(drawn[20:], 0.5) == pytest.approx(tuple(np.quantile(drawn[20:], [0.25, 0.75])))
    same = np.full(50, 0.4)
    assert bca_interval(0.4, same, np.full(5, 0.4), 0.95) == pytest.approx((0.4, 0.4))


def test_the_bootstrap_over_arms_draws_whole_arms() -> None:
    labels = ["a"] * 4 + ["b"] * 2 + ["c", "d", "e"]
    weights = cluster_weights(labels, 400)
    arms = [[labels.index(arm), labels.count(arm)] for arm in "abcde"]
    assert all((weights[:, i : i + n] == weights[:, i : i + 1]).all() for i, n in arms)
    assert (sum(weights[:, i] for i, _ in arms) == 5).all()

    x, y = sample(8, 9)
    draw, by_hand = random.Random(0), []
    for _ in range(4000):
        rows = [row for arm in draw.choices("abcde", k=5) for row, label in enumerate(labels) if label == arm]
        if len(set(x[rows])) > 1 and len(set(y[rows])) > 1:
            by_hand.append(float(np.corrcoef(x[rows], y[rows])[0, 1]))
    expected = np.quantile(by_hand, [0.05, 0.95])
    drawn = correlation.pearson(x, y, cluster_weights(labels, 4000))
    assert percentile_interval(drawn, 0.9) == pytest.approx(tuple(expected), abs=0.06)


def test_lines_and_curvature_agree_with_numpy_and_scipy() -> None:
    x, y = sample(9)
    known, line = stats.linregress(x, y), least_squares(x, y, 0.95)
    assert (line.value, line.stderr, line.p) == pytest.approx((known.slope, known.stderr, known.pvalue))
    half = stats.t.ppf(0.975, len(x) - 2) * known.stderr
    assert (line.low, line.high) == pytest.approx((known.slope - half, known.slope + half))
    (value, *_), covariance = np.polyfit(x, y, 2, cov=True)
    curved = least_squares(x * 1e-3 + 5, y, 0.95, quadratic=True)  # the origin does not matter, and the unit does
    assert (curved.value, curved.stderr) == pytest.approx((value * 1e6, math.sqrt(covariance[0, 0]) * 1e6), rel=1e-6)
    assert curved.p == pytest.approx(2 * stats.t.sf(abs(value) / math.sqrt(covariance[0, 0]), len(x) - 3), rel=1e-6)
    two_values = np.array([0.0, 1.0] * 5)
    assert math.isnan(least_squares(two_values, np.arange(10.0), 0.95, quadratic=True).value)


def test_the_median_slope_and_the_band_follow_their_formulas() -> None:
    x, y = sample(10)
    slopes = [
        (b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(zip(x, y, strict=True), 2) if a[0] != b[0]
    ]
    found = theil_sen(x, y, 0.95)
    assert found.value == pytest.approx(statistics.median(slopes))
    assert found.low < found.value < found.high
    at = np.array([-1.0, 0.3, 2.0])
    design = np.column_stack([np.ones(len(x)), x])
    inverse = np.linalg.inv(design.T @ design)
    fitted = inverse @ design.T @ y
    variance = ((y - design @ fitted) ** 2).sum() / (len(x) - 2)
    points = np.column_stack([np.ones(3), at])
    half = stats.t.ppf(0.95, len(x) - 2) * np.sqrt(variance * np.diag(points @ inverse @ points.T))
    line, low, high = line_band(x, y, at, 0.9)
    assert line == pytest.approx(points @ fitted)
    assert low == pytest.approx(line - half)
    assert high == pytest.approx(line + half)


def test_holm_rejects_what_the_step_down_test_rejects() -> None:
    p_values = [0.012, 0.6, 0.011, 0.04, 0.012, 0.9]
    corrected = holm(p_values)
    for level in np.linspace(0.001, 0.999, 300):
        rejected: set[int] = set()
        for rank, index in enumerate(sorted(range(6), key=lambda i: p_values[i])):
            if p_values[index] > level / (6 - rank):
                break
            rejected.add(index)
        assert {index for index in range(6) if corrected[index] <= level} == rejected
    assert holm([math.nan, 0.02])[1] == 0.02
    assert math.isnan(holm([math.nan, 0.02])[0])
    assert holm([]) == []


def minimax(means: np.ndarray, counts: np.ndarray) -> list[float]:
    """The least-squares curve that does not rise, by its min-max formula."""

    def mean(first: int, last: int) -> float:
        return float(np.average(means[first : last + 1], weights=counts[first : last + 1]))

    return [
        max(min(mean(first, last) for first in range(k + 1)) for last in range(k, len(means)))
        for k in range(len(means))
    ]


@pytest.mark.parametrize("seed", range(4))
def test_the_curve_is_the_isotonic_regression_of_the_runs(seed: int) -> None:
    from sklearn.isotonic import IsotonicRegression

    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, size=6)
    ratios = np.repeat(np.arange(1, 7) / 10, counts)
    quality = 0.6 - 0.3 * ratios + rng.normal(scale=0.1, size=len(ratios))
    at = np.unique(ratios)
    means = np.array([quality[ratios == ratio].mean() for ratio in at])
    curve = fit_curve(at, means, counts.astype(float))
    assert curve.values == pytest.approx(minimax(means, counts))
    assert curve.values == pytest.approx(IsotonicRegression(increasing=False).fit(ratios, quality).predict(at))


def test_the_largest_ratio_is_where_the_curve_passes_the_bound() -> None:
    curve = Curve(np.array([0.1, 0.2, 0.4, 0.6]), np.array([0.5, 0.4, 0.4, 0.2]))
    grid = np.linspace(0.1, 0.6, 50_001)
    for least in (0.49, 0.45, 0.39, 0.3, 0.21):
        expected = grid[np.interp(grid, curve.ratios, curve.values) >= least].max()
        assert curve.largest(least) == pytest.approx(expected, abs=2e-5)
    assert curve.largest(0.4) == pytest.approx(0.4)  # the end of what is flat
    assert curve.largest(0.1) == 0.6  # not beyond what was measured
    assert curve.largest(0.51) == NEVER
