"""Removals: which units they act on, and what they do not go with."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from pruning.compensation.base import Compensation, NoCompensation
from pruning.compensation.bias import BiasCompensation
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.kinds import UnitKind as K
from pruning.model import fingerprint
from pruning.removal import Cut, Event, GaussianNoise, Reentry, Targets, TemporaryRemoval, UnitRemoval, Zeroing
from pruning.schedule import OneShot, Schedule
from pruning.stability_target import StabilityTarget
from pruning.units import PruningPlan
from recovery.base import Recovery, When
from recovery.full import FullFineTuning
from recovery.lora import Lora
from recovery.none import NoRecovery

EARLIER = PruningPlan({"layers.1.mlp": tuple(range(40))}, 0.1, 0.1)
NOW = PruningPlan({"layers.1.mlp": tuple(range(30)), "layers.2.attention": (0, 1, 2)}, 0.2, 0.19)


@pytest.mark.parametrize(
    ("targets", "units"),
    [
        (Targets.all, {"layers.1.mlp": list(range(30, 48)), "layers.2.attention": [3]}),
        (Targets.new, {"layers.1.mlp": list(range(30, 40)), "layers.2.attention": [3]}),
    ],
)
@pytest.mark.parametrize("kind", [Zeroing, GaussianNoise])
def test_an_event_acts_on_all_units_chosen_so_far_or_on_its_own(
    llama: PreTrainedModel, kind: type[TemporaryRemoval], targets: Targets, units: dict[str, list[int]]
) -> None:
    layout = find_layout(llama)
    event = Event(layout, find_units(llama, layout), NOW, EARLIER, {}, seed=0)
    before = fingerprint(llama)
    removal = kind(targets=targets)
    with removal.carried_out(llama, event) as noise:
        assert noise is not None
        assert noise.removed == units
        assert fingerprint(llama) != before
    assert fingerprint(llama) == before
    assert removal.lasting(NOW) == PruningPlan(NOW.kept, 0.2, 0.0)


def test_a_cut_is_for_good(llama: PreTrainedModel) -> None:
    layout = find_layout(llama)
    with Cut().carried_out(llama, Event(layout, find_units(llama, layout), NOW, EARLIER, {}, seed=0)) as noise:
        assert noise is None
    assert llama.model.layers[1].mlp.up_proj.weight.shape[0] == 30
    assert Cut().lasting(NOW) == NOW


@pytest.mark.parametrize(
    ("removal", "kinds", "schedule", "compensation", "message"),
    [
        (Zeroing(), [K.mlp_channel], OneShot(), BiasCompensation(), r"compensation: .*use compensation=none"),
        (Zeroing(), [K.hidden, K.mlp_channel], OneShot(), NoCompensation(), "cannot hold hidden at zero"),
        (GaussianNoise(), [K.layer], OneShot(), NoCompensation(), "layer has no other units"),
        (Zeroing(), [K.mlp_channel], StabilityTarget(), NoCompensation(), "schedule=stability_target: sizes cuts"),
    ],
)
def test_what_units_cannot_come_back_from_is_refused(
    llama: PreTrainedModel,
    removal: UnitRemoval,
    kinds: list[K],
    schedule: Schedule,
    compensation: Compensation,
    message: str,
) -> None:
    groups = {name: group for name, group in find_units(llama, find_layout(llama)).items() if group.kind in kinds}
    with pytest.raises(ValueError, match=message):
        removal.check(groups, schedule, compensation)
    Cut().check(groups, schedule, compensation)


ZERO, NOISY = Zeroing(reentry=Reentry.zero), GaussianNoise(restore=False)


@pytest.mark.parametrize(
    ("recovery", "removal", "events", "message"),
    [
        (NoRecovery(), Zeroing(), 1, "recovery=none: .*come back in training"),
        (Lora(), Zeroing(), 2, r"recovery\.when=last: of 2 events"),
        (Lora(), ZERO, 1, r"removal\.reentry=zero: .*use recovery=full"),
        (Lora(), NOISY, 1, r"removal\.restore=false: .*use recovery=full"),
        (Lora(patience=2, watch_every=1), Zeroing(), 1, r"recovery\.patience=2"),
        (FullFineTuning(target_modules=["up_proj"]), ZERO, 1, r"set recovery\.target_modules to null"),
    ],
)
def test_recoveries_that_units_cannot_come_back_in_are_refused(
    recovery: Recovery, removal: UnitRemoval, events: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        recovery.check_removal(removal, events)
    recovery.check_removal(Cut(), events)


def test_recoveries_that_units_can_come_back_in_are_not() -> None:
    Lora().check_removal(Zeroing(), 1)
    Lora(when=When.each).check_removal(GaussianNoise(), 4)
    FullFineTuning().check_removal(ZERO, 1)
    FullFineTuning(when=When.each).check_removal(NOISY, 4)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Zeroing, {"steps": 0}, r"removal\.steps=0: must be at least 1"),
        (GaussianNoise, {"scale": 0.0}, r"removal\.scale=0\.0: must be above 0"),
    ],
)
def test_values_out_of_range_are_refused(kind: type[UnitRemoval], values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**values)
