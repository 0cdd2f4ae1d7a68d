"""Laws of the order in which units leave."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from pruning.allocation import Allocator
from pruning.config import Allocation, Direction, RatioOf
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.importance.base import Normalization
from pruning.importance.normalization import normalizers
from pruning.kinds import UnitKind as K
from pruning.steps import Step, global_order, group_steps
from pruning.units import UnitGroup
from tests.pruning.allocate import NO_SAMPLES, allocator_for, config
from tests.zoo import build

GLOBAL = Allocation["global"]


def scored(
    model: PreTrainedModel, **options: object
) -> tuple[Allocator, dict[str, UnitGroup], dict[str, torch.Tensor]]:
    """Return an allocator, its groups, and random scores that grow with the size of the unit."""
    allocator = allocator_for(model, config(**{"allocation": GLOBAL, **options}))
    groups = allocator.touched(find_units(model, find_layout(model)))
    generator = torch.Generator().manual_seed(1)
    scores = {
        name: torch.rand(group.num_units, generator=generator) * group.params_per_unit for name, group in groups.items()
    }
    return allocator, groups, scores


def lost_fraction(groups: dict[str, UnitGroup], kept: dict[str, tuple[int, ...]], kind: K) -> float:
    """Return the fraction of the units of one kind that leave."""
    of_kind = {name: group for name, group in groups.items() if group.kind is kind}
    left = sum(len(kept.get(name, range(group.num_units))) for name, group in of_kind.items())
    return 1 - left / sum(group.num_units for group in of_kind.values())


@pytest.mark.parametrize("of", [RatioOf.total, RatioOf.macs])
@pytest.mark.parametrize(
    ("family", "structures"),
    [
        ("llama_gqa_tied", [K.kv_group, K.query_head, K.mlp_channel, K.hidden]),
        ("mixtral", [K.expert, K.mlp_channel, K.kv_group]),
        ("phi3", [K.attention_layer, K.mlp_layer, K.mlp_channel]),
    ],
)
def test_a_global_ranking_does_not_change_when_all_scores_are_rescaled(
    family: str, structures: list[K], of: RatioOf
) -> None:
    allocator, groups, scores = scored(build(family), ratio=0.15, structures=structures, ratio_of=of)
    model = build(family)
    plans = [
        allocator.plan(model, groups, {name: factor * values for name, values in scores.items()}, 0.15, NO_SAMPLES)
        for factor in (1.0, 2.0**-20, 2.0**12)
    ]
    assert plans[0] == plans[1] == plans[2]
    assert plans[0].kept


@pytest.mark.parametrize("normalization", [Normalization.layer, Normalization.zscore])
def test_a_normalised_ranking_spares_no_kind_and_no_layer_for_its_scale(
    llama: PreTrainedModel, normalization: Normalization
) -> None:
    allocator, groups, scores = scored(llama, ratio=0.2, protect_last=0)
    scales = {K.kv_group: 1e4, K.mlp_channel: 1.0}
    scores = {
        name: values * scales[group.kind] * (1 + (group.layer or 0))
        for (name, values), group in zip(scores.items(), groups.values(), strict=True)
    }
    raw = allocator.plan(llama, groups, scores, 0.2, NO_SAMPLES)
    assert lost_fraction(groups, dict(raw.kept), K.kv_group) == 0
    moments = normalizers(normalization, groups, scores)
    normalised = {name: (scores[name] - shift) / scale for name, (shift, scale) in moments.items()}
    plan = allocator.plan(llama, groups, normalised, 0.2, NO_SAMPLES)
    lost = {kind: lost_fraction(groups, dict(plan.kept), kind) for kind in scales}
    assert lost[K.kv_group] == pytest.approx(lost[K.mlp_channel], abs=0.2)
    by_layer = [1 - len(plan.kept[f"layers.{layer}.mlp"]) / 48 for layer in (1, 2, 3)]
    assert max(by_layer) - min(by_layer) < 0.15


def test_random_units_leave_of_every_size(llama: PreTrainedModel) -> None:
    allocator, groups, scores = scored(llama, ratio=0.25, direction=Direction.random, protect_last=0)
    plan = allocator.plan(llama, groups, scores, 0.25, NO_SAMPLES)
    lost = {kind: lost_fraction(groups, dict(plan.kept), kind) for kind in (K.kv_group, K.mlp_channel)}
    assert min(lost.values()) > 0.1


def test_a_group_gives_its_lowest_units_first_in_steps_that_leave_multiples(llama: PreTrainedModel) -> None:
    group = find_units(llama, find_layout(llama))["layers.0.mlp"]
    scores = torch.arange(48).flip(0).float()
    steps = group_steps(group, scores, 40, 8, 5)
    assert [(step.before, step.after) for step in steps] == [(0, 8), (8, 16), (16, 24), (24, 32), (32, 40)]
    assert [step.cost for step in steps] == [40] * 5
    assert [step.score for step in steps] == [sum(range(start, start + 8)) for start in range(0, 40, 8)]


def test_every_run_gives_its_own_lowest_unit(llama: PreTrainedModel) -> None:
    group = find_units(llama, find_layout(llama))["layers.0.query_heads"]
    assert (group.parts, group.run_length) == (4, 2)
    (step,) = group_steps(group, torch.tensor([9.0, 1, 2, 8, 7, 3, 4, 6]), 1, 1, 10)
    assert step.score == 1 + 2 + 3 + 4


def test_a_global_line_keeps_the_order_of_every_group_and_takes_the_cheapest_first() -> None:
    def step(group: str, before: int, score: float, cost: int) -> Step:
        return Step(group, K.mlp_channel, before, before + 1, score, cost)

    falling = [step("a", 0, 5.0, 1), step("a", 1, 1.0, 1)]
    others = [step("b", 0, 2.0, 1), step("b", 1, 6.0, 1)]
    large = [step("c", 0, 30.0, 10)]
    line = global_order({"a": falling, "b": others, "c": large})
    assert [(entry.group, entry.before) for entry in line] == [("b", 0), ("c", 0), ("a", 0), ("a", 1), ("b", 1)]
