"""Discovery finds every declared family again, and others, and leaves the model alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch.nn import functional as F
from transformers import PreTrainedModel

from pruning.discovery import discover_layout
from pruning.discovery.clamped import ClampedModel
from pruning.discovery.perturbation import Influence, _by_code, _one_by_one, influences
from pruning.families import declared_layout
from pruning.grouping import find_units
from pruning.layout import ConfigNames, DecoderLayout
from pruning.units import UnitGroup
from tests import hub_layouts
from tests.pruning.undeclared import OLD_NAMES, make
from tests.zoo import MODELS, PLAIN, build

Units = list[set[tuple[str, tuple[int, ...], int]]]


def units_of(group: UnitGroup) -> Units:
    """Return every unit as a set of (parameter, dims, index)."""
    return [
        {(piece.parameter, piece.dims, index) for piece in group.slices for index in piece.indices[unit].tolist()}
        for unit in range(group.num_units)
    ]


def described(model: PreTrainedModel, layout: DecoderLayout) -> dict[str, Any]:
    """Return all that is said of every group, in order."""
    return {
        name: (group.kind, group.layer, group.parts, group.parts_of, group.readers, units_of(group))
        for name, group in find_units(model, layout).items()
    }


@pytest.mark.parametrize("family", MODELS)
def test_discovers_the_units_that_are_declared(family: str) -> None:
    model = build(family)
    declared = declared_layout(model)
    assert declared is not None
    found = discover_layout(model)
    expected = described(model, declared)
    assert described(model, found) == expected
    assert list(find_units(model, found)) == list(expected)
    assert (found.family, found.model_types) == ("discovered", (model.config.model_type,))


def rows(name: str, indices: range, *, bias: bool = False) -> set[tuple[str, tuple[int, ...], int]]:
    parameters = (f"{name}.weight", f"{name}.bias") if bias else (f"{name}.weight",)
    return {(parameter, (0,), index) for parameter in parameters for index in indices}


def columns(name: str, indices: range) -> set[tuple[str, tuple[int, ...], int]]:
    return {(f"{name}.weight", (1,), index) for index in indices}


def test_discovers_separate_projections_under_other_names() -> None:
    """GPT-J: parallel residual, heads of 8, biased MLP without a gate."""
    model = make("GPTJ", PLAIN | OLD_NAMES, rotary_dim=4)
    layout = discover_layout(model)
    groups, at = find_units(model, layout), "transformer.h.1"
    assert units_of(groups["layers.1.attention"]) == [
        rows(f"{at}.attn.q_proj", head) | rows(f"{at}.attn.k_proj", head) | rows(f"{at}.attn.v_proj", head)
        | columns(f"{at}.attn.out_proj", head)
        for head in (range(0, 8), range(8, 16), range(16, 24), range(24, 32))
    ]  # fmt: skip
    assert units_of(groups["layers.1.mlp"]) == [
        rows(f"{at}.mlp.fc_in", range(f, f + 1), bias=True) | columns(f"{at}.mlp.fc_out", range(f, f + 1))
        for f in range(48)
    ]
    assert layout.names == ConfigNames("n_head", None, "n_inner")
    assert (layout.attention.module, layout.attention.head_dim, layout.mlp.gate) == ("attn", 8, None)


def test_discovers_grouped_queries() -> None:
    """StableLM: KV head k of 2 is read by query heads 2k and 2k + 1, which are not h and h + 2."""
    model = make("StableLm", PLAIN, num_key_value_heads=2)
    groups, at = find_units(model, discover_layout(model)), "model.layers.2.self_attn"
    assert units_of(groups["layers.2.attention"]) == [
        rows(f"{at}.q_proj", queries) | rows(f"{at}.k_proj", keys) | rows(f"{at}.v_proj", keys)
        | columns(f"{at}.o_proj", queries)
        for queries, keys in ((range(0, 16), range(0, 8)), (range(16, 32), range(8, 16)))
    ]  # fmt: skip
    assert units_of(groups["layers.2.query_heads"])[1] == rows(f"{at}.q_proj", range(8, 16)) | columns(
        f"{at}.o_proj", range(8, 16)
    )
    assert groups["layers.2.query_heads"].parts == 2


def test_discovers_a_fused_projection_that_goes_head_by_head() -> None:
    """Persimmon: query, key and value of a head follow each other in the rows of one biased projection."""
    model = make("Persimmon", PLAIN, qk_layernorm=False)
    groups, at = find_units(model, discover_layout(model)), "model.layers.0.self_attn"
    assert units_of(groups["layers.0.attention"]) == [
        rows(f"{at}.query_key_value", range(24 * head, 24 * head + 24), bias=True)
        | columns(f"{at}.dense", range(8 * head, 8 * head + 8))
        for head in range(4)
    ]


def test_discovers_multi_query_attention() -> None:
    """GPT-BigCode: four query heads, then the one key and the one value, in one projection."""
    model = make("GPTBigCode", PLAIN | OLD_NAMES)
    layout = discover_layout(model)
    groups, at = find_units(model, layout), "transformer.h.3.attn"
    assert units_of(groups["layers.3.query_heads"]) == [
        rows(f"{at}.c_attn", head, bias=True) | columns(f"{at}.c_proj", head)
        for head in (range(0, 8), range(8, 16), range(16, 24), range(24, 32))
    ]
    assert groups["layers.3.attention"].num_units == 1
    assert not layout.attention.interleaved


def test_discovers_norms_over_all_heads_and_mixtures() -> None:
    """OLMoE: both at once."""
    model = make("Olmoe", PLAIN, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2)
    layout = discover_layout(model)
    assert (layout.attention.query_norm, layout.attention.key_norm) == ("self_attn.q_norm", "self_attn.k_norm")
    assert layout.experts is not None
    assert (layout.experts.module, layout.experts.router) == ("mlp.experts", "mlp.gate")
    unit = units_of(find_units(model, layout)["layers.0.attention"])[1]
    assert {("model.layers.0.self_attn.q_norm.weight", (0,), index) for index in range(16, 32)} <= unit
    assert {("model.layers.0.self_attn.k_norm.weight", (0,), index) for index in range(8, 16)} <= unit


@pytest.mark.parametrize(
    ("family", "alibi", "reads_config", "adds_residual"),
    [
        ("llama_gqa_tied", False, False, False),
        ("phi3", False, True, False),
        ("bloom", True, False, True),
        ("falcon_alibi", True, False, False),
        ("falcon_grouped", False, False, False),
    ],
)
def test_measures_what_modules_read_and_add(family: str, alibi: bool, reads_config: bool, adds_residual: bool) -> None:
    layout = discover_layout(build(family))
    found = (layout.attention.alibi, layout.attention.reads_config, layout.adds_residual)
    assert found == (alibi, reads_config, adds_residual)


def test_tells_the_gate_from_what_it_gates() -> None:
    """Under swapped names, gate is still the projection that the activation function bends."""
    assert discover_layout(build("baichuan")).mlp.up == "mlp.up_proj"
    swapped = build("baichuan")
    for layer in swapped.model.layers:
        layer.mlp.__class__ = SwappedMLP
    layout = discover_layout(swapped)
    assert (layout.mlp.up, layout.mlp.gate) == ("mlp.gate_proj", "mlp.up_proj")


class SwappedMLP(hub_layouts.BaichuanMLP):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.up_proj(hidden_states)) * self.gate_proj(hidden_states))


def jacobian(model: PreTrainedModel, source: str, sink: str, token: int) -> torch.Tensor:
    """Return the gradients (tokens, sink channels, source channels) of a map's inputs by another's outputs at one token."""
    kept: dict[str, torch.Tensor] = {}
    start = model.get_submodule(source).register_forward_hook(lambda _, __, output: kept.setdefault("start", output))
    end = model.get_submodule(sink).register_forward_pre_hook(lambda _, given: kept.setdefault("end", given[0]))
    model(torch.arange(2, 6)[None])
    start.remove()
    end.remove()
    return torch.stack(
        [
            torch.stack(
                [torch.autograd.grad(value, kept["start"], retain_graph=True)[0][0, token] for value in position]
            )
            for position in kept["end"][0]
        ]
    )


@pytest.mark.parametrize(
    ("family", "source", "sink"),
    [
        ("llama_gqa_tied", "self_attn.q_proj", "self_attn.o_proj"),
        ("llama_gqa_tied", "self_attn.k_proj", "self_attn.o_proj"),
        ("qwen3", "self_attn.v_proj", "self_attn.o_proj"),
        ("llama_gqa_tied", "mlp.up_proj", "mlp.down_proj"),
        ("glm", "mlp.gate_up_proj", "mlp.down_proj"),
    ],
)
def test_influences_are_where_gradients_are_not_zero(family: str, source: str, sink: str) -> None:
    """What perturbation measures in the clamped copy, against automatic differentiation of the model itself."""
    model = build(family)
    source, sink = f"model.layers.0.{source}", f"model.layers.0.{sink}"
    gradients = jacobian(model, source, sink, token=1).abs() > 1e-9
    found = influences(ClampedModel(model), 0)[source, sink]
    assert set(map(tuple, found.here.tolist())) == set(map(tuple, gradients[1].T.nonzero().tolist()))
    assert set(map(tuple, found.later.tolist())) == set(map(tuple, gradients[2:].any(0).T.nonzero().tolist()))


@pytest.mark.parametrize("family", ["llama_gqa_tied", "gpt2", "qwen3_moe"])
def test_changing_channels_by_code_tells_what_changing_them_one_by_one_does(family: str) -> None:
    model = ClampedModel(build(family))
    coded = {source: _by_code(model, 1, source) for source in ("", *model.maps(1))}

    def pairs(moved: dict[str, Influence]) -> dict[str, list[set[tuple[int, ...]]]]:
        both = {sink: (influence.here, influence.later) for sink, influence in moved.items()}
        return {sink: [set(map(tuple, edges.tolist())) for edges in found] for sink, found in both.items()}

    told = {source: pairs(moved) for source, moved in coded.items() if moved is not None}
    assert told == {source: pairs(_one_by_one(model, 1, source)) for source in told}
    assert len(told) >= 3
    assert {source.rpartition(".")[2] for source in coded if source not in told} <= {"q_proj", "k_proj", "c_attn"}


def test_the_model_is_not_touched() -> None:
    model = build("bloom").train()
    model.get_input_embeddings().weight.requires_grad_(False)

    def state() -> list[Any]:
        modules = [
            (name, module.training, len(module._forward_hooks), len(module._forward_pre_hooks), sorted(vars(module)))
            for name, module in model.named_modules()
        ]
        storages = [(value.data_ptr(), value.requires_grad, value.dtype) for value in model.parameters()]
        return [modules, storages, model.config.to_dict(), torch.get_rng_state().tolist()]

    before, weights = state(), {name: value.clone() for name, value in model.state_dict().items()}
    discover_layout(model)
    assert state() == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", ["llama_biased", "gpt2", "gpt_neox"])
def test_discovers_layers_of_unequal_widths(family: str) -> None:
    """Units are sliced out by hand: the last KV head of layer 1, channels 3 and 7 of layers 1 and 2."""
    model = build(family)
    declared = declared_layout(model)
    assert declared is not None
    groups = find_units(model, declared)
    for name, gone in (("layers.1.attention", [1]), ("layers.1.mlp", [3, 7]), ("layers.2.mlp", [3, 7])):
        for piece in groups[name].slices:
            parameter = model.get_parameter(piece.parameter)
            stays = [i for i in range(parameter.shape[piece.dims[0]]) if i not in piece.indices[gone]]
            parameter.data = parameter.data.index_select(piece.dims[0], torch.tensor(stays))
    for module in model.modules():
        if isinstance(module, hf.pytorch_utils.Conv1D):
            module.nf = module.weight.shape[1]
    attention = model.get_submodule(f"{declared.layers}.1.{declared.attention.module}")
    width = attention.get_submodule(declared.attention.output.rpartition(".")[2]).weight
    attention.num_heads = width.shape[0 if family == "gpt2" else 1] // 8
    attention.split_size = 8 * attention.num_heads
    found = discover_layout(model)
    assert described(model, found) == described(model, declared)
    assert len({group.num_units for name, group in find_units(model, found).items() if name.endswith("attention")}) == 2
