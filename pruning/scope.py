"""Which groups may be cut, which have a ratio of their own, and how many units each may lose.

Layers and groups are named as in the dense model, also after an earlier event dropped some layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pruning.config import PruningConfig, RatioOf
from pruning.kinds import ATTENTION_KINDS, MLP_KINDS, UnitKind
from pruning.units import UnitGroup

EXPERT_ALIGNMENT = 16
"""Bytes: grouped matrix products, which run experts, need rows whose length is a multiple of it."""


class Scope:
    """What the configuration says of every group. Follows the layers that leave."""

    def __init__(self, config: PruningConfig, groups: Mapping[str, UnitGroup], layers: int, itemsize: int) -> None:
        """Take the groups, the number of layers and the bytes of one number of the dense model.

        Raises:
            ValueError: the configuration names what the model does not have, or protects everything.
        """
        self.config = config
        self.layers = layers
        has_experts = any(group.kind is UnitKind.expert for group in groups.values())
        self.alignment = EXPERT_ALIGNMENT // itemsize if has_experts else 1
        """What is left of the hidden width and of experts' channels must be a multiple of it."""

        self.present = list(range(layers))
        """The dense model's numbers of the layers that are left."""

        touched = self.touched(groups)
        self.units = {name: group.run_length for name, group in touched.items()}
        """Units of every run of each group that may be cut, in the dense model."""

        self._check_named(touched)

    def touched(self, groups: Mapping[str, UnitGroup]) -> dict[str, UnitGroup]:
        """Return the groups that may be cut: the chosen kinds, in the layers that are not protected."""
        present = {group.kind for group in groups.values()}
        missing = [kind.name for kind in self.config.structures if kind not in present]
        if missing:
            raise ValueError(
                f"pruning.structures: this model has no {', '.join(missing)}; it has "
                f"{', '.join(kind.name for kind in UnitKind if kind in present)}"
            )
        chosen = {
            name: group
            for name, group in groups.items()
            if group.kind in self.config.structures
            and (group.layer is None or self.present[group.layer] in self._layers_for(group.kind))
        }
        if not chosen:
            raise ValueError(
                f"pruning.protect_first={self.config.protect_first} and pruning.protect_last={self.config.protect_last} "
                f"(or attention_layers, mlp_layers) protect all {self.layers} layers of this model: lower them"
            )
        return chosen

    def drop_layers(self, dropped: set[int | None]) -> None:
        """Take note that layers, as the model numbers them now, leave."""
        self.present = [number for layer, number in enumerate(self.present) if layer not in dropped]

    def removable(self, group: UnitGroup) -> int:
        """Return the units of every run that may leave."""
        if group.kind.is_depth:
            return 1
        return max(0, group.run_length - self._least(group))

    def multiple(self, group: UnitGroup) -> int:
        """Return what the number of units that are left must be a multiple of: heads, experts and layers are few."""
        if group.kind not in (UnitKind.mlp_channel, UnitKind.hidden):
            return 1
        runs_experts = group.kind is UnitKind.hidden or group.parts > 1
        return math.lcm(self.config.round_to, self.alignment if runs_experts else 1)

    def gone(self, group: UnitGroup) -> int:
        """Return the units of every run that left in earlier events."""
        return self.units[self._dense_name(group)] - group.run_length

    def held(self, groups: Mapping[str, UnitGroup], counts: Mapping[str, int]) -> list[str]:
        """Return the groups that lose all they may lose, and would be empty if they did not keep the minimum."""
        found = []
        for name, group in groups.items():
            multiple = self.multiple(group)
            least = math.ceil(self._least(group) / multiple) * multiple
            left, dense = group.run_length - counts.get(name, 0), self.units[self._dense_name(group)]
            if not group.kind.is_depth and left <= least < dense:
                found.append(name)
        return found

    def fixed(self, groups: Mapping[str, UnitGroup], ratio: float) -> dict[str, int]:
        """Return the counts of the groups whose ratio is given, at the progress that the cumulative `ratio` stands for."""
        progress = ratio / self.config.ratio if self.config.ratio else 1.0
        counts = {}
        for name, group in groups.items():
            given = self._given_ratio(group)
            if given is not None:
                dense = self.units[self._dense_name(group)]
                left = dense - round(given * progress * dense)
                multiple = self.multiple(group)
                counts[name] = max(0, group.run_length - max(multiple, round(left / multiple) * multiple))
        return counts

    def _least(self, group: UnitGroup) -> int:
        return max(self.config.min_units, group.min_units)

    def _dense_name(self, group: UnitGroup) -> str:
        """Return the name that a group has in the dense model."""
        if group.layer is None:
            return group.name
        return f"layers.{self.present[group.layer]}.{group.name.rpartition('.')[2]}"

    def _layers_for(self, kind: UnitKind) -> Sequence[int]:
        config = self.config
        for kinds, chosen in ((ATTENTION_KINDS, config.attention_layers), (MLP_KINDS, config.mlp_layers)):
            if kind in kinds and chosen is not None:
                return chosen
        return range(config.protect_first, self.layers - config.protect_last)

    def _given_ratio(self, group: UnitGroup) -> float | None:
        config = self.config
        if (name := self._dense_name(group)) in config.layer_ratios:
            return config.layer_ratios[name]
        for kinds, ratio in ((ATTENTION_KINDS, config.attention_ratio), (MLP_KINDS, config.mlp_ratio)):
            if group.kind in kinds and ratio is not None:
                return ratio
        return config.ratio if config.ratio_of is RatioOf.units else None

    def _check_named(self, groups: Mapping[str, UnitGroup]) -> None:
        """Raise for a group or layer that the configuration names and the model does not have, or cannot cut so far."""
        unknown = sorted(set(self.config.layer_ratios) - set(groups))
        if unknown:
            raise ValueError(f"pruning.layer_ratios names {unknown}; the groups that may be cut are {sorted(groups)}")
        for name in ("attention_layers", "mlp_layers"):
            wrong = [layer for layer in getattr(self.config, name) or [] if not 0 <= layer < self.layers]
            if wrong:
                raise ValueError(
                    f"pruning.{name} names the layers {wrong}; this model has layers 0 to {self.layers - 1}"
                )
        for name, group in groups.items():
            given = self._given_ratio(group)
            if given is not None and round(given * group.run_length) > self.removable(group):
                raise ValueError(
                    f"{name}: a ratio of {given} would remove {round(given * group.run_length)} of its {group.run_length} "
                    f"units, but at most {self.removable(group)} may leave (pruning.min_units={self.config.min_units})"
                )
