"""The laws of units and surgery, over every family and structure: true owners, cut equals masked, counted equals removed."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from pruning.budget import Budget
from pruning.costs import parameter_costs
from pruning.families import declared_layout
from pruning.grouping import find_units
from pruning.layout import DecoderLayout, block_parameters, layer_widths
from pruning.masking import masked
from pruning.model import count_parameters, fingerprint
from pruning.surgery import cut
from pruning.units import PruningPlan, UnitKind, removed_units
from tests.plans import STRUCTURES, half_of, removes_something
from tests.zoo import MODELS, build


def layout_of(model: PreTrainedModel) -> DecoderLayout:
    layout = declared_layout(model)
    assert layout is not None
    return layout


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("family", MODELS)
def test_cut_gives_the_logits_of_masked_and_counts_what_it_removes(
    family: str, structure: str, tokens: torch.Tensor
) -> None:
    model = build(family)
    layout = layout_of(model)
    groups = find_units(model, layout)
    plan = half_of(groups, STRUCTURES[structure])
    if not removes_something(groups, plan):
        pytest.skip("this family has nothing of the kind to remove")
    removed = removed_units(plan, groups)
    with torch.no_grad():
        dense = model(tokens).logits
        before = fingerprint(model)
        with masked(model, groups, removed):
            expected = model(tokens).logits
        assert fingerprint(model) == before
        counts = {name: len(units) // groups[name].parts for name, units in removed.items()}
        counted = Budget(model, groups, parameter_costs(model)).removed(counts)
        sizes = count_parameters(model)
        cut(model, layout, groups, plan)
        assert torch.allclose(model(tokens).logits, expected, atol=2e-5)
    assert not torch.allclose(dense, expected, atol=1e-3)
    assert count_parameters(model) == sizes - counted


@pytest.mark.parametrize("family", MODELS)
def test_units_of_a_cut_model_are_the_units_that_stayed(family: str) -> None:
    model = build(family)
    layout = layout_of(model)
    groups = find_units(model, layout)
    plan = half_of(groups, (UnitKind.kv_group, UnitKind.mlp_channel))
    blocks = block_parameters(model, layout)
    cut(model, layout, groups, plan)
    after = find_units(model, layout)
    for name, kept in plan.kept.items():
        assert after[name].num_units == len(kept)
        assert after[name].params_per_unit == groups[name].params_per_unit
    assert block_parameters(model, layout) < blocks


@pytest.mark.parametrize("family", [name for name in MODELS if name not in ("baichuan", "chatglm")])
def test_kv_group_owns_the_query_heads_that_read_it(family: str, tokens: torch.Tensor) -> None:
    """Changing the value rows of one KV head must change exactly the inputs of the output projection that its unit claims."""
    model = build(family)
    group = find_units(model, layout_of(model))["layers.1.attention"]
    reader = model.get_submodule(group.readers[0])
    seen: list[torch.Tensor] = []
    handle = reader.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    value = [piece for piece in group.slices if piece.parameter.endswith("weight") and "norm" not in piece.parameter][
        -2
    ]
    parameter = model.get_parameter(value.parameter)
    model(tokens)
    for unit in range(group.num_units):
        saved = parameter.detach().clone()
        with torch.no_grad():
            parameter.index_add_(
                value.dims[0],
                value.indices[unit],
                torch.ones_like(parameter).index_select(value.dims[0], value.indices[unit]),
            )
        model(tokens)
        with torch.no_grad():
            parameter.copy_(saved)
        moved = (seen[-1] - seen[0]).abs().amax(dim=(0, 1)) > 1e-6
        assert moved.nonzero().flatten().tolist() == sorted(group.slices[-1].indices[unit].tolist())
    handle.remove()


def test_widths_are_recorded_in_the_configuration(llama: PreTrainedModel) -> None:
    layout = layout_of(llama)
    groups = find_units(llama, layout)
    cut(llama, layout, groups, half_of(groups, (UnitKind.kv_group, UnitKind.mlp_channel)))
    recorded = llama.config.per_layer_config
    for widths, config in zip(layer_widths(llama, layout), recorded, strict=True):
        assert (widths.query_heads, widths.kv_heads, widths.mlp_channels) == (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.intermediate_size,
        )
    assert {config.intermediate_size for config in recorded} == {48, 24}


@pytest.mark.parametrize("structure", ["heads", "attention_layer", "mlp_layer", "layer", "hidden"])
@pytest.mark.parametrize("family", ["llama_gqa_tied", "gemma2", "gpt2", "bloom", "opt", "falcon_grouped", "mixtral"])
def test_a_cut_model_generates_with_a_cache(family: str, structure: str, tokens: torch.Tensor) -> None:
    model = build(family)
    layout = layout_of(model)
    groups = find_units(model, layout)
    plan = half_of(groups, STRUCTURES[structure])
    if structure.endswith("layer"):  # the first layer is the one whose cache is asked for its length
        plan = PruningPlan({name.replace("layers.1.", "layers.0."): () for name in plan.kept}, 0.0, 0.0)
    cut(model, layout, groups, plan)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    with_cache = model.generate(tokens[:1], **options, use_cache=True)
    assert torch.equal(with_cache, model.generate(tokens[:1], **options, use_cache=False))


@pytest.mark.parametrize("family", ["llama_gqa_tied", "phi3", "bloom", "mixtral"])
def test_a_copy_of_a_cut_model_is_the_cut_model(family: str, tokens: torch.Tensor) -> None:
    model = build(family)
    groups = find_units(model, layout_of(model))
    cut(model, layout_of(model), groups, half_of(groups, STRUCTURES["heads"]))
    assert torch.equal(copy.deepcopy(model)(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    "kept",
    [
        {"layers.1.mlp": ()},
        {"layers.1.mlp": (0, 99)},
        {"layers.1.mlp": (1, 0)},
        {"layers.1.mlp": (1, 1)},
        {"layers.9.mlp": (0,)},
        {"layers.1.query_heads": (0, 1, 2, 4, 6)},
        {"layers.1.query_heads": (0, 1, 2, 3)},
        {"layers.1.attention": (0, 1), "layers.1.query_heads": (0, 4, 6)},
    ],
)
def test_a_plan_that_does_not_fit_changes_nothing(llama: PreTrainedModel, kept: dict[str, tuple[int, ...]]) -> None:
    layout = layout_of(llama)
    before = fingerprint(llama)
    plan = PruningPlan({"layers.0.mlp": (0, 1, 2), **kept}, 0.1, 0.1)
    with pytest.raises(ValueError, match=r"layers\.\d\.(mlp|query_heads)"):
        cut(llama, layout, find_units(llama, layout), plan)
    assert fingerprint(llama) == before


def test_kinds_and_names(llama: PreTrainedModel) -> None:
    groups = find_units(llama, layout_of(llama))
    assert list(groups)[:3] == ["layers.0.attention", "layers.0.query_heads", "layers.0.mlp"]
    assert groups["layers.2.attention"].kind is UnitKind.kv_group
    assert groups["layers.2.attention"].num_units == 4
    assert groups["layers.2.query_heads"].parts == 4
    assert groups["layers.2.mlp"].num_units == 48
    assert groups["hidden"].num_units == 32
    assert [name for name in groups if name.startswith("layers.3.")][-3:] == [
        "layers.3.attention_layer",
        "layers.3.mlp_layer",
        "layers.3.layer",
    ]


def test_quantised_weights_are_refused(llama: PreTrainedModel) -> None:
    from pruning.families import find_layout

    llama.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(
        torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False
    )
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj\.weight.*quantised"):
        find_layout(llama)
