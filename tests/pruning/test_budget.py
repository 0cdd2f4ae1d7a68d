"""The budget is solved: what leaves is as near to the ratio asked for as whole units allow."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import PreTrainedModel

from pruning.allocation import Allocator
from pruning.budget import Budget, Removal, follow
from pruning.cache import Cache
from pruning.config import Allocation, RatioOf
from pruning.costs import mac_costs, parameter_costs, total_cost
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.importance.random import RandomImportance
from pruning.kinds import UnitKind as K
from pruning.layout import block_parameters
from pruning.model import count_parameters
from pruning.steps import Step
from pruning.surgery import cut
from pruning.units import UnitGroup
from tests.plans import STRUCTURES
from tests.pruning.allocate import NO_SAMPLES, allocator_for, config, prune
from tests.zoo import MODELS, build

BY_SCORE = [Allocation.uniform, Allocation["global"]]
"""The allocations that run no model."""

CASES = list(
    zip(
        itertools.product(sorted(MODELS), sorted(STRUCTURES)),
        itertools.cycle([RatioOf.total, RatioOf.macs, RatioOf.blocks]),
        itertools.cycle(BY_SCORE),
        itertools.cycle([0.07, 0.2, 0.13, 0.31, 0.42]),
        strict=False,
    )
)


@pytest.mark.parametrize("family", sorted(MODELS))
def test_the_ratio_reached_is_never_farther_than_one_unit(family: str) -> None:
    model = build(family)
    units = find_units(model, find_layout(model))
    kinds = {group.kind for group in units.values()}
    solved = 0
    for (_, name), of, allocation, ratio in [case for case in CASES if case[0][0] == family]:
        if not set(STRUCTURES[name]) <= kinds:
            continue
        options = {"structures": list(STRUCTURES[name]), "ratio_of": of, "allocation": allocation}
        try:
            allocator = allocator_for(model, config(ratio=ratio, protect_last=0, **options))
        except ValueError:
            continue  # these units are too few or too coarse for this ratio
        groups = allocator.touched(units)
        budget = Budget(model, groups, allocator._costs(model))
        steps = [budget.removed({name: allocator.scope.multiple(group)}) for name, group in groups.items()]
        scores = RandomImportance().score(model, groups, None)
        scores = {name: values * groups[name].params_per_unit for name, values in scores.items()}
        plan = allocator.plan(model, groups, scores, ratio, NO_SAMPLES)
        assert abs(plan.ratio_reached - ratio) * allocator.dense.base <= min(steps)
        solved += 1
    assert solved >= 3


@pytest.mark.parametrize(
    "structures",
    [
        (K.kv_group, K.mlp_channel),
        (K.kv_group, K.query_head, K.mlp_channel),
        (K.kv_group, K.mlp_channel, K.hidden),
        (K.layer, K.mlp_channel),
        (K.attention_layer, K.mlp_layer, K.mlp_channel),
    ],
    ids=lambda kinds: "+".join(kind.name for kind in kinds),
)
@pytest.mark.parametrize("ratio", [0.03, 0.28])
@pytest.mark.parametrize("of", [RatioOf.total, RatioOf.blocks, RatioOf.macs])
@pytest.mark.parametrize("allocation", BY_SCORE, ids=lambda choice: choice.name)
def test_the_ratio_reached_is_what_cutting_removes_within_half_of_the_finest_unit(
    llama: PreTrainedModel, structures: tuple[K, ...], ratio: float, of: RatioOf, allocation: Allocation
) -> None:
    layout = find_layout(llama)
    tokens = 16

    def size() -> int:
        if of is RatioOf.macs:
            return total_cost(llama, mac_costs(llama, layout, tokens))
        return count_parameters(llama) if of is RatioOf.total else block_parameters(llama, layout)

    finest = max(g.params_per_unit for g in find_units(llama, layout).values() if g.kind is K.mlp_channel)
    finest *= tokens if of is RatioOf.macs else 1
    before = size()
    options = {"ratio": ratio, "ratio_of": of, "structures": list(structures), "allocation": allocation}
    (plan,) = prune(llama, config(macs_tokens=tokens, **options))
    removed = before - size()
    assert plan.ratio_asked == ratio
    assert plan.ratio_reached == pytest.approx(removed / before)
    assert abs(removed - ratio * before) <= finest / 2 + 1


@pytest.mark.parametrize("family", ["gpt2", "phi3", "bloom", "falcon_multi_query", "opt", "olmo2", "chatglm"])
@pytest.mark.parametrize("of", [RatioOf.total, RatioOf.macs])
def test_the_budget_is_solved_in_every_kind_of_layout(family: str, of: RatioOf) -> None:
    model = build(family)
    costs = mac_costs(model, find_layout(model), 64) if of is RatioOf.macs else parameter_costs(model)
    before = total_cost(model, costs)
    (plan,) = prune(model, config(ratio=0.1, ratio_of=of))
    assert plan.ratio_reached == pytest.approx(1 - total_cost(model, costs) / before)
    assert plan.ratio_reached == pytest.approx(0.1, abs=3e-3)


@pytest.mark.parametrize("of", [RatioOf.total, RatioOf.macs])
def test_experts_and_their_channels_share_a_budget(of: RatioOf) -> None:
    model = build("mixtral")
    costs = mac_costs(model, find_layout(model), 64) if of is RatioOf.macs else parameter_costs(model)
    before = total_cost(model, costs)
    (plan,) = prune(model, config(ratio=0.15, ratio_of=of, structures=[K.expert, K.mlp_channel]))
    assert plan.ratio_reached == pytest.approx(1 - total_cost(model, costs) / before)
    assert plan.ratio_reached == pytest.approx(0.15, abs=5e-3)
    assert {name.rpartition(".")[2] for name in plan.kept} == {"experts", "expert_channels"}


def test_later_events_are_cumulative_in_multiply_accumulates(llama: PreTrainedModel) -> None:
    costs = mac_costs(llama, find_layout(llama), 64)
    before = total_cost(llama, costs)
    plans = prune(llama, config(ratio=0.15, ratio_of=RatioOf.macs), 0.05, 0.1, 0.15)
    assert [plan.ratio_reached for plan in plans] == pytest.approx([0.05, 0.1, 0.15], abs=2e-3)
    assert plans[-1].ratio_reached == pytest.approx(1 - total_cost(llama, costs) / before)


def test_counting_is_what_cutting_removes(llama: PreTrainedModel) -> None:
    groups = find_units(llama, find_layout(llama))
    budget = Budget(llama, groups, parameter_costs(llama))
    assert budget.removed({}) == 0
    assert budget.removed({"layers.1.layer": 1}) == block_parameters(llama, find_layout(llama)) // 4
    both = budget.removed({"layers.1.mlp": 3, "hidden": 2})
    assert both == budget.removed({"layers.1.mlp": 3}) + budget.removed({"hidden": 2}) - 3 * 3 * 2


@pytest.fixture
def small() -> tuple[PreTrainedModel, dict[str, UnitGroup], Budget]:
    model = build("llama_biased")
    groups = find_units(model, find_layout(model))
    names = ("layers.1.attention", "layers.1.mlp", "layers.2.attention", "layers.2.mlp")
    chosen = {name: groups[name] for name in names}
    return model, chosen, Budget(model, chosen, parameter_costs(model))


@pytest.mark.parametrize("target", [0, 90, 300, 1777, 2600, 5000, 9000, 12345])
def test_following_the_line_comes_as_near_as_any_counts_do(
    small: tuple[PreTrainedModel, dict[str, UnitGroup], Budget], target: int
) -> None:
    _, groups, budget = small
    most = {name: group.run_length - 1 for name, group in groups.items()}
    unit = {name: budget.removed({name: 1}) for name in groups}
    line = [
        Step(name, groups[name].kind, count, count + 1, 1.0, unit[name])
        for name in groups
        for count in range(most[name])
    ]
    found = Removal({}, line, budget).counts(target)
    every = itertools.product(*(range(count + 1) for count in most.values()))
    nearest = min(
        abs(budget.removed(dict(zip(groups, counts, strict=True))) - target)
        for counts in itertools.islice(every, 0, None, 7)
    )
    assert abs(budget.removed(found) - target) <= max(nearest, min(unit.values()) / 2)


def test_fixed_counts_are_part_of_what_leaves(small: tuple[PreTrainedModel, dict[str, UnitGroup], Budget]) -> None:
    _, groups, budget = small
    unit = budget.removed({"layers.2.mlp": 1})
    line = [Step("layers.2.mlp", K.mlp_channel, count, count + 1, 1.0, unit) for count in range(47)]
    removal = Removal({"layers.1.mlp": 10}, line, budget)
    assert removal.counts(30 * unit) == {"layers.1.mlp": 10, "layers.2.mlp": 20}
    assert removal.counts(0) == {"layers.1.mlp": 10}
    assert removal.most == {"layers.1.mlp": 10, "layers.2.mlp": 47}
    assert removal.finest == unit
    assert follow([], budget, {}, 100) == {}


def test_the_plan_of_a_later_event_starts_from_the_model_as_it_is(llama: PreTrainedModel, cache: Cache) -> None:
    layout = find_layout(llama)
    allocator = Allocator(config(ratio=0.2), llama, layout, cache)
    before = count_parameters(llama)
    for ratio in (0.1, 0.2):
        groups = allocator.touched(find_units(llama, layout))
        scores = {name: torch.rand(group.num_units) for name, group in groups.items()}
        cut(llama, layout, groups, allocator.plan(llama, groups, scores, ratio, NO_SAMPLES))
        assert 1 - count_parameters(llama) / before == pytest.approx(ratio, abs=1e-3)
