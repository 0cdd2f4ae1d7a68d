from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import pytest

from evaluation import statistics
from evaluation.statistics import bootstrap_interval, sign_test


def mean(*samples: Any, axis: int = -1) -> Any:
    return sum(sample.mean(axis=axis) for sample in samples) / len(samples)


def by_hand(samples: list[list[float]], confidence: float, resamples: int) -> tuple[float, float]:
    """Resample each array on its own, and take the quantiles of the mean of means."""
    draw = random.Random(1)
    means = sorted(
        sum(sum(draw.choices(sample, k=len(sample))) / len(sample) for sample in samples) / len(samples)
        for _ in range(resamples)
    )
    tail = (1 - confidence) / 2
    return means[int(tail * resamples)], means[int((1 - tail) * resamples)]


def test_the_interval_is_that_of_resampling_by_hand() -> None:
    draw = random.Random(0)
    samples = [[draw.gauss(0.3, 1) for _ in range(40)], [draw.gauss(-0.1, 2) for _ in range(25)]]
    found = bootstrap_interval(samples, mean, paired=False, confidence=0.9, resamples=4000)
    assert found == pytest.approx(by_hand(samples, 0.9, 4000), abs=0.03)


def test_paired_samples_keep_their_pairs() -> None:
    draw = random.Random(0)
    first = [draw.gauss(0, 5) for _ in range(30)]
    second = [value + 1 for value in first]

    def rise(before: Any, after: Any, axis: int = -1) -> Any:
        return (after - before).mean(axis=axis)

    assert bootstrap_interval([first, second], rise, paired=True, confidence=0.95, resamples=200) == pytest.approx(
        (1, 1)
    )


def test_the_same_figures_give_the_same_interval_however_they_are_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [[float(index % 7) for index in range(50)]]
    first = bootstrap_interval(samples, mean, paired=False, confidence=0.95, resamples=500)
    assert bootstrap_interval(samples, mean, paired=False, confidence=0.95, resamples=500) == first
    monkeypatch.setattr(statistics, "AT_ONCE", 170)
    assert bootstrap_interval(samples, mean, paired=False, confidence=0.95, resamples=500) == pytest.approx(first)


def test_one_observation_has_no_interval_and_equal_ones_an_empty_one() -> None:
    assert all(map(math.isnan, bootstrap_interval([[1.0]], mean, paired=False, confidence=0.95, resamples=50)))
    assert bootstrap_interval([[2.0] * 5], mean, paired=False, confidence=0.95, resamples=50) == (2, 2)


@pytest.mark.parametrize(("above", "below", "same"), [(9, 1, 30), (1, 9, 0), (5, 5, 2), (3, 0, 0), (0, 0, 7)])
def test_the_sign_test_counts_what_is_as_lopsided_or_more(above: int, below: int, same: int) -> None:
    n = above + below
    likely = [Fraction(math.comb(n, k), 2**n) for k in range(n + 1)]
    expected = sum(likely[k] for k in range(n + 1) if abs(2 * k - n) >= abs(above - below))
    assert sign_test([1.0] * above + [-0.5] * below + [0.0] * same) == pytest.approx(float(expected))
