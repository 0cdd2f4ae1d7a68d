"""The generalization-stability metric: what an event costs at the moment of pruning, and what is left in the end.

Source: Bartoldson, Morcos, Barbu, Erlebacher, "The Generalization-Stability Tradeoff in Neural Network Pruning",
NeurIPS 2020. With t a measure taken directly before (pre) and directly after (post) the cut, nothing happening between:

    instability = (t_pre - t_post) / t_pre            fraction; above 0 = got worse
    stability   = 100 t_post / t_pre                  percent retained; can exceed 100

The paper's t is accuracy. Here it is next-token accuracy (primary) and the zero-shot mean; for the loss L in nats per token,
where larger is worse, instability is L_post - L_pre and stability is that of exp(-L), 100 exp(L_pre - L_post).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evaluation.statistics import bootstrap_interval

if TYPE_CHECKING:
    import numpy as np

    from evaluation.perplexity import TextScore


@dataclass
class StabilityConfig:
    """How events are probed."""

    text: str = "passages"
    """Held-out text that the probes read: a bundled corpus by name, or a .txt or .jsonl file."""

    blocks: int = 64
    """Blocks of the probe."""

    length: int = 128
    """Tokens in each."""

    zeroshot: bool = True
    """Whether the zero-shot mean is measured around every event too (free for a one-shot schedule)."""

    confidence: float = 0.95
    """Of the paired bootstrap intervals, in (0, 1)."""

    resamples: int = 2000

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"stability.confidence={self.confidence}: must be in (0, 1)")
        for name, low in (("blocks", 2), ("length", 2), ("resamples", 1)):
            if (value := getattr(self, name)) < low:
                raise ValueError(f"stability.{name}={value}: must be at least {low}")


@dataclass(frozen=True)
class Probe:
    """What is measured at one moment of a run."""

    text: TextScore
    zeroshot: float | None
    """Zero-shot mean, when it is measured around events."""

    def measures(self) -> dict[str, float]:
        """Return the measures by their metric names."""
        found = {"tok_acc": self.text.token_accuracy, "loss": self.text.loss}
        return found if self.zeroshot is None else found | {"zeroshot": self.zeroshot}


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

    def metrics(self, config: StabilityConfig) -> dict[str, float]:
        """Return every `event/*` metric of this event."""
        pre, post, rec = self.pre.measures(), self.post.measures(), self.rec.measures()
        found: dict[str, float] = {
            "event/index": self.index,
            "event/ratio_asked": self.ratio_asked,
            "event/ratio_reached": self.ratio_reached,
            **{f"event/scores/{name}": value for name, value in self.scores.items()},
        }
        for name in pre:
            found |= {f"event/{name}/{when}": p[name] for when, p in (("pre", pre), ("post", post), ("rec", rec))}
            found[f"event/instability/{name}"] = instability(name, pre[name], post[name])
            found[f"event/stability_pct/{name}"] = stability_percent(name, pre[name], post[name])
            found[f"event/recovered_frac/{name}"] = recovered_fraction(pre[name], post[name], rec[name])
        low, high = accuracy_instability_interval(self.pre.text, self.post.text, config.confidence, config.resamples)
        return found | {"event/instability/tok_acc_low": low, "event/instability/tok_acc_high": high}


def instability(name: str, pre: float, post: float) -> float:
    """Return the relative drop of an accuracy, or the rise of the loss in nats per token; above 0 = got worse."""
    if name == "loss":
        return post - pre
    return (pre - post) / pre if pre else math.nan


def stability_percent(name: str, pre: float, post: float) -> float:
    """Return the percentage of an accuracy, or of exp(-loss), that is retained."""
    if name == "loss":
        return 100 * math.exp(pre - post)
    return 100 * post / pre if pre else math.nan


def recovered_fraction(pre: float, post: float, rec: float) -> float:
    """Return (rec - post) / (pre - post): the part of the damage that recovery undid. NaN when there was no change."""
    return (rec - post) / (pre - post) if pre != post else math.nan


def accuracy_instability_interval(
    pre: TextScore, post: TextScore, confidence: float, resamples: int
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the instability on next-token accuracy.

    Blocks are drawn in pairs: the same blocks before and after.
    """
    import numpy as np

    def statistic(before: np.ndarray, after: np.ndarray, axis: int = -1) -> np.ndarray:
        total = before.sum(axis=axis)
        with np.errstate(divide="ignore", invalid="ignore"):
            return (total - after.sum(axis=axis)) / total

    samples = (pre.correct, post.correct)
    return bootstrap_interval(samples, statistic, paired=True, confidence=confidence, resamples=resamples)


def stability_summary(events: Sequence[EventReport], config: StabilityConfig) -> dict[str, float]:
    """Return `stability/*`: the paper's unweighted mean over events, and the largest and the summed instability.

    The interval of the instability on next-token accuracy is given for a single event only.
    """
    if not events:
        return {}
    rows = [event.metrics(config) for event in events]
    found = {}
    if len(rows) == 1:
        for end in ("low", "high"):
            found[f"stability/instability/tok_acc_{end}"] = rows[0][f"event/instability/tok_acc_{end}"]
    for name in events[0].pre.measures():
        drops = [row[f"event/instability/{name}"] for row in rows]
        found[f"stability/instability_mean/{name}"] = sum(drops) / len(drops)
        found[f"stability/instability_max/{name}"] = max(drops)
        found[f"stability/instability_sum/{name}"] = sum(drops)
        kept = [row[f"event/stability_pct/{name}"] for row in rows]
        found[f"stability/pct_mean/{name}"] = sum(kept) / len(kept)
    last = rows[-1]
    return found | {
        f"stability/recovered_frac/{name}": last[f"event/recovered_frac/{name}"] for name in events[0].pre.measures()
    }


def generalization_summary(
    final: Probe, control: Probe, train: TextScore | None, heldout: TextScore | None
) -> dict[str, float]:
    """Return `generalization/*`: final level, gain over the control, and the gap between held-out and training text.

    gain: against the unpruned model given the same recovery; accuracies recovered - control, loss control - recovered,
    so that above 0 = better than the control. gap: loss held-out - train, accuracy train - held-out; above 0 = over-fitted.

    Args:
        final: probe of the recovered model.
        control: the same probe of the control.
        train: score of the recovered model on a fixed slice of the recovery text; None without recovery.
        heldout: its score on held-out text of the same source.
    """
    found = {f"generalization/final/{name}": value for name, value in final.measures().items()}
    reference = control.measures()
    for name, value in final.measures().items():
        if name not in reference:
            continue
        gain = reference[name] - value if name == "loss" else value - reference[name]
        found[f"generalization/gain/{name}"] = gain
    if train is not None and heldout is not None:
        found["generalization/gap/loss"] = heldout.loss - train.loss
        found["generalization/gap/loss_stderr"] = math.hypot(heldout.loss_stderr, train.loss_stderr)
        found["generalization/gap/tok_acc"] = train.token_accuracy - heldout.token_accuracy
    return found
