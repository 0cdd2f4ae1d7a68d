"""What becomes of the units that an event chooses: they leave for good, or are zeroed or disturbed for some training steps.

Source of the temporary removals: Bartoldson, Morcos, Barbu, Erlebacher, "The Generalization-Stability Tradeoff in Neural
Network Pruning", NeurIPS 2020; of dense-sparse-dense training: Han et al., "DSD", ICLR 2017.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from pruning.compensation.base import Compensation, NoCompensation
from pruning.schedule import FixedSchedule, Schedule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.compensation.base import Correction
    from pruning.layout import DecoderLayout
    from pruning.noise import Noise
    from pruning.units import PruningPlan, UnitGroup


class Reentry(Enum):
    """How zeroed units come back."""

    restore = "restore"
    zero = "zero"


class Targets(Enum):
    """Which units an event acts on."""

    all = "all"
    new = "new"


@dataclass(frozen=True)
class Event:
    """What one event is to remove."""

    layout: DecoderLayout
    groups: Mapping[str, UnitGroup]
    """The model's groups that may be cut."""

    plan: PruningPlan
    earlier: PruningPlan
    """What was removed at the events before and is back."""

    corrections: Mapping[str, Correction]
    """What compensates for the plan."""

    seed: int
    """Of noise."""


@dataclass
class UnitRemoval:
    """Base of the `removal` options."""

    is_temporary: ClassVar[bool] = False

    @property
    def needs_trained_base(self) -> str | None:
        """The setting for which the recovery must train the model's own weights, not only adapters; None without."""
        return None

    def lasting(self, plan: PruningPlan) -> PruningPlan:
        """Return the plan as it is once its units have come back."""
        return plan

    def check(self, groups: Mapping[str, UnitGroup], schedule: Schedule, compensation: Compensation) -> None:
        """Raise a ValueError for what this removal does not go with. Called before any work."""

    @contextmanager
    def carried_out(self, model: PreTrainedModel, event: Event) -> Iterator[Noise | None]:
        """Carry out an event; inside the block the model is what it is directly after it.

        Yields:
            What is to act while the model is trained; None after a cut.
        """
        raise NotImplementedError
        yield


@dataclass
class Cut(UnitRemoval):
    """The units leave for good."""

    @contextmanager
    def carried_out(self, model: PreTrainedModel, event: Event) -> Iterator[Noise | None]:
        """Compensate and cut; see the base class."""
        from pruning.compensation.apply import compensate
        from pruning.surgery import cut

        compensate(model, event.corrections)
        cut(model, event.layout, event.groups, event.plan)
        yield None


@dataclass
class TemporaryRemoval(UnitRemoval):
    """Base of the removals after which the model has all its units again."""

    is_temporary: ClassVar[bool] = True

    steps: int = 10
    """Optimiser steps, from the event on, that it lasts; at most as many as are done before the next event."""

    targets: Targets = Targets.all
    """all: all units chosen so far; new: only those that this event chose."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"removal.steps={self.steps}: must be at least 1")

    def lasting(self, plan: PruningPlan) -> PruningPlan:
        """Return a plan of the same target that reaches nothing."""
        return replace(plan, ratio_reached=0.0)

    def check(self, groups: Mapping[str, UnitGroup], schedule: Schedule, compensation: Compensation) -> None:
        """Raise when units that come back would not find the weights that they left, or events are sized by cuts."""
        if not isinstance(compensation, NoCompensation):
            raise ValueError(
                "compensation: units that are removed for a while come back to weights that must not have made up for "
                "them; use compensation=none"
            )
        if not isinstance(schedule, FixedSchedule):
            raise ValueError("schedule=stability_target: sizes cuts; use removal=cut, or another schedule")

    @contextmanager
    def carried_out(self, model: PreTrainedModel, event: Event) -> Iterator[Noise | None]:
        """Do to the units for now what the noise will do while the model is trained; see the base class."""
        from pruning.units import removed_units

        before = removed_units(event.earlier, event.groups) if self.targets is Targets.new else {}
        removed = {
            name: left
            for name, units in removed_units(event.plan, event.groups).items()
            if (left := sorted(set(units) - set(before.get(name, ()))))
        }
        noise = self.noise(model, event.groups, removed, event.seed)
        with noise.shown():
            yield noise

    def noise(
        self, model: PreTrainedModel, groups: Mapping[str, UnitGroup], removed: Mapping[str, list[int]], seed: int
    ) -> Noise:
        """Return what acts on the removed units of one event."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Return the hyper-parameters as plain values."""
        return {name: value.value if isinstance(value, Enum) else value for name, value in asdict(self).items()}


@dataclass
class Zeroing(TemporaryRemoval):
    """The units are held at zero, and come back."""

    reentry: Reentry = Reentry.restore
    """restore: with the weights they had; zero: contributing nothing at first, and trained (needs recovery=full)."""

    @property
    def needs_trained_base(self) -> str | None:
        """Units that come back at zero: frozen, they would stay there."""
        return "removal.reentry=zero" if self.reentry is Reentry.zero else None

    def check(self, groups: Mapping[str, UnitGroup], schedule: Schedule, compensation: Compensation) -> None:
        """Raise, too, for units that no linear map reads; see the base class."""
        super().check(groups, schedule, compensation)
        kinds = sorted({group.kind.name for group in groups.values() if not group.readers})
        if kinds:
            raise ValueError(
                f"removal=zeroing: cannot hold {', '.join(kinds)} at zero in training here, because no linear map reads "
                "these units; name other pruning.structures"
            )

    def noise(
        self, model: PreTrainedModel, groups: Mapping[str, UnitGroup], removed: Mapping[str, list[int]], seed: int
    ) -> Noise:
        """Return the zeros."""
        from pruning.noise import Zero

        return Zero(model, groups, removed, self.settings())


@dataclass
class GaussianNoise(TemporaryRemoval):
    """The units' weights get Gaussian noise as large as the other units' weights are spread."""

    scale: float = 1.0
    """Standard deviation of the noise in units of that of the untargeted units' weights, matrix by matrix."""

    walk: bool = False
    """false: one draw; true: another one on top at every step, a random walk."""

    restore: bool = True
    """Whether the units get their weights back in the end; if not they keep the noise (needs recovery=full)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale <= 0:
            raise ValueError(f"removal.scale={self.scale}: must be above 0")

    @property
    def needs_trained_base(self) -> str | None:
        """Noise that stays: frozen weights could not be trained out of it."""
        return None if self.restore else "removal.restore=false"

    def check(self, groups: Mapping[str, UnitGroup], schedule: Schedule, compensation: Compensation) -> None:
        """Raise, too, for units that have no others to compare with; see the base class."""
        super().check(groups, schedule, compensation)
        if kinds := sorted({group.kind.name for group in groups.values() if group.kind.is_depth}):
            raise ValueError(
                f"removal=gaussian: {', '.join(kinds)} has no other units whose spread the noise could have; name other "
                "pruning.structures"
            )

    def noise(
        self, model: PreTrainedModel, groups: Mapping[str, UnitGroup], removed: Mapping[str, list[int]], seed: int
    ) -> Noise:
        """Return the noise."""
        from pruning.noise import Gaussian

        return Gaussian(model, groups, removed, {**self.settings(), "seed": seed})
