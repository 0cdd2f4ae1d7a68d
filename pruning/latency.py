"""A latency target: how much to cut so that a given fraction of the prefill time is gone, on this machine.

Time is not a sum over parameters, so it is measured: a candidate is cut out of a copy of the model, and both run in turn.
Load on the machine that comes and goes then falls on both; the median of the quotients of the pairs drops what does not.
"""

from __future__ import annotations

import copy
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

import torch
from transformers import PreTrainedModel

from pruning.budget import Removal
from pruning.cache import Cache
from pruning.choice import choose_units
from pruning.config import LatencyConfig
from pruning.layout import DecoderLayout
from pruning.model import fingerprint
from pruning.progress import track
from pruning.surgery import cut
from pruning.timing import prefill, seconds_in_turn, seconds_of, token_ids
from pruning.units import PruningPlan, UnitGroup

log = logging.getLogger(__name__)

MOST_CANDIDATES = 16
"""Candidates that a search measures at most."""


class PrefillTimes:
    """Times of candidates relative to one model. A measurement is kept in the cache, for this machine."""

    def __init__(
        self,
        config: LatencyConfig,
        model: PreTrainedModel,
        layout: DecoderLayout,
        groups: Mapping[str, UnitGroup],
        cache: Cache,
    ) -> None:
        self.config = config
        self.model = model
        self.layout = layout
        self.groups = groups
        self.cache = cache
        self.known = {"model": fingerprint(model), "options": asdict(config), "machine": describe_machine(model.device)}

    def relative(self, counts: Mapping[str, int]) -> float:
        """Return the prefill time without so many units of each group, as a fraction of the model's own.

        Which units leave does not change the time, so the first of every group do.
        """
        counts = {name: count for name, count in sorted(counts.items()) if count}
        if not counts:
            return 1.0
        return self.cache.json("latency", self.known | {"counts": counts}, lambda: self._measure(counts))

    def _measure(self, counts: Mapping[str, int]) -> float:
        candidate = copy.deepcopy(self.model)
        alike = {name: torch.zeros(group.num_units) for name, group in self.groups.items()}
        cut(candidate, self.layout, self.groups, PruningPlan(choose_units(self.groups, alike, counts), 0.0, 0.0))
        return relative_prefill(self.model, candidate, self.config)


def solve_time(removal: Removal, times: PrefillTimes, left: float, asked: float) -> tuple[dict[str, int], float]:
    """Return how many units of each group leave, and the fraction of the dense model's prefill time that is then left.

    Args:
        removal: what may leave.
        times: of candidates, relative to the model as it is.
        left: fraction of the dense model's time that the model as it is takes.
        asked: fraction of the dense model's time that is to go in all.
    """

    def gone(amount: int) -> float:
        return 1 - left * times.relative(removal.counts(amount))

    most = removal.budget.removed(removal.most)
    amount = find_amount(asked, most, removal.finest, gone, times.config.tolerance)
    counts = removal.counts(amount)
    return counts, left * times.relative(counts)


def describe_machine(device: torch.device) -> dict[str, str | int | None]:
    """Return what a time depends on besides the model: the machine, its device and the threads that compute."""
    return {
        "node": platform.node(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def relative_prefill(model: PreTrainedModel, candidate: PreTrainedModel, config: LatencyConfig) -> float:
    """Return the candidate's prefill time as a fraction of the model's."""
    ids = token_ids(model, config.batch_size, config.tokens)
    return paired_quotient(lambda: prefill(model, ids), lambda: prefill(candidate, ids), config.repetitions)


def paired_quotient(
    reference: Callable[[], None],
    other: Callable[[], None],
    pairs: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the median, over pairs that run one directly after the other, of other's time over the reference's.

    The first pair warms up and is not counted; every second pair runs in the other order (`seconds_in_turn`).
    """
    seconds = seconds_in_turn([lambda: seconds_of(reference, clock), lambda: seconds_of(other, clock)], pairs)
    return statistics.median(theirs / own for own, theirs in zip(*seconds, strict=True))


def find_amount(asked: float, most: int, finest: int, measure: Callable[[int], float], tolerance: float) -> int:
    """Return the amount to remove after which the fraction of time asked for is gone, or the nearest to that.

    The amount is bracketed; each next one is where a straight line between the bracket's ends would have the time asked for,
    kept off the ends by a tenth of the bracket.

    Args:
        asked: fraction of the time that is to go.
        most: the largest amount that can be removed.
        finest: the smallest step between amounts.
        measure: amount -> fraction of the time that is gone. May be noisy.
        tolerance: how near to `asked` is near enough.

    Raises:
        ValueError: even the largest amount leaves too much time.
    """
    low, high = (0, measure(0)), (most, measure(most))
    check_reachable(asked, high[1], tolerance)
    tried = [high]
    for _ in track(range(MOST_CANDIDATES), "latency"):
        best = min(tried, key=lambda entry: abs(entry[1] - asked))
        if abs(best[1] - asked) <= tolerance or high[0] - low[0] <= finest:
            break
        share = (asked - low[1]) / max(high[1] - low[1], 1e-9)
        amount = low[0] + round((high[0] - low[0]) * min(max(share, 0.1), 0.9))
        tried.append((amount, measure(amount)))
        low, high = (tried[-1], high) if tried[-1][1] < asked else (low, tried[-1])
    best = min(tried, key=lambda entry: abs(entry[1] - asked))
    if abs(best[1] - asked) > tolerance:
        log.warning(
            "pruning.ratio: %.3f of the prefill time was to go; the nearest found is %.3f, farther than "
            "pruning.latency.tolerance=%s: units are coarse or the machine is busy",
            asked,
            best[1],
            tolerance,
        )
    return best[0]


def check_reachable(asked: float, most: float, tolerance: float) -> None:
    """Raise when even the smallest model that may be cut takes more time than asked for.

    Args:
        asked: fraction of the dense model's prefill time that is to go.
        most: the fraction that goes when all leaves that may.
        tolerance: how near to `asked` is near enough.
    """
    if asked > most + tolerance:
        raise ValueError(
            f"pruning.ratio={asked} (of latency): cannot be reached here. With all units cut that may leave, the prefill "
            f"takes {1 - most:.3f} of the dense model's time on this machine, so the ratio must be at most {most:.3f}. "
            "Protect fewer layers (pruning.protect_first, pruning.protect_last), name more pruning.structures, or cut "
            "whole layers (pruning=layer_wise)"
        )
