"""What the `pruning` group sets: which units may leave, how many, and how they are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pruning.autocast import check_bf16
from pruning.kinds import UnitKind


class RatioOf(Enum):
    """What `pruning.ratio` is a fraction of."""

    total = "total"
    blocks = "blocks"
    units = "units"
    macs = "macs"
    latency = "latency"


Allocation = Enum("Allocation", {"uniform": "uniform", "global": "global", "sensitivity": "sensitivity"})
"""How the budget is shared out: the same fraction of every group; one ranking of all units by score per parameter; or where
the measured rise in loss per parameter is least."""


class Direction(Enum):
    """Which units leave first."""

    smallest = "smallest"
    largest = "largest"
    random = "random"


@dataclass
class SensitivityConfig:
    """How allocation=sensitivity measures what the loss of each group costs."""

    fractions: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75])
    """Fractions of the units that a group may lose, each in (0, 1), at which the rise in loss is measured; 1 always is."""

    samples: int | None = 8
    """Calibration samples that the loss is measured on, from the first on; null for all."""

    batch_size: int = 8
    """Samples run at once. Saves memory, does not change what is measured."""

    def __post_init__(self) -> None:
        if any(not 0 < fraction < 1 for fraction in self.fractions):
            raise ValueError(
                f"pruning.sensitivity.fractions={self.fractions}: each must be in (0, 1); 1 is always measured"
            )
        _check_at_least_one("pruning.sensitivity", {"samples": self.samples, "batch_size": self.batch_size})


@dataclass
class LatencyConfig:
    """How ratio_of=latency measures the prefill time of a candidate against that of the model as it is."""

    batch_size: int = 2
    tokens: int = 128
    """Tokens of every sequence in the prefill that is timed."""

    repetitions: int = 9
    """Pairs of timed prefills, the model's and the candidate's in turn; the median of their quotients counts."""

    tolerance: float = 0.02
    """The search ends when the fraction of the time that is gone is this near to `ratio`; in (0, 1)."""

    def __post_init__(self) -> None:
        counts = {"batch_size": self.batch_size, "tokens": self.tokens, "repetitions": self.repetitions}
        _check_at_least_one("pruning.latency", counts)
        if not 0 < self.tolerance < 1:
            raise ValueError(f"pruning.latency.tolerance={self.tolerance}: must be in (0, 1)")


@dataclass
class PruningConfig:
    """What is cut, and how much of it."""

    ratio: float = 0.2
    """Fraction to remove, in [0, 1)."""

    ratio_of: RatioOf = RatioOf.total
    """total: all parameters of the model; blocks: those of the decoder layers; units: the units of each touched group; macs:
    the multiply-accumulates of one sequence; latency: the prefill time, measured on this machine."""

    macs_tokens: int = 64
    """Tokens of the sequence that multiply-accumulates are counted for."""

    latency: LatencyConfig = field(default_factory=LatencyConfig)
    """How prefill is timed, for ratio_of=latency."""

    structures: list[UnitKind] = field(default_factory=lambda: [UnitKind.kv_group, UnitKind.mlp_channel])
    """Kinds of units that may leave: kv_group, query_head, mlp_channel, expert, hidden, attention_layer, mlp_layer, layer."""

    allocation: Allocation = Allocation.uniform
    """uniform: every group and kind loses the same fraction of what it can lose; global: one ranking of all units by score per
    parameter (or per multiply-accumulate, for ratio_of=macs); sensitivity: the same with the measured rise in loss instead of
    the score."""

    sensitivity: SensitivityConfig = field(default_factory=SensitivityConfig)
    """How the rise in loss is measured, for allocation=sensitivity."""

    rounds: int = 1
    """Times that units are scored on the way to one cut, each time on the model pruned and compensated so far. The calibration
    samples are dealt out among them; what has been chosen stays chosen."""

    direction: Direction = Direction.smallest
    """Which units leave: those of the smallest scores, of the largest, or drawn at random."""

    seed: int = 0
    """Draws the units of direction=random."""

    protect_first: int = 4
    """First layers that are left whole."""

    protect_last: int = 2
    """Last layers that are left whole."""

    attention_layers: list[int] | None = None
    """Layers whose attention may be cut; null: all that are not protected."""

    mlp_layers: list[int] | None = None
    """Layers whose MLP may be cut; null: all that are not protected."""

    attention_ratio: float | None = None
    """Fraction of the units to remove from each touched attention, whatever `ratio` leaves for the rest; null: solved for."""

    mlp_ratio: float | None = None
    """The same for each touched MLP."""

    layer_ratios: dict[str, float] = field(default_factory=dict)
    """The same for single groups, by name: {layers.5.mlp: 0.3, layers.7.attention: 0.5, hidden: 0.1}."""

    bf16: Any = False  # bool | str, which OmegaConf cannot merge into a group of this very class
    """Whether passes over the calibration text (scores, moments, gains) compute matrix products in bfloat16, by autocast; auto:
    for a float32 model where processor or GPU computes in it. No figure that is reported is taken so."""

    round_to: int = 1
    """What is left of MLP channels and of the hidden width is a multiple of it."""

    min_units: int = 1
    """Units that every group keeps at least."""

    def __post_init__(self) -> None:
        ratios = {"attention_ratio": self.attention_ratio, "mlp_ratio": self.mlp_ratio}
        ratios |= {f"layer_ratios.{name}": value for name, value in self.layer_ratios.items()}
        for name, value in {"ratio": self.ratio, **ratios}.items():
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"pruning.{name}={value}: must be in [0, 1)")
        for name in ("protect_first", "protect_last"):
            if getattr(self, name) < 0:
                raise ValueError(f"pruning.{name}={getattr(self, name)}: must be at least 0")
        check_bf16("pruning.bf16", self.bf16)
        counts = {"min_units": self.min_units, "round_to": self.round_to, "macs_tokens": self.macs_tokens}
        _check_at_least_one("pruning", counts | {"rounds": self.rounds})
        if self.rounds > 1 and self.direction is not Direction.smallest:
            raise ValueError(
                f"pruning.rounds={self.rounds}: needs pruning.direction=smallest, because what left in earlier rounds scores 0"
            )
        if not self.structures:
            raise ValueError(f"pruning.structures=[]: name at least one of {[kind.name for kind in UnitKind]}")
        if self.ratio_of is RatioOf.units and self.allocation is not Allocation.uniform:
            raise ValueError(
                f"pruning.allocation={self.allocation.name}: with pruning.ratio_of=units every group loses the same fraction; "
                "use pruning.allocation=uniform, or another pruning.ratio_of (total, blocks, macs, latency)"
            )


def _check_at_least_one(prefix: str, values: Mapping[str, int | None]) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{prefix}.{name}={value}: must be at least 1")
