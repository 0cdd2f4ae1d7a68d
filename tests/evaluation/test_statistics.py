from __future__ import annotations

import math
import random
import statistics as standard
from fractions import Fraction

import pytest

from evaluation import statistics
from evaluation.statistics import (
    paired_differences,
    percentile_interval,
    resampled_means,
    sign_test,
    stratified_error,
    stratified_mean,
)


def drawn(*sizes: int, seed: int = 0) -> list[list[float]]:
    draw = random.Random(seed)
    return [[draw.gauss(index, 1 + index) for _ in range(size)] for index, size in enumerate(sizes)]


def by_hand(samples: list[list[list[float]]], confidence: float, resamples: int) -> tuple[float, float]:
    """Resample every stratum, the same observations of both samples, and take the quantiles of the ratio of the means."""
    draw = random.Random(1)
    ratios = []
    for _ in range(resamples):
        chosen = [draw.choices(range(len(stratum)), k=len(stratum)) for stratum in samples[0]]
        means = [
            sum(sum(stratum[i] for i in picked) / len(picked) for stratum, picked in zip(sample, chosen, strict=True))
            for sample in samples
        ]
        ratios.append(means[0] / means[1])
    ratios.sort()
    tail = (1 - confidence) / 2
    return ratios[int(tail * resamples)], ratios[int((1 - tail) * resamples)]


def test_the_mean_gives_every_stratum_the_same_weight() -> None:
    assert stratified_mean([[1.0, 3.0], [5.0] * 10]) == pytest.approx(3.5)


def test_the_standard_error_is_the_spread_of_means_that_are_drawn_anew() -> None:
    strata = drawn(30, 12)
    expected = math.sqrt(sum(standard.variance(one) / len(one) for one in strata)) / 2
    assert stratified_error(strata) == pytest.approx(expected)
    means = resampled_means([strata], 20_000)[0]
    biased = math.sqrt(sum(standard.pvariance(one) / len(one) for one in strata)) / 2
    assert means.std() == pytest.approx(biased, rel=0.03)
    assert stratified_error([[1.0], [1.0, 2.0]]) == math.inf


def test_the_interval_is_that_of_resampling_by_hand() -> None:
    first, second = drawn(40, 25), [[value + 7 for value in stratum] for stratum in drawn(40, 25, seed=3)]
    means = resampled_means([first, second], 6000)
    found = percentile_interval(means[0] / means[1], 0.9)
    assert found == pytest.approx(by_hand([first, second], 0.9, 6000), abs=0.004)


def test_all_samples_are_resampled_together() -> None:
    first = drawn(30, 8)
    second = [[value - 1 for value in stratum] for stratum in first]
    before, after = resampled_means([first, second], 200)
    assert (before - after) == pytest.approx([1.0] * 200)
    apart = resampled_means([first], 200)[0]
    assert apart == pytest.approx(before)
    assert stratified_mean(paired_differences(first, second)) == pytest.approx(1)


def test_the_same_figures_give_the_same_interval_however_they_are_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    first = resampled_means([drawn(50)], 500)
    assert (resampled_means([drawn(50)], 500) == first).all()
    monkeypatch.setattr(statistics, "AT_ONCE", 200)
    assert resampled_means([drawn(50)], 500) == pytest.approx(first)


def test_one_observation_has_no_interval_and_equal_ones_an_empty_one() -> None:
    assert all(map(math.isnan, percentile_interval(resampled_means([[[1.0], [1.0, 2.0]]], 50)[0], 0.95)))
    assert percentile_interval(resampled_means([[[2.0] * 5]], 50)[0], 0.95) == (2, 2)


@pytest.mark.parametrize(("above", "below", "same"), [(9, 1, 30), (1, 9, 0), (5, 5, 2), (3, 0, 0), (0, 0, 7)])
def test_the_sign_test_counts_what_is_as_lopsided_or_more(above: int, below: int, same: int) -> None:
    n = above + below
    likely = [Fraction(math.comb(n, k), 2**n) for k in range(n + 1)]
    expected = sum(likely[k] for k in range(n + 1) if abs(2 * k - n) >= abs(above - below))
    assert sign_test([1.0] * above + [-0.5] * below + [0.0] * same) == pytest.approx(float(expected))
