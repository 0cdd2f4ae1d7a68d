"""The budget is solved: the nearest whole units, spread evenly, and errors before any work."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from pruning.allocation import Allocator, PruningConfig, RatioOf, lowest_removed
from pruning.families import block_parameters, find_layout, find_units
from pruning.importance.random import RandomImportance
from pruning.model import count_parameters
from pruning.surgery import cut
from pruning.units import PruningPlan


def prune(model: PreTrainedModel, config: PruningConfig, *ratios: float) -> list[PruningPlan]:
    layout = find_layout(model)
    allocator = Allocator(config, model, layout)
    plans = []
    for ratio in ratios or (config.ratio,):
        groups = allocator.touched(find_units(model, layout))
        plan = allocator.plan(model, groups, RandomImportance().score(model, groups, None), ratio)
        cut(model, layout, groups, plan)
        plans.append(plan)
    return plans


def config(**options: object) -> PruningConfig:
    return PruningConfig(**{"protect_first": 1, "protect_last": 1, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", [0.03, 0.1, 0.17, 0.25])
@pytest.mark.parametrize("of", [RatioOf.total, RatioOf.blocks])
def test_the_ratio_reached_is_within_half_of_the_finest_unit(model: PreTrainedModel, ratio: float, of: RatioOf) -> None:
    layout = find_layout(model)
    finest = min(group.params_per_unit for group in find_units(model, layout).values())
    base = count_parameters(model) if of is RatioOf.total else block_parameters(model, layout)
    before = count_parameters(model)
    (plan,) = prune(model, config(ratio=ratio, ratio_of=of))
    removed = before - count_parameters(model)
    assert plan.ratio_asked == ratio
    assert plan.ratio_reached == pytest.approx(removed / base)
    assert abs(removed - ratio * base) <= finest / 2 + 1


def test_protected_layers_stay_whole_and_the_others_lose_alike(llama: PreTrainedModel) -> None:
    layout = find_layout(llama)
    before = find_units(llama, layout)
    prune(llama, config(ratio=0.2))
    after = find_units(llama, layout)
    lost = {name: before[name].num_units - after[name].num_units for name in before}
    assert all(lost[f"layers.{layer}.{part}"] == 0 for layer in (0, 3) for part in ("attention", "mlp"))
    assert abs(lost["layers.1.mlp"] - lost["layers.2.mlp"]) <= 1
    assert lost["layers.1.mlp"] > 0


def test_ratio_of_units_is_the_fraction_of_every_touched_group(llama: PreTrainedModel) -> None:
    layout = find_layout(llama)
    (plan,) = prune(llama, config(ratio=0.25, ratio_of=RatioOf.units))
    groups = find_units(llama, layout)
    assert groups["layers.1.attention"].num_units == 3
    assert groups["layers.1.mlp"].num_units == 36
    assert plan.ratio_reached == pytest.approx(0.25)


def test_later_events_are_cumulative(llama: PreTrainedModel) -> None:
    before = count_parameters(llama)
    plans = prune(llama, config(ratio=0.2), 0.05, 0.12, 0.2)
    assert [plan.ratio_asked for plan in plans] == [0.05, 0.12, 0.2]
    reached = [plan.ratio_reached for plan in plans]
    assert reached == sorted(reached)
    assert 1 - count_parameters(llama) / before == pytest.approx(0.2, abs=2e-3)


def test_only_the_chosen_kinds_are_cut(llama: PreTrainedModel) -> None:
    layout = find_layout(llama)
    prune(llama, config(ratio=0.1, attention=False))
    groups = find_units(llama, layout)
    assert all(group.num_units == 4 for name, group in groups.items() if name.endswith("attention"))


def test_the_lowest_scores_leave_and_ties_leave_in_order() -> None:
    assert lowest_removed(torch.tensor([3.0, 1.0, 2.0, 1.0, 5.0]), 3) == (0, 4)
    assert lowest_removed(torch.tensor([1.0, 1.0, 1.0]), 1) == (1, 2)


def test_the_heads_that_leave_are_the_lowest_scored(llama: PreTrainedModel) -> None:
    layout = find_layout(llama)
    allocator = Allocator(config(ratio=0.2), llama, layout)
    groups = allocator.touched(find_units(llama, layout))
    scores = {name: torch.arange(group.num_units).float().flip(0) for name, group in groups.items()}
    plan = allocator.plan(llama, groups, scores, 0.2)
    for name, kept in plan.kept.items():
        assert kept == tuple(range(len(kept)))
        assert len(kept) < groups[name].num_units


@pytest.mark.parametrize("ratio", [0.6, 0.99])
def test_an_unreachable_ratio_is_refused_and_says_what_is_reachable(llama: PreTrainedModel, ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"pruning\.ratio={ratio}.*must be 0 or in \[.*, 0\.\d+\]"):
        Allocator(config(ratio=ratio), llama, find_layout(llama))


def test_the_highest_reachable_ratio_it_names_is_reachable(llama: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="cannot be reached") as error:
        Allocator(config(ratio=0.9), llama, find_layout(llama))
    highest = float(str(error.value).split("[")[1].split("]")[0].split(",")[1])
    (plan,) = prune(llama, config(ratio=highest))
    assert plan.ratio_reached == pytest.approx(highest, abs=2e-3)


def test_protecting_every_layer_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"pruning\.protect_first=3.*all 4 layers"):
        Allocator(config(protect_first=3), llama, find_layout(llama))


def test_an_event_smaller_than_a_unit_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="smaller than one unit"):
        prune(llama, config(ratio=0.2), 0.1, 0.1001)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.5}, r"pruning\.ratio=1\.5: must be in \[0, 1\)"),
        ({"ratio": -0.1}, r"pruning\.ratio=-0\.1"),
        ({"min_units": 0}, r"pruning\.min_units=0: must be at least 1"),
        ({"attention": False, "mlp": False}, "at least one must be true"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**options)
