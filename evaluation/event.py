"""One pruning event: what the cut costs at the moment of pruning, and what the training after it wins back.

Source: Bartoldson, Morcos, Barbu, Erlebacher, "The Generalization-Stability Tradeoff in Neural Network Pruning",
NeurIPS 2020. With t a measure taken directly before (pre) and directly after (post) the cut, nothing happening between:

    instability = (t_pre - t_post) / t_pre            fraction; above 0 = got worse
    stability   = 100 t_post / t_pre                  percent retained; can exceed 100

The paper's t is accuracy. Here it is next-token accuracy (primary) and the zero-shot mean a, also above the level c of chance,
t = a - c. For the loss L in nats per token, where larger is worse, instability is L_post - L_pre, and stability is that of one
over the perplexity, t = exp(-L): 100 exp(L_pre - L_post).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from evaluation.probe import Means, Probe
from evaluation.stability import StabilityConfig
from evaluation.statistics import (
    Strata,
    paired_differences,
    resampled_means,
    stratified_error,
    stratified_mean,
    with_intervals,
)


@dataclass(frozen=True)
class EventReport:
    """One pruning event: the probes around it and the ratios."""

    index: int
    ratio_asked: float
    ratio_reached: float
    pre: Probe
    post: Probe
    rec: Probe
    scores: Mapping[str, float] = field(default_factory=dict)
    """How sure the scores were that the event was chosen by."""

    divergence: Sequence[float] | None = None
    """KL divergence of the predictions after the cut from those before it in every block, nats per token, (N,)."""

    trajectory: Sequence[Mapping[str, float]] = ()
    """`step` and scores of the watched texts over the training after the event; the first point is before its first step."""

    def metrics(self, config: StabilityConfig) -> dict[str, float]:
        """Return every `event/*` metric of this event."""
        found: dict[str, float] = {
            "index": self.index,
            "ratio_asked": self.ratio_asked,
            "ratio_reached": self.ratio_reached,
            **{f"scores/{name}": value for name, value in self.scores.items()},
        }
        for when, probe in (("pre", self.pre), ("post", self.post), ("rec", self.rec)):
            found |= {f"{name}/{when}": value for name, value in probe.measures().items()}
        resampled = self.figures(partial(resampled_means, resamples=config.resamples))
        found |= with_intervals(self.figures(point_means), resampled, config.confidence)
        for name, (label, fraction) in ((name, goal) for name in ("tok_acc", "loss") for goal in GOALS.items()):
            found[f"steps_to_{label}/{name}"] = self.steps_to_recover(name, fraction)
        return {f"event/{name}": value for name, value in found.items()}

    def figures(self, means: Means) -> dict[str, Any]:
        """Return `instability/*`, `stability_pct/*`, `drop/*` and `recovered_frac/*`, of means or of resampled means.

        NaN: a recovered fraction where the damage is not above two of its standard errors, the observations paired; a figure
        relative to chance where the zero-shot mean before the cut is not above chance by two.
        """
        found: dict[str, Any] = {}
        for name, samples in self._samples().items():
            pre, post, rec = means(samples)
            found[f"instability/{name}"] = instability(name, pre, post)
            found[f"stability_pct/{name}"] = stability_percent(name, pre, post)
            found[f"recovered_frac/{name}"] = recovered_fraction(pre, post, rec)
            if not self.is_damaged(name):
                found[f"recovered_frac/{name}"] *= math.nan
            if name != "loss":
                found[f"drop/{name}"] = 100 * (pre - post)
            if name == "zeroshot":
                above = pre - self.pre.zeroshot_chance(), post - self.pre.zeroshot_chance()
                found["instability/zeroshot_cc"] = instability(name, *above)
                found["stability_pct/zeroshot_cc"] = stability_percent(name, *above)
        if self.divergence is not None:
            found["instability/kl"] = means([[self.divergence]])[0]
        return found

    def is_damaged(self, name: str) -> bool:
        """Say whether the cut made a measure worse, by at least two standard errors of the paired observations."""
        pre, post, _ = self._samples()[name]
        worse = paired_differences(post, pre) if name == "loss" else paired_differences(pre, post)
        damage = stratified_mean(worse)
        return damage > 0 and damage >= 2 * stratified_error(worse)

    def steps_to_recover(self, name: str, fraction: float) -> float:
        """Return after how many steps of training the recovered fraction is first seen at `fraction` or above.

        As fine as the trajectory. NaN where it is never seen there, or nothing was damaged.
        """
        pre, post = self.pre.measures()[name], self.post.measures()[name]
        for point in self.trajectory if self.is_damaged(name) else ():
            watched = point.get(f"probe/{name}", math.nan)
            if recovered_fraction(pre, post, watched) >= fraction:
                return point["step"] - self.trajectory[0]["step"]
        return math.nan

    def _samples(self) -> dict[str, list[Strata]]:
        """Return measure -> the same observations before, after and recovered."""
        moments = [probe.observations() for probe in (self.pre, self.post, self.rec)]
        return {name: [moment[name] for moment in moments] for name in moments[0]}


GOALS = {"half": 0.5, "90pct": 0.9}
"""Recovered fractions that steps are counted to."""


def point_means(samples: Sequence[Strata]) -> list[float]:
    """Return the mean of each sample as it is: not resampled."""
    return [stratified_mean(sample) for sample in samples]


def instability(name: str, pre: Any, post: Any) -> Any:
    """Return the relative drop of an accuracy, or the rise of the loss in nats per token; above 0 = got worse."""
    return post - pre if name == "loss" else ratio(pre - post, pre)


def stability_percent(name: str, pre: Any, post: Any) -> Any:
    """Return the percentage of an accuracy, or of one over the perplexity, that is retained."""
    return 100 * np.exp(pre - post) if name == "loss" else 100 * ratio(post, pre)


def recovered_fraction(pre: Any, post: Any, rec: Any) -> Any:
    """Return (rec - post) / (pre - post): the part of the damage that recovery undid. NaN when there was no change."""
    return ratio(rec - post, pre - post)


def ratio(part: Any, whole: Any) -> Any:
    """Return part / whole, NaN where whole is 0, of numbers or arrays."""
    return np.divide(part, np.where(np.equal(whole, 0), np.nan, whole))
