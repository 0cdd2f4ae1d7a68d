"""Which examples every training reads, and in which order. Twins share everything but a few slots.

A recovery has slots; each holds one example, and an index stream says which slot is read when. A twin puts fresh
examples into some slots and reads the same stream: slot by slot it does what the base does. Letters: P examples in the pool,
n slots, M twins, k slots swapped by each, R reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.algorithmic_stability.config import Sampling


@dataclass(frozen=True)
class Coupling:
    """Examples are named by their place in the pool."""

    examples: np.ndarray
    """The example in each slot of the base, (n,)."""

    slots: np.ndarray
    """The slots that each twin swaps, (M, k); no slot is swapped by two twins."""

    fresh: np.ndarray
    """The examples that come into these slots, (M, k); none of them is in the base, none in two twins."""

    @property
    def removed(self) -> np.ndarray:
        """The base's examples that each twin does without, (M, k)."""
        return self.examples[self.slots]

    def examples_of(self, twin: int) -> np.ndarray:
        """Return the example in each slot of a twin, (n,)."""
        found = self.examples.copy()
        found[self.slots[twin]] = self.fresh[twin]
        return found


def couple(examples: int, twins: int, swapped: int, seed: int) -> Coupling:
    """Draw which examples of the pool the base is trained on, and what each twin swaps.

    All of a pool of n + M k examples are dealt out at random: whatever order the pool was in, those that are trained on and
    those that are not come from one distribution.

    Args:
        examples: n.
        twins: M.
        swapped: k; M k at most n.
        seed: draws everything.
    """
    draw = np.random.default_rng([seed, 0])
    dealt = draw.permutation(examples + twins * swapped)
    slots = draw.permutation(examples)[: twins * swapped]
    return Coupling(dealt[:examples], slots.reshape(twins, swapped), dealt[examples:].reshape(twins, swapped))


def index_stream(examples: int, reads: int, sampling: Sampling, seed: int) -> np.ndarray:
    """Return which slot is read at each of `reads` times, (R,).

    Without replacement it is one new permutation of the slots after the other, so each slot is read exactly R / n times. With
    replacement every read is drawn from all slots, so the number of times is about Poisson(R / n), and exp(-R / n) of
    the slots are never read.
    """
    draw = np.random.default_rng([seed, 1])
    if sampling is Sampling.with_replacement:
        return draw.integers(examples, size=reads)
    return np.concatenate([draw.permutation(examples) for _ in range(-(-reads // examples))])[:reads]


def first_reads(stream: np.ndarray, examples: int) -> np.ndarray:
    """Return how much of the training is over when each slot is first read, in [0, 1); NaN for slots never read. (n,)."""
    found = np.full(examples, np.nan)
    slots, places = np.unique(stream, return_index=True)
    found[slots] = places / len(stream)
    return found
