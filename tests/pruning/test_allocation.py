"""What leaves where: shared out evenly or by score, by layers and ratios of their own, over several events."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from pruning.choice import lowest_removed
from pruning.config import Allocation, Direction, RatioOf
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.importance.random import RandomImportance
from pruning.kinds import UnitKind as K
from pruning.model import count_parameters
from pruning.surgery import cut
from tests.pruning.allocate import NO_SAMPLES, allocator_for, config, prune
from tests.zoo import build


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


def test_attention_and_mlp_have_layers_and_ratios_of_their_own(llama: PreTrainedModel) -> None:
    options = {"attention_layers": [2], "attention_ratio": 0.5, "mlp_layers": [0, 1], "ratio": 0.1}
    prune(llama, config(**options))
    groups = find_units(llama, find_layout(llama))
    assert [groups[f"layers.{i}.attention"].num_units for i in range(4)] == [4, 4, 2, 4]
    channels = [groups[f"layers.{i}.mlp"].num_units for i in range(4)]
    assert channels[0] < 48
    assert abs(channels[0] - channels[1]) <= 1
    assert channels[2:] == [48, 48]


def test_a_group_may_have_a_ratio_of_its_own(llama: PreTrainedModel) -> None:
    prune(llama, config(ratio=0.1, layer_ratios={"layers.1.mlp": 0.75, "layers.2.attention": 0.25}))
    groups = find_units(llama, find_layout(llama))
    assert groups["layers.1.mlp"].num_units == 12
    assert groups["layers.2.attention"].num_units == 3


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_what_is_left_is_a_multiple_of_round_to(llama: PreTrainedModel, allocation: str) -> None:
    prune(
        llama, config(ratio=0.15, round_to=8, structures=[K.mlp_channel, K.hidden], allocation=Allocation[allocation])
    )
    groups = find_units(llama, find_layout(llama))
    assert groups["hidden"].num_units % 8 == 0
    assert all(group.num_units % 8 == 0 for group in groups.values() if group.kind is K.mlp_channel)
    assert count_parameters(llama) < count_parameters(build("llama_gqa_tied"))


def test_global_allocation_follows_the_scores_and_not_their_scale(llama: PreTrainedModel) -> None:
    layout = find_layout(llama)
    allocator = allocator_for(llama, config(ratio=0.1, structures=[K.mlp_channel], allocation=Allocation["global"]))
    groups = allocator.touched(find_units(llama, layout))
    scores = RandomImportance().score(llama, groups, None)
    scores["layers.1.mlp"] *= 0.01
    plan = allocator.plan(llama, groups, scores, 0.1, NO_SAMPLES)
    assert len(plan.kept["layers.1.mlp"]) == 1  # min_units
    rescaled = {name: 1000 * values for name, values in scores.items()}
    assert allocator.plan(llama, groups, rescaled, 0.1, NO_SAMPLES) == plan


def test_global_allocation_removes_the_lowest_scores_per_parameter(llama: PreTrainedModel) -> None:
    layout = find_layout(llama)
    allocator = allocator_for(llama, config(ratio=0.2, allocation=Allocation["global"]))
    groups = allocator.touched(find_units(llama, layout))
    scores = RandomImportance(seed=3).score(llama, groups, None)
    plan = allocator.plan(llama, groups, scores, 0.2, NO_SAMPLES)
    gone: list[float] = []
    left: list[float] = []
    for name, group in groups.items():
        kept = plan.kept.get(name, range(group.num_units))
        for unit, score in enumerate(scores[name].tolist()):
            (left if unit in kept else gone).append(score / group.params_per_unit)
    filled = groups["layers.1.attention"].params_per_unit // groups["layers.1.mlp"].params_per_unit
    assert max(sorted(gone)[: len(gone) - filled]) <= min(left)  # the last few filled what a whole head left open


def test_the_largest_or_random_units_leave_when_asked(llama: PreTrainedModel) -> None:
    layout = find_layout(llama)
    kept = {}
    for direction in Direction:
        allocator = allocator_for(llama, config(ratio=0.1, structures=[K.mlp_channel], direction=direction))
        groups = allocator.touched(find_units(llama, layout))
        scores = {name: torch.arange(group.num_units).float() for name, group in groups.items()}
        kept[direction] = allocator.plan(llama, groups, scores, 0.1, NO_SAMPLES).kept["layers.1.mlp"]
    count = len(kept[Direction.smallest])
    assert kept[Direction.smallest] == tuple(range(48 - count, 48))
    assert kept[Direction.largest] == tuple(range(count))
    assert kept[Direction.random] not in (kept[Direction.smallest], kept[Direction.largest])
    assert abs(len(kept[Direction.random]) - count) <= 1


def test_query_heads_leave_evenly_from_the_kv_groups_that_stay() -> None:
    model = build("llama_biased")  # 8 query heads in 2 KV groups
    prune(model, config(ratio=0.08, structures=[K.query_head]))
    for layer in find_units(model, find_layout(model)).values():
        if layer.kind is K.query_head:
            assert layer.num_units % 2 == 0


def test_one_decoder_layer_always_stays(llama: PreTrainedModel) -> None:
    options = {"structures": [K.layer], "protect_first": 0, "protect_last": 0, "ratio_of": RatioOf.blocks}
    prune(llama, config(ratio=0.75, **options))
    assert llama.config.num_hidden_layers == 1
    with pytest.raises(ValueError, match="cannot be reached"):
        allocator_for(build("llama_gqa_tied"), config(ratio=0.9, **options))


def test_later_events_are_cumulative(llama: PreTrainedModel) -> None:
    before = count_parameters(llama)
    plans = prune(llama, config(ratio=0.2), 0.05, 0.12, 0.2)
    assert [plan.ratio_asked for plan in plans] == [0.05, 0.12, 0.2]
    reached = [plan.ratio_reached for plan in plans]
    assert reached == sorted(reached)
    assert 1 - count_parameters(llama) / before == pytest.approx(0.2, abs=2e-3)


def test_layer_numbers_stay_those_of_the_dense_model_when_layers_leave(llama: PreTrainedModel) -> None:
    layout = find_layout(llama)
    with torch.no_grad():
        for index, layer in enumerate(llama.model.layers):  # a mark that tells the layers apart
            layer.input_layernorm.weight.fill_(index + 1)
    options = {
        "structures": [K.layer, K.mlp_channel],
        "mlp_layers": [2, 3],
        "protect_last": 0,
        "ratio_of": RatioOf.blocks,
    }
    allocator = allocator_for(llama, config(ratio=0.4, **options))
    for ratio in (0.26, 0.4):
        groups = allocator.touched(find_units(llama, layout))
        scores = {name: torch.ones(group.num_units) for name, group in groups.items()}
        scores = {name: values * (0.1 if name == "layers.1.layer" else 1) for name, values in scores.items()}
        cut(llama, layout, groups, allocator.plan(llama, groups, scores, ratio, NO_SAMPLES))
    channels = {
        int(layer.input_layernorm.weight[0]) - 1: layer.mlp.up_proj.out_features for layer in llama.model.layers
    }
    assert set(channels) == {0, 2, 3}
    assert channels[0] == 48
    assert channels[2] < 48
    assert channels[3] < 48


def test_only_the_chosen_kinds_are_cut(llama: PreTrainedModel) -> None:
    layout = find_layout(llama)
    prune(llama, config(ratio=0.1, structures=[K.mlp_channel]))
    groups = find_units(llama, layout)
    assert all(group.num_units == 4 for name, group in groups.items() if name.endswith("attention"))


def test_the_lowest_scores_leave_and_ties_leave_in_order() -> None:
    assert lowest_removed(torch.tensor([3.0, 1.0, 2.0, 1.0, 5.0]), 3) == (0, 4)
    assert lowest_removed(torch.tensor([1.0, 1.0, 1.0]), 1) == (1, 2)


def test_the_heads_that_leave_are_the_lowest_scored(llama: PreTrainedModel) -> None:
    layout = find_layout(llama)
    allocator = allocator_for(llama, config(ratio=0.2))
    groups = allocator.touched(find_units(llama, layout))
    scores = {name: torch.arange(group.num_units).float().flip(0) for name, group in groups.items()}
    plan = allocator.plan(llama, groups, scores, 0.2, NO_SAMPLES)
    for name, kept in plan.kept.items():
        assert kept == tuple(range(len(kept)))
        assert len(kept) < groups[name].num_units


def test_groups_at_their_minimum_are_told_once_a_run(llama: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    layout = find_layout(llama)
    options = config(
        ratio=0.2, structures=[K.mlp_channel], allocation=Allocation["global"], min_units=5, protect_last=0
    )
    allocator = allocator_for(llama, options)
    for ratio in (0.1, 0.2):
        groups = allocator.touched(find_units(llama, layout))
        scores = {name: torch.ones(group.num_units) for name, group in groups.items()}
        scores["layers.1.mlp"] *= 0.01
        scores["layers.2.mlp"] *= 0.1
        cut(llama, layout, groups, allocator.plan(llama, groups, scores, ratio, NO_SAMPLES))
    assert [find_units(llama, layout)[f"layers.{layer}.mlp"].num_units for layer in (1, 2)] == [5, 5]
    (record,) = [record for record in caplog.records if "fewest" in record.getMessage()]
    assert record.getMessage() == (
        "2 of 3 groups keep the fewest units they may (min_units=5): layers.1.mlp, layers.2.mlp"
    )


def test_nothing_is_told_of_groups_that_had_no_more_than_their_minimum(caplog: pytest.LogCaptureFixture) -> None:
    prune(build("falcon_multi_query"), config(ratio=0.05))  # one KV head a layer
    assert "held" not in caplog.text


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_keep_widths_that_their_kernels_can_run(family: str, dtype: torch.dtype, tokens: torch.Tensor) -> None:
    model = build(family).to(dtype)
    prune(model, config(ratio=0.23, structures=[K.mlp_channel, K.hidden]))
    groups = find_units(model, find_layout(model))
    alike = [groups["hidden"], *(group for name, group in groups.items() if name.endswith("expert_channels"))]
    assert all(group.run_length % (16 // dtype.itemsize) == 0 for group in alike)
    assert bool(model(input_ids=tokens).logits.isfinite().all())
