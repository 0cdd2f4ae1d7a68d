"""Scoring with a memory: normalised scores, how sure they are, and no work for a model that was scored so before."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from pruning.autocast import autocast_inputs
from pruning.cache import Cache, digest
from pruning.importance.base import ImportanceEstimator, Needs
from pruning.importance.normalization import normalizers
from pruning.model import fingerprint
from pruning.units import UnitGroup

log = logging.getLogger(__name__)

Scores = dict[str, torch.Tensor]
"""Group name -> (U,) float32 on the CPU."""


@dataclass(frozen=True)
class UnitScores:
    """Scores of units, and how much they depend on which calibration samples were drawn."""

    values: Scores
    """Higher is more important."""

    spread: Scores | None
    """Half the difference between the scores on the two halves of the samples, on the scale of `values`: the standard error
    of their mean. None where the halves were not scored apart."""

    rank_agreement: float | None
    """Spearman's rank correlation of the halves' scores, in [-1, 1]: the mean over groups of at least 3 units whose scores
    differ. Near 1, more samples would choose the same units. None without such groups."""

    def metrics(self) -> dict[str, float]:
        """Return how sure the scores are: rank agreement, and spread relative to the scores, the mean over groups."""
        found = {} if self.rank_agreement is None else {"rank_agreement": self.rank_agreement}
        if self.spread is not None:
            sizes = {name: float(values.abs().mean()) for name, values in self.values.items()}
            relative = [float(self.spread[name].mean()) / size for name, size in sizes.items() if size]
            found |= {"relative_spread": statistics.fmean(relative)} if relative else {}
        return found


def score_units(
    estimator: ImportanceEstimator,
    model: PreTrainedModel,
    groups: Mapping[str, UnitGroup],
    samples: torch.Tensor,
    cache: Cache,
) -> UnitScores:
    """Return the estimator's scores, computed or read, and normalised as it asks.

    Args:
        estimator: the `importance` option.
        model: left bit-identical.
        groups: what to score.
        samples: calibration token ids, (N, T); ignored by an estimator that needs only weights.
        cache: where scores are kept, as they were before normalisation.
    """
    needs_text = estimator.needs is not Needs.weights
    settings = {key: value for key, value in asdict(estimator).items() if not key.startswith("normalization")}
    inputs = {
        "estimator": type(estimator).__name__,
        "settings": settings,
        "model": fingerprint(model),
        "groups": sorted(groups),
        "samples": digest(samples.tolist()) if needs_text else None,
        **(autocast_inputs(model.device) if needs_text else {}),
    }
    found = cache.json("scores", inputs, lambda: _compute(estimator, model, groups, samples if needs_text else None))
    values = _tensors(found["values"], groups)
    units = normalizers(estimator.normalization, groups, values, estimator.normalization_power)
    if (agreement := found["rank_agreement"]) is not None:
        log.info("scores of the two halves of the calibration samples agree in rank by %.3f", agreement)
    return UnitScores(
        values={name: (values[name] - shift) / scale for name, (shift, scale) in units.items()},
        spread=None
        if found["spread"] is None
        else {name: spread / units[name][1] for name, spread in _tensors(found["spread"], groups).items()},
        rank_agreement=agreement,
    )


def half_difference(first: torch.Tensor, second: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Return half the difference of two halves' scores, (U,), on the scale of the whole's: some are sums over samples."""
    total = first.abs() + second.abs()
    return torch.where(total > 0, (first - second).abs() / total.clamp_min(1e-38), 0) * whole.abs()


def rank_agreement(first: Scores, second: Scores) -> float | None:
    """Return the mean over groups of Spearman's rank correlation between two scorings of the same units.

    Groups of fewer than 3 units, and those where all scores are equal, say nothing and are left out; None if no group is left.
    """
    from scipy.stats import spearmanr

    rhos = [
        float(spearmanr(values, second[name]).statistic)
        for name, values in first.items()
        if len(values) >= 3 and len(values.unique()) > 1 and len(second[name].unique()) > 1
    ]
    return statistics.fmean(rhos) if rhos else None


def _compute(
    estimator: ImportanceEstimator,
    model: PreTrainedModel,
    groups: Mapping[str, UnitGroup],
    samples: torch.Tensor | None,
) -> dict[str, Any]:
    """Score all samples and, where asked for and possible, both halves; as JSON."""
    values = estimator.score(model, groups, samples)
    spread, agreement = None, None
    if estimator.halves and samples is not None and len(samples) >= 2:
        middle = len(samples) // 2
        first, second = (estimator.score(model, groups, half) for half in (samples[:middle], samples[middle:]))
        spread = {name: half_difference(first[name], second[name], values[name]).tolist() for name in groups}
        agreement = rank_agreement(first, second)
    lists = {name: scores.tolist() for name, scores in values.items()}
    return {"values": lists, "spread": spread, "rank_agreement": agreement}


def _tensors(lists: Mapping[str, list[float]], groups: Mapping[str, UnitGroup]) -> Scores:
    return {name: torch.tensor(lists[name]) for name in groups}
