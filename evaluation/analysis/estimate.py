"""One statistic of two columns, with its intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from evaluation.analysis import correlation
from evaluation.analysis.regression import Term
from evaluation.analysis.resampling import (
    FEWEST_CLUSTERS,
    Interval,
    bca_interval,
    cluster_weights,
    jackknife_weights,
    percentile_interval,
    run_weights,
)


@dataclass(frozen=True)
class Settings:
    """How intervals are made."""

    confidence: float = 0.95
    resamples: int = 2000
    given: tuple[str, ...] = ()
    """Metrics that the partial correlation holds constant."""


@dataclass(frozen=True)
class Estimate:
    """One statistic with what is known of its error. What was not computed, or does not exist, is NaN or left out."""

    value: float
    p: float = math.nan
    p_holm: float = math.nan
    """p corrected over the tested pairs, within one kind of statistic."""

    stderr: float = math.nan
    intervals: dict[str, Interval] = field(default_factory=dict)
    """`normal` (Fisher's z, Student's t, Sen's ranks), `bca` over runs, `arms` over whole arms -> (low, high)."""

    note: str = ""


class Resampled:
    """The pairs of one association with the weights of all its resamples."""

    def __init__(self, xs: np.ndarray, ys: np.ndarray, labels: list[str], settings: Settings) -> None:
        self.xs, self.ys, self.confidence = xs, ys, settings.confidence
        self.of_runs = run_weights(len(xs), settings.resamples)
        self.without_one = jackknife_weights(len(xs))
        enough = len(set(labels)) >= FEWEST_CLUSTERS
        self.of_arms = cluster_weights(labels, settings.resamples) if enough else None

    def estimate(
        self, statistic: correlation.Statistic, p: float, *, normal: Interval | None = None, stderr: float = math.nan
    ) -> Estimate:
        """Return a statistic with its bootstrap intervals beside what is known of it already."""

        def of(weights: np.ndarray) -> np.ndarray:
            return statistic(self.xs, self.ys, weights)

        value = float(of(np.ones(len(self.xs))))
        intervals = {} if normal is None else {"normal": normal}
        intervals["bca"] = bca_interval(value, of(self.of_runs), of(self.without_one), self.confidence)
        if self.of_arms is not None:
            intervals["arms"] = percentile_interval(of(self.of_arms), self.confidence)
        return Estimate(value, p, stderr=stderr, intervals=intervals)

    def partial(self, covariates: np.ndarray) -> Estimate:
        """Return the correlation that is left when `covariates` (N, C) are held constant."""
        statistic, count = correlation.partial(covariates), len(self.xs)
        held = correlation.independent_columns(covariates)
        r = float(statistic(self.xs, self.ys, np.ones(count)))
        if math.isnan(r):
            return Estimate(math.nan, note="nothing of x or of y is left")
        normal = correlation.fisher_interval(r, count, held, self.confidence)
        return self.estimate(statistic, correlation.t_test(r, count, held), normal=normal)


def of_term(term: Term) -> Estimate:
    """Return a coefficient of a regression as an estimate."""
    return Estimate(term.value, term.p, stderr=term.stderr, intervals={"normal": (term.low, term.high)})
