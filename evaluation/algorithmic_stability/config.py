"""The `algorithmic_stability` options: no twins, or how many twin recoveries there are and what they swap."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Sampling(Enum):
    """How the order is drawn in which a recovery reads its examples."""

    without_replacement = "without_replacement"
    with_replacement = "with_replacement"


@dataclass
class AlgorithmicStabilityConfig:
    """Base of the `algorithmic_stability` options."""

    def blocks_needed(self, recovery: tuple[int, int]) -> tuple[int, int]:
        """Return the number and length (N, T) of the distinct blocks that the trainings need; (0, 0) for no trainings.

        Args:
            recovery: number and length of the blocks that one recovery reads, repetitions counted.
        """
        raise NotImplementedError


@dataclass
class NoTwins(AlgorithmicStabilityConfig):
    """Nothing is measured."""

    def blocks_needed(self, recovery: tuple[int, int]) -> tuple[int, int]:
        """Return (0, 0)."""
        return 0, 0


@dataclass
class Twins(AlgorithmicStabilityConfig):
    """Recoveries that differ from one base recovery in a few examples, and in nothing else."""

    twins: int = 5
    """Twin recoveries. A base, an exact rerun and one with another seed come on top."""

    swapped: int = 8
    """Examples that each twin swaps for fresh ones. 1 is the textbook case; about 1 % of all gives surer averages."""

    epochs: int = 1
    """How often an example is read: there are steps x batch size / epochs examples. On average, with replacement."""

    sampling: Sampling = Sampling.without_replacement
    """without_replacement: every epoch reads all examples in a new order; with_replacement: each is drawn from all."""

    def __post_init__(self) -> None:
        for name, low in (("twins", 2), ("swapped", 1), ("epochs", 1)):
            if (value := getattr(self, name)) < low:
                raise ValueError(f"algorithmic_stability.{name}={value}: must be at least {low}")

    def examples(self, reads: int) -> int:
        """Return the number of examples that a recovery which reads `reads` blocks has.

        Raises:
            ValueError: there is no recovery, its reads are no whole number of epochs, or the twins swap more than there is.
        """
        if reads == 0:
            raise ValueError("algorithmic_stability=twins: measures the recovery, and recovery=none has none; use lora")
        if reads % self.epochs:
            raise ValueError(
                f"algorithmic_stability.epochs={self.epochs}: must divide the {reads} blocks that the recovery reads "
                "(recovery.steps times recovery.batch_size)"
            )
        found = reads // self.epochs
        if self.twins * self.swapped > found:
            raise ValueError(
                f"algorithmic_stability.swapped={self.swapped}: {self.twins} twins swap {self.twins * self.swapped} different "
                f"examples, but there are only {found}: must be at most {found // self.twins}, or take fewer twins, fewer "
                "epochs or more recovery.steps"
            )
        return found

    def blocks_needed(self, recovery: tuple[int, int]) -> tuple[int, int]:
        """Return the number and length (N, T) of the blocks: the examples, and a fresh one for each that is swapped."""
        reads, length = recovery
        return self.examples(reads) + self.twins * self.swapped, length
