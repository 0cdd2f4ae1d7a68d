"""The laws of units and surgery: true owners, cut equals masked, counted equals removed, a bad plan changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from pruning.families import block_parameters, decoder_layers, find_layout, find_units, layer_widths
from pruning.model import count_parameters, fingerprint
from pruning.surgery import cut, masked
from pruning.units import PruningPlan, UnitGroup, UnitKind, removed_units


def every_second_unit(groups: dict[str, UnitGroup]) -> PruningPlan:
    kept = {name: tuple(range(0, group.num_units, 2)) for name, group in groups.items() if group.layer % 2}
    return PruningPlan(kept, 0.0, 0.0)


def test_cut_gives_the_logits_of_masked(model: PreTrainedModel, tokens: torch.Tensor) -> None:
    layout = find_layout(model)
    groups = find_units(model, layout)
    plan = every_second_unit(groups)
    dense = model(tokens).logits
    with masked(model, groups, removed_units(plan, groups)):
        expected = model(tokens).logits
    cut(model, layout, groups, plan)
    assert torch.allclose(model(tokens).logits, expected, atol=1e-5)
    assert not torch.allclose(dense, expected, atol=1e-2)


def test_parameters_counted_are_parameters_removed(model: PreTrainedModel) -> None:
    layout = find_layout(model)
    groups = find_units(model, layout)
    plan = every_second_unit(groups)
    counted = sum(len(units) * groups[name].params_per_unit for name, units in removed_units(plan, groups).items())
    before = count_parameters(model), block_parameters(model, layout)
    cut(model, layout, groups, plan)
    assert counted > 0
    assert before == (count_parameters(model) + counted, block_parameters(model, layout) + counted)


def test_masking_is_undone_to_the_last_bit(model: PreTrainedModel) -> None:
    groups = find_units(model, find_layout(model))
    before = fingerprint(model)
    with masked(model, groups, removed_units(every_second_unit(groups), groups)):
        assert fingerprint(model) != before
    assert fingerprint(model) == before


def test_kv_group_owns_the_query_heads_that_read_it(model: PreTrainedModel, tokens: torch.Tensor) -> None:
    """Changing the value rows of one KV head must change exactly the output columns that its unit claims."""
    layer = decoder_layers(model, find_layout(model))[1]
    group = find_units(model, find_layout(model))["layers.1.attention"]
    seen: list[torch.Tensor] = []
    handle = layer.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    value = next(piece for piece in group.slices if piece.parameter.endswith("v_proj.weight"))
    output = next(piece for piece in group.slices if piece.parameter.endswith("o_proj.weight"))
    model(tokens)
    for unit in range(group.num_units):
        changed = copy.deepcopy(layer.self_attn.v_proj.weight.data)
        layer.self_attn.v_proj.weight.data[value.indices[unit]] += 1
        model(tokens)
        layer.self_attn.v_proj.weight.data = changed
        moved = (seen[-1] - seen[0]).abs().amax(dim=(0, 1)) > 1e-6
        assert moved.nonzero().flatten().tolist() == sorted(output.indices[unit].tolist())
    handle.remove()


def test_units_of_a_cut_model_are_the_units_that_stayed(llama: PreTrainedModel) -> None:
    layout = find_layout(llama)
    groups = find_units(llama, layout)
    plan = every_second_unit(groups)
    cut(llama, layout, groups, plan)
    for name, group in find_units(llama, layout).items():
        assert group.num_units == len(plan.kept.get(name, range(groups[name].num_units)))
        assert group.params_per_unit == groups[name].params_per_unit


def test_widths_are_recorded_in_the_configuration(llama: PreTrainedModel) -> None:
    layout = find_layout(llama)
    groups = find_units(llama, layout)
    cut(llama, layout, groups, every_second_unit(groups))
    recorded = llama.config.per_layer_config
    for widths, config in zip(layer_widths(llama, layout), recorded, strict=True):
        assert (widths.query_heads, widths.kv_heads, widths.mlp_channels) == (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.intermediate_size,
        )
    assert {config.intermediate_size for config in recorded} == {48, 24}


def test_cut_model_generates_with_a_cache(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    layout = find_layout(llama)
    groups = find_units(llama, layout)
    cut(llama, layout, groups, every_second_unit(groups))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    with_cache = llama.generate(tokens[:1], **options, use_cache=True)
    assert torch.equal(with_cache, llama.generate(tokens[:1], **options, use_cache=False))


@pytest.mark.parametrize(
    "kept",
    [
        {"layers.1.mlp": ()},
        {"layers.1.mlp": (0, 99)},
        {"layers.1.mlp": (1, 0)},
        {"layers.1.mlp": (1, 1)},
        {"layers.9.mlp": (0,)},
    ],
)
def test_a_plan_that_does_not_fit_changes_nothing(llama: PreTrainedModel, kept: dict[str, tuple[int, ...]]) -> None:
    layout = find_layout(llama)
    before = fingerprint(llama)
    plan = PruningPlan({"layers.0.mlp": (0, 1, 2), **kept}, 0.1, 0.1)
    with pytest.raises(ValueError, match=r"layers\.\d\.mlp"):
        cut(llama, layout, find_units(llama, layout), plan)
    assert fingerprint(llama) == before


def test_kinds_and_names(llama: PreTrainedModel) -> None:
    groups = find_units(llama, find_layout(llama))
    assert list(groups)[:2] == ["layers.0.attention", "layers.0.mlp"]
    assert groups["layers.2.attention"].kind is UnitKind.kv_group
    assert groups["layers.2.attention"].num_units == 4
    assert groups["layers.2.mlp"].num_units == 48


def test_an_unknown_architecture_is_refused_with_what_was_looked_for() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10))
    with pytest.raises(ValueError, match="gpt2.*llama.*q_proj"):
        find_layout(model)
