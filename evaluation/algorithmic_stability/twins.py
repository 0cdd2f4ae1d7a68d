"""Twin recoveries: trains them, compares each with the base, and puts the `algorithmic_stability/*` metrics together.

All start from one model, which stays as it is. Every training goes through the cache, so a killed run goes on with the next.
Only the exact rerun keeps a cache of its own: from the shared one the base would be read back, and nothing be rerun.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.algorithmic_stability import measures
from evaluation.algorithmic_stability.config import Twins
from evaluation.algorithmic_stability.coupling import Coupling, couple, first_reads, index_stream
from pruning.cache import Cache
from pruning.progress import loop

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from evaluation.perplexity import TextScore

log = logging.getLogger(__name__)

Train = Callable[["PreTrainedModel", "torch.Tensor", int, Cache], object]
"""Recovers a model in place on blocks (R, T), read in this order, with a seed and a cache."""

Score = Callable[["PreTrainedModel", "torch.Tensor"], "TextScore"]
"""Scores a model on blocks (P, T) in evaluation mode."""


@dataclass(frozen=True)
class Training:
    """What one training came to, beside the base."""

    losses: np.ndarray
    """Nats per token on every example of the pool, (P,)."""

    distance: float
    """Of its update from the base's, relative to the length of the base's."""


@dataclass(frozen=True)
class TwinReport:
    """All trainings of one measurement."""

    coupling: Coupling
    first_reads: np.ndarray
    """How much of the training is over when each slot is first read, in [0, 1); NaN for slots never read. (n,)."""

    before: np.ndarray
    """Loss of the model before the recovery on every example of the pool, (P,)."""

    base: np.ndarray
    """Loss of the base on every example of the pool, (P,)."""

    twins: list[Training]
    rerun: Training
    """The base once more, the same in everything."""

    other_seed: Training
    """The same examples; other initial values, dropout and order."""

    def metrics(self) -> dict[str, float]:
        """Return every `algorithmic_stability/*` metric."""
        swaps = zip(self.twins, self.coupling.removed, self.coupling.fresh, strict=True)
        changes = [measures.replaced_changes(self.base, twin.losses, out, into) for twin, out, into in swaps]
        per_twin = {
            "aas": [sum(pair) / 2 for pair in changes],
            "aas_direct": [direct for direct, _ in changes],
            "aas_symmetric": [symmetric for _, symmetric in changes],
            "arg_rel": [twin.distance for twin in self.twins],
        }
        found: dict[str, float] = {"examples": len(self.coupling.examples)}
        for name, values in per_twin.items():
            found[name], found[f"{name}_stderr"] = measures.mean_and_error(values)
        losses = np.stack([twin.losses for twin in self.twins])
        found["uas_lb"], found["uas_q99"] = measures.largest_changes(self.base, losses)
        found["never_read"] = float(np.isnan(self.first_reads[self.coupling.slots]).mean())
        found["gap"], found["gap_stderr"] = measures.generalization_gap(
            self.before, self.base, self.coupling.examples, self.coupling.fresh
        )
        for name, training in (("rerun", self.rerun), ("other_seed", self.other_seed)):
            found |= {f"{name}/{measure}": value for measure, value in self._floor(training).items()}
        return {f"algorithmic_stability/{name}": value for name, value in found.items()}

    def details(self) -> dict[str, Any]:
        """Return what was found twin by twin, as plain values."""
        swaps = zip(self.twins, self.coupling.slots, self.coupling.removed, self.coupling.fresh, strict=True)
        rows = [
            {
                "slots": slots.tolist(),
                "first_reads": self.first_reads[slots].tolist(),
                "direct": (twin.losses[out] - self.base[out]).tolist(),
                "symmetric": (self.base[into] - twin.losses[into]).tolist(),
                "largest_change": measures.largest_changes(self.base, twin.losses)[0],
                "arg_rel": twin.distance,
            }
            for twin, slots, out, into in swaps
        ]
        return {"twins": rows}

    def _floor(self, training: Training) -> dict[str, float]:
        """Return the same measures of a training that has all examples in common with the base."""
        every = self.coupling.examples, self.coupling.fresh.ravel()
        largest, quantile = measures.largest_changes(self.base, training.losses)
        return {
            "aas": sum(measures.replaced_changes(self.base, training.losses, *every)) / 2,
            "uas_lb": largest,
            "uas_q99": quantile,
            "arg_rel": training.distance,
        }


def recover_twins(
    config: Twins, model: PreTrainedModel, pool: torch.Tensor, *, train: Train, score: Score, seed: int, cache: Cache
) -> TwinReport:
    """Train the base, its twins, the exact rerun and the other seed, one after the other.

    Args:
        config: how many twins, and what they swap.
        model: before the recovery; bit-identical afterwards. Twice its memory is taken on top.
        pool: distinct blocks that are all drawn alike, (P, T): the examples, and the fresh ones that come into their slots.
        train: the recovery.
        score: gives the loss of every block.
        seed: of the recovery, of what is swapped, and of the order.
        cache: where trainings are kept.
    """
    examples = len(pool) - config.twins * config.swapped
    coupling = couple(examples, config.twins, config.swapped, seed)
    stream = index_stream(examples, examples * config.epochs, config.sampling, seed)
    other_stream = index_stream(examples, examples * config.epochs, config.sampling, seed + 1)
    with loop("twin recoveries", config.twins + 3) as step:

        def trained(own: np.ndarray, order: np.ndarray, seed: int, cache: Cache) -> PreTrainedModel:
            found = copy.deepcopy(model)
            train(found, pool[own[order]], seed, cache)
            step()
            return found

        base = trained(coupling.examples, stream, seed, cache)
        base_losses = losses(score(base, pool))

        def compared(own: np.ndarray, order: np.ndarray, seed: int, cache: Cache) -> Training:
            other = trained(own, order, seed, cache)
            weights = [{name: p.detach() for name, p in one.named_parameters()} for one in (model, base, other)]
            return Training(losses(score(other, pool)), measures.relative_distance(*weights))

        report = TwinReport(
            coupling=coupling,
            first_reads=first_reads(stream, examples),
            before=losses(score(model, pool)),
            base=base_losses,
            twins=[compared(coupling.examples_of(twin), stream, seed, cache) for twin in range(config.twins)],
            rerun=compared(coupling.examples, stream, seed, Cache(cache.root / "rerun")),
            other_seed=compared(coupling.examples, other_stream, seed + 1, cache),
        )
    warn_of_disagreement(report.metrics())
    return report


def losses(score: TextScore) -> np.ndarray:
    """Return the loss of every block, nats per token, (N,)."""
    return np.array(score.loss_sums) / score.tokens_per_block


def warn_of_disagreement(metrics: dict[str, float]) -> None:
    """Say so where on-average stability and the gap, which have one expectation, are more than three errors apart."""
    (aas, aas_error), (gap, gap_error) = (
        (metrics[f"algorithmic_stability/{name}"], metrics[f"algorithmic_stability/{name}_stderr"])
        for name in ("aas", "gap")
    )
    if abs(aas - gap) > 3 * math.hypot(aas_error, gap_error):
        log.warning(
            "algorithmic_stability/aas (%.4f, error %.4f) and gap (%.4f, error %.4f) should agree: take more twins or "
            "more swapped examples",
            *(aas, aas_error, gap, gap_error),
        )
