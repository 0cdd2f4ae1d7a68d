from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from evaluation import cost as cost_module
from evaluation.config import CostConfig
from evaluation.cost import measure_cost, peak_rise, speeds, weight_bytes
from pruning.costs import mac_costs, total_cost
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.surgery import cut
from pruning.units import PruningPlan, UnitKind
from tests.conftest import SIZES, build

CONFIG = CostConfig(macs_tokens=16, batch_sizes=[1, 2], prefill_tokens=32, decode_tokens=4, repetitions=2)
HIDDEN, INNER, LAYERS = SIZES["hidden_size"], SIZES["intermediate_size"], SIZES["num_hidden_layers"]
HEADS, HEAD, VOCABULARY = SIZES["num_attention_heads"], SIZES["head_dim"], SIZES["vocab_size"]
KV_HEADS = 4
WORKS = ("prefill", "decode")

ATTENTION = 2 * HIDDEN * HEADS * HEAD + 2 * HIDDEN * KV_HEADS * HEAD  # q and o, k and v
MLP = 3 * HIDDEN * INNER


def linear_macs(tokens: int) -> int:
    return tokens * (LAYERS * (ATTENTION + MLP) + HIDDEN * VOCABULARY)


def attention_macs(tokens: int) -> int:
    return LAYERS * 2 * HEADS * HEAD * tokens * tokens


def rotary_macs(tokens: int) -> int:
    return tokens * HEAD // 2


def test_params_count_a_tied_head_once(llama: PreTrainedModel) -> None:
    expected = VOCABULARY * HIDDEN + LAYERS * (ATTENTION + MLP + 2 * HIDDEN) + HIDDEN
    assert measure_cost(llama, CONFIG)["params"] == expected


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_weights_bytes_are_parameters_times_their_size(llama: PreTrainedModel, dtype: torch.dtype, size: int) -> None:
    expected = VOCABULARY * HIDDEN + LAYERS * (ATTENTION + MLP + 2 * HIDDEN) + HIDDEN
    assert weight_bytes(llama.to(dtype)) == size * expected


@pytest.mark.parametrize("tokens", [16, 48])
def test_macs_are_those_of_the_projections_the_head_and_attention(llama: PreTrainedModel, tokens: int) -> None:
    config = replace(CONFIG, macs_tokens=tokens)
    macs = measure_cost(llama, config)["macs"]
    assert linear_macs(tokens) <= macs <= linear_macs(tokens) + attention_macs(tokens) + rotary_macs(tokens)


@pytest.mark.parametrize("family", ["llama_gqa_tied", "gpt2", "falcon_alibi", "qwen3_moe"])
def test_macs_are_those_that_a_budget_of_macs_counts(family: str) -> None:
    model = build(family)
    counted = total_cost(model, mac_costs(model, find_layout(model), CONFIG.macs_tokens))
    assert measure_cost(model, CONFIG)["macs"] == counted


def test_macs_are_counted_for_the_asked_tokens_though_the_timed_prompt_is_shorter(llama: PreTrainedModel) -> None:
    config = replace(CONFIG, macs_tokens=64, prefill_tokens=16)
    assert measure_cost(llama, config)["macs"] >= linear_macs(64)


def cut_two_units_of_each(model: PreTrainedModel) -> None:
    layout = find_layout(model)
    groups = find_units(model, layout)
    kinds = (UnitKind.kv_group, UnitKind.mlp_channel)
    kept = {name: tuple(range(2, group.num_units)) for name, group in groups.items() if group.kind in kinds}
    cut(model, layout, groups, PruningPlan(kept, ratio_asked=0.1, ratio_reached=0.1))


def test_cutting_takes_the_cut_weights_out_of_every_count(llama: PreTrainedModel) -> None:
    dense = measure_cost(llama, CONFIG)
    cut_two_units_of_each(llama)
    pruned = measure_cost(llama, CONFIG)
    query_heads_per_unit = HEADS // KV_HEADS
    lost = LAYERS * (2 * (2 * query_heads_per_unit + 2) * HEAD * HIDDEN + 2 * 3 * HIDDEN)
    assert dense["params"] - pruned["params"] == lost
    assert dense["weights_bytes"] - pruned["weights_bytes"] == 4 * lost
    lost_attention = LAYERS * 2 * 2 * query_heads_per_unit * HEAD * 16 * 16
    assert 16 * lost <= dense["macs"] - pruned["macs"] <= 16 * lost + lost_attention


def test_every_figure_is_there_and_speeds_are_positive() -> None:
    cost = measure_cost(build("llama_mha"), CONFIG)
    speed_names = {f"{work}_tok_s{spread}@{size}" for work in WORKS for spread in ("", "_iqr") for size in (1, 2)}
    expected = {"params", "weights_bytes", "macs", *speed_names}
    assert expected <= set(cost) <= expected | {"peak_bytes"}
    assert all(cost[f"{work}_tok_s@{size}"] > 0 for work in WORKS for size in (1, 2))
    assert cost.get("peak_bytes", cost["weights_bytes"]) >= cost["weights_bytes"]


def test_a_model_is_timed_in_turn_with_the_dense_one(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = build("llama_gqa_tied")
    cut_two_units_of_each(llama)
    names = {id(llama): "pruned", id(dense): "dense"}
    seconds = {"pruned": 0.5, "dense": 0.75}
    ran: list[str] = []

    def decode(model: PreTrainedModel, prompt: torch.Tensor, tokens: int) -> float:
        assert (len(prompt), tokens) == (3, CONFIG.decode_tokens)
        ran.append(names[id(model)])
        return seconds[ran[-1]]

    monkeypatch.setattr(cost_module, "decode_seconds", decode)
    found = measure_cost(llama, replace(CONFIG, batch_sizes=[3]), dense)
    assert ran == ["pruned", "dense", "dense", "pruned", "pruned", "dense"]
    assert found["decode_speedup@3"] == 1.5
    assert found["decode_speedup_iqr@3"] == 0
    assert found["decode_tok_s@3"] == 3 * CONFIG.decode_tokens / 0.5
    assert found["prefill_speedup@3"] > 0
    assert found["weights_bytes"] == weight_bytes(llama) < weight_bytes(dense)


def test_speeds_are_medians_with_the_range_of_the_middle_half() -> None:
    own, dense = [1.0, 2.0, 4.0, 5.0, 10.0], [2.0, 3.0, 4.0, 20.0, 5.0]
    found = speeds("prefill", 8, 100, [own, dense])
    # rates 10, 20, 25, 50, 100 and quotients 0.5, 1, 1.5, 2, 4 in order: quarters are the second and the fourth
    expected = {"tok_s": 25.0, "tok_s_iqr": 30.0, "speedup": 1.5, "speedup_iqr": 1.0}
    assert found == pytest.approx({f"prefill_{name}@8": value for name, value in expected.items()})
    assert set(speeds("decode", 1, 100, [own])) == {"decode_tok_s@1", "decode_tok_s_iqr@1"}


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_peak_memory_sees_what_an_action_takes_and_gives_back() -> None:
    size = 64 * 2**20

    def take() -> None:
        for _ in range(5):
            torch.ones(size // 4).sum()

    rise = peak_rise(take, torch.device("cpu"))
    assert rise is not None
    assert size // 2 < rise < 4 * size


def test_measuring_leaves_the_model_as_it_was(llama: PreTrainedModel) -> None:
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    measure_cost(llama, CONFIG)
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())
    assert not llama.training
