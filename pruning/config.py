"""What the `pruning` group sets: which units may leave, how many, and how they are chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from pruning.kinds import UnitKind


class RatioOf(Enum):
    """What `pruning.ratio` is a fraction of."""

    total = "total"
    blocks = "blocks"
    units = "units"


Allocation = Enum("Allocation", {"uniform": "uniform", "global": "global"})
"""How the budget is shared out: the same fraction of every group, or one ranking of all units by score per parameter."""


class Direction(Enum):
    """Which units leave first."""

    smallest = "smallest"
    largest = "largest"
    random = "random"


@dataclass
class PruningConfig:
    """What is cut, and how much of it."""

    ratio: float = 0.2
    """Fraction to remove, in [0, 1)."""

    ratio_of: RatioOf = RatioOf.total
    """total: all parameters of the model; blocks: those of the decoder layers; units: the units of each touched group."""

    structures: list[UnitKind] = field(default_factory=lambda: [UnitKind.kv_group, UnitKind.mlp_channel])
    """Kinds of units that may leave: kv_group, query_head, mlp_channel, expert, hidden, attention_layer, mlp_layer, layer."""

    allocation: Allocation = Allocation.uniform
    """uniform: every group and kind loses the same fraction of what it can lose; global: one ranking of all units by score per
    parameter."""

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
        for name, low in (("protect_first", 0), ("protect_last", 0), ("min_units", 1), ("round_to", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"pruning.{name}={getattr(self, name)}: must be at least {low}")
        if not self.structures:
            raise ValueError(f"pruning.structures=[]: name at least one of {[kind.name for kind in UnitKind]}")
