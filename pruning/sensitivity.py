"""Measured sensitivity: how the loss rises when one group alone loses more and more of its units.

The measured curve of a group takes the place of its scores in the ranking of units (`pruning.allocation=sensitivity`); the
scores only say in which order the units of a group leave. Letters: U units of a run, N samples, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy
import torch
from transformers import PreTrainedModel

from pruning.cache import Cache, digest
from pruning.choice import choose_units
from pruning.config import SensitivityConfig
from pruning.importance.gradients import only_trainable
from pruning.masking import masked
from pruning.model import fingerprint
from pruning.progress import track
from pruning.units import PruningPlan, UnitGroup, removed_units

Curve = list[tuple[int, float]]
"""Units (of every run) that are gone -> rise of the loss over that of the whole model, in nats per token; from (0, 0) on."""


def measure_curves(
    config: SensitivityConfig,
    model: PreTrainedModel,
    groups: Mapping[str, UnitGroup],
    scores: Mapping[str, torch.Tensor],
    removable: Mapping[str, int],
    samples: torch.Tensor,
    cache: Cache,
    gone: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Curve]:
    """Mask the lowest-scored units of one group after another, and measure the loss.

    Args:
        config: which fractions are measured, and on how many samples.
        model: left bit-identical.
        groups: the groups.
        scores: (U,) for each group; the lowest leave first.
        removable: units of every run that each group may lose; groups that may lose none have no curve.
        samples: calibration token ids, (N, T).
        cache: keeps every loss under the model, the samples and the units that were masked: another ratio measures nothing.
        gone: lowest-scored units of every run that leave anyway: they are masked throughout, and curves begin there.
    """
    samples = samples[: config.samples]
    known = {"model": fingerprint(model), "samples": digest(samples.tolist())}

    def loss(removed: Mapping[str, Sequence[int]]) -> float:
        def compute() -> float:
            with masked(model, groups, removed):
                return mean_loss(model, samples, config.batch_size)

        units = {name: digest(list(units)) for name, units in removed.items()}
        return cache.json("sensitivity", known | {"masked": units}, compute)

    def loss_without(counts: Mapping[str, int]) -> float:
        return loss(removed_units(PruningPlan(choose_units(groups, scores, counts), 0.0, 0.0), groups))

    start = loss_without(gone)
    curves: dict[str, Curve] = {}
    for name, most in track(removable.items(), "sensitivity"):
        before = gone.get(name, 0)
        fractions = sorted({*config.fractions, 1.0})
        counts = sorted({max(1, round(fraction * (most - before))) for fraction in fractions}) if most > before else []
        for count in counts:
            rise = loss_without({**gone, name: before + count}) - start
            curves.setdefault(name, [(0, 0.0)]).append((count, rise))
    return curves


def measured_prices(
    curves: Mapping[str, Curve], groups: Mapping[str, UnitGroup], gone: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """Return what the loss of each unit costs, in the order in which they leave, (U,) for each group with a curve.

    Args:
        curves: measured from `gone` on.
        groups: the groups.
        gone: units of every run that leave anyway, at no cost.
    """
    prices = {}
    for name, curve in curves.items():
        group, before = groups[name], gone.get(name, 0)
        rises = torch.cat((torch.zeros(before), marginal_rises(curve, group.run_length - before)))
        prices[name] = rises.repeat(group.parts) / group.parts
    return prices


def mean_loss(model: PreTrainedModel, samples: torch.Tensor, batch_size: int) -> float:
    """Return the mean next-token loss of token ids (N, T), in nats per token."""
    total = 0.0
    with only_trainable(model, ()), torch.no_grad():
        for batch in samples.to(model.device).split(batch_size):
            total += float(model(input_ids=batch, labels=batch, use_cache=False).loss) * len(batch)
    return total / len(samples)


def marginal_rises(curve: Curve, units: int) -> torch.Tensor:
    """Return what the loss of each unit of a run costs, in the order in which they leave: (U,) float64, never falling.

    The curve is made non-decreasing and convex from below (its greatest convex minorant), because units that cost less
    later can only be had by taking those before them. Its slopes, taken to hold in the middle of each measured interval,
    are interpolated linearly, and extrapolated at both ends, but not below 0: exact for a curve that is quadratic.

    Args:
        curve: measured points, the first (0, 0).
        units: U.
    """
    hull = convex_minorant([(count, max(0.0, rise)) for count, rise in curve])
    ends = numpy.array(hull)
    slopes = numpy.diff(ends[:, 1]) / numpy.diff(ends[:, 0])
    middles = (ends[1:, 0] + ends[:-1, 0]) / 2
    places = numpy.arange(units) + 0.5
    found = numpy.interp(places, middles, slopes)
    if len(slopes) > 1:
        first, last = (numpy.diff(slopes) / numpy.diff(middles))[[0, -1]]
        found = numpy.where(places < middles[0], slopes[0] - first * (middles[0] - places), found)
        found = numpy.where(places > middles[-1], slopes[-1] + last * (places - middles[-1]), found)
    return torch.from_numpy(numpy.maximum(found, 0.0))


def convex_minorant(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return the corners of the greatest convex function that lies nowhere above the points; they are sorted by place."""
    hull: list[tuple[int, float]] = []
    for place, value in points:
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (y1 - y0) * (place - x0) < (value - y0) * (x1 - x0):
                break
            hull.pop()
        hull.append((place, value))
    return hull
