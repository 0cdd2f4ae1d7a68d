"""Scoring with a memory: the scores of a model that was scored in the same way before come from the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import torch
from transformers import PreTrainedModel

from pruning.cache import Cache, digest
from pruning.importance.base import ImportanceEstimator, Needs
from pruning.model import fingerprint
from pruning.units import UnitGroup


def score_units(
    estimator: ImportanceEstimator,
    model: PreTrainedModel,
    groups: Mapping[str, UnitGroup],
    samples: torch.Tensor,
    cache: Cache,
) -> dict[str, torch.Tensor]:
    """Return the estimator's scores, group name -> (U,) float32, computed or read.

    Args:
        estimator: the `importance` option.
        model: left bit-identical.
        groups: what to score.
        samples: calibration token ids, (N, T); ignored by an estimator that needs only weights.
        cache: where scores are kept.
    """
    needs_text = estimator.needs is not Needs.weights
    inputs = {
        "estimator": type(estimator).__name__,
        "settings": asdict(estimator),
        "model": fingerprint(model),
        "groups": sorted(groups),
        "samples": digest(samples.tolist()) if needs_text else None,
    }

    def compute() -> dict[str, list[float]]:
        scores = estimator.score(model, groups, samples if needs_text else None)
        return {name: values.tolist() for name, values in scores.items()}

    found = cache.json("scores", inputs, compute)
    return {name: torch.tensor(found[name]) for name in groups}
