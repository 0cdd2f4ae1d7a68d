"""From a layout to the groups of units that can be cut: which rows and columns of which parameters go together.

Letters: H query heads, K KV heads, G = H / K query heads to a KV head, d numbers per head, F channels, E experts,
D hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.layout import (
    DecoderLayout,
    attention_heads,
    decoder_layers,
    expert_sizes,
    find_module,
    head_dimension,
    inputs_of,
    is_linear,
    output_dim,
    outputs_of,
    weight_of,
)
from pruning.units import UnitGroup, UnitKind, UnitSlice

HIDDEN = "hidden"
"""Name of the group of the hidden width."""


def find_units(model: PreTrainedModel, layout: DecoderLayout) -> dict[str, UnitGroup]:
    """Return every group of units that can be cut, by name, in layer order; the hidden width and depth come last.

    A kind that a layer does not have (query heads without grouping, experts in a dense layer) has no group there. Kinds
    overlap: a plan may name several.
    """
    groups: list[UnitGroup] = []
    depth: list[UnitGroup] = []
    for index, layer in enumerate(decoder_layers(model, layout)):
        place = _Layer(layer, f"{layout.layers}.{index}", index, layout)
        groups += [*_attention_groups(place), *_mlp_groups(place)]
        depth += _depth_groups(place)
    hidden = _hidden_group(model, layout)
    return {group.name: group for group in (*groups, *([hidden] if hidden else []), *depth)}


@dataclass(frozen=True)
class _Layer:
    module: nn.Module
    prefix: str
    index: int
    layout: DecoderLayout

    def name(self, part: str) -> str:
        return f"layers.{self.index}.{part}"

    def path(self, path: str) -> str:
        return f"{self.prefix}.{path}"


def _attention_groups(place: _Layer) -> list[UnitGroup]:
    """Return the KV groups of a layer and, where several query heads share a KV head, its query heads.

    KV head k is read by the query heads k*G .. k*G+G-1, which is how transformers repeats keys and values.
    """
    heads, kv_heads = attention_heads(place.module, place.layout)
    if kv_heads == 0:
        return []
    attention, head_dim = place.layout.attention, head_dimension(place.module, place.layout)
    share = heads // kv_heads
    query, key, value = _attention_rows(place, heads, kv_heads, head_dim)
    columns = torch.arange(heads * head_dim).view(kv_heads, share * head_dim)
    readers = (place.path(attention.output),)
    slices = [
        *_projection(place, attention.query, "out", query),
        *_projection(place, attention.key, "out", key),
        *_projection(place, attention.value, "out", value),
        *_norm(place, attention.query_norm, torch.arange(heads * head_dim).view(kv_heads, -1)),
        *_norm(place, attention.key_norm, torch.arange(kv_heads * head_dim).view(kv_heads, -1)),
        *_projection(place, attention.output, "in", columns),
    ]
    kv = UnitGroup(place.name("attention"), UnitKind.kv_group, place.index, tuple(slices), readers)
    if share == 1:
        return [kv]
    by_head = [
        *_projection(place, attention.query, "out", query.reshape(heads, head_dim)),
        *_norm(place, attention.query_norm, torch.arange(heads * head_dim).view(heads, head_dim)),
        *_projection(place, attention.output, "in", columns.reshape(heads, head_dim)),
    ]
    queries = UnitGroup(
        place.name("query_heads"), UnitKind.query_head, place.index, tuple(by_head), readers, kv_heads, kv.name
    )
    return [kv, queries]


def _attention_rows(
    place: _Layer, heads: int, kv_heads: int, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the rows of query (K, G*d), key (K, d) and value (K, d) that belong to each KV head."""
    queries, keys = heads * head_dim, kv_heads * head_dim
    if not place.layout.attention.fused:
        one = torch.arange(keys).view(kv_heads, head_dim)
        return torch.arange(queries).view(kv_heads, -1), one, one
    rows = torch.arange(queries + 2 * keys)
    if place.layout.attention.interleaved:
        return rows.view(kv_heads, -1).split((queries // kv_heads, head_dim, head_dim), dim=1)
    query, key, value = rows.split((queries, keys, keys))
    return query.view(kv_heads, -1), key.view(kv_heads, -1), value.view(kv_heads, -1)


def _mlp_groups(place: _Layer) -> list[UnitGroup]:
    """Return the channels of the MLP, or the channels of the experts and the experts."""
    layout, mlp = place.layout, place.layout.mlp
    if layout.experts and find_module(place.module, layout.experts.module) is not None:
        return _expert_groups(place)
    down = find_module(place.module, mlp.down)
    if down is None or not is_linear(down):
        return []
    channels = torch.arange(inputs_of(down)).view(-1, 1)
    gate = [] if mlp.gate is None else _projection(place, mlp.gate, "out", channels)
    up = channels + len(channels) if mlp.gate == mlp.up else channels
    slices = (*gate, *_projection(place, mlp.up, "out", up), *_projection(place, mlp.down, "in", channels))
    return [UnitGroup(place.name("mlp"), UnitKind.mlp_channel, place.index, slices, (place.path(mlp.down),))]


def _expert_groups(place: _Layer) -> list[UnitGroup]:
    """Return the channels of all experts as one group of E runs, and the experts."""
    layout = place.layout.experts
    assert layout is not None
    module = place.module.get_submodule(layout.module)
    count, width, channels = expert_sizes(module)
    of_expert = torch.arange(count)[:, None]
    gates = (of_expert * 2 * channels + torch.arange(channels)).reshape(-1, 1)
    columns = (of_expert * channels + torch.arange(channels)).reshape(-1, 1)
    gate_up, down = place.path(f"{layout.module}.gate_up_proj"), place.path(f"{layout.module}.down_proj")
    by_channel = (
        UnitSlice(gate_up, (0, 1), torch.cat((gates, gates + channels), dim=1), 2 * width),
        UnitSlice(down, (0, 2), columns, width),
    )
    by_expert = (
        UnitSlice(place.path(f"{layout.router}.weight"), (0,), of_expert, width),
        UnitSlice(gate_up, (0,), of_expert, 2 * channels * width),
        UnitSlice(down, (0,), of_expert, channels * width),
    )
    chosen = int(place.module.get_submodule(layout.router).top_k)  # type: ignore[arg-type]
    experts = UnitGroup(place.name("experts"), UnitKind.expert, place.index, by_expert, min_units=chosen)
    name = place.name("expert_channels")
    return [
        UnitGroup(name, UnitKind.mlp_channel, place.index, by_channel, parts=count, parts_of=experts.name),
        experts,
    ]


def _depth_groups(place: _Layer) -> list[UnitGroup]:
    """Return the layer, its attention and its MLP as groups of one unit each."""
    layout = place.layout
    mlp = layout.mlp
    heads, _ = attention_heads(place.module, layout)
    experts = layout.experts if layout.experts and find_module(place.module, layout.experts.module) else None
    attention_output = (place.path(layout.attention.output),) if heads else ()
    groups = []
    mlp_parts: tuple[str, ...] = ()
    mlp_output: tuple[str, ...] = ()
    if experts is not None:
        mlp_parts = (experts.module, experts.router)
    elif is_linear(find_module(place.module, mlp.down)):
        mlp_parts = tuple(dict.fromkeys(path for path in (mlp.gate, mlp.up, mlp.down) if path))
        mlp_output = (place.path(mlp.down),)
    if heads:
        slices = _whole(place, (layout.attention.module,))
        name = place.name("attention_layer")
        groups.append(UnitGroup(name, UnitKind.attention_layer, place.index, slices, attention_output))
    if mlp_parts:
        slices = _whole(place, mlp_parts)
        groups.append(UnitGroup(place.name("mlp_layer"), UnitKind.mlp_layer, place.index, slices, mlp_output))
    readers = () if experts is not None else (*attention_output, *mlp_output)  # experts have no linear map to watch
    return [*groups, UnitGroup(place.name("layer"), UnitKind.layer, place.index, _whole(place, ("",)), readers)]


def _hidden_group(model: PreTrainedModel, layout: DecoderLayout) -> UnitGroup | None:
    """Return the channels of the residual stream, or None where they cannot be cut.

    That is where embeddings have another width (and are projected), or norms have no weights that tell theirs.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    layers = decoder_layers(model, layout)
    vocabulary, width = weight_of(embedding).shape
    units = torch.arange(width).view(-1, 1)
    names = {id(module): name for name, module in model.named_modules()}
    slices = [UnitSlice(f"{names[id(embedding)]}.weight", (1,), units, vocabulary)]
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module is not embedding:
            slices.append(UnitSlice(f"{name}.weight", (1,), units, module.weight.shape[0]))
        elif _is_stream_norm(name, module, layout):
            parameters = dict(module.named_parameters(recurse=False))
            if not parameters or any(parameter.shape != (width,) for parameter in parameters.values()):
                return None
            for part in parameters:
                slices.append(UnitSlice(f"{name}.{part}", (0,), units, 1))
    for index, layer in enumerate(layers):
        place = _Layer(layer, f"{layout.layers}.{index}", index, layout)
        found = _hidden_slices(place, units)
        if found is None:
            return None
        slices += found
    if head is not None and weight_of(head) is not weight_of(embedding):
        slices.append(UnitSlice(f"{names[id(head)]}.weight", (1,), units, weight_of(head).shape[0]))
    return UnitGroup(HIDDEN, UnitKind.hidden, None, tuple(slices))


def _hidden_slices(place: _Layer, units: torch.Tensor) -> list[UnitSlice] | None:
    """Return what reads and writes the residual stream in a layer, or None where widths do not fit."""
    layout, mlp, width = place.layout, place.layout.mlp, len(units)
    slices: list[UnitSlice] = []
    read: list[str] = []
    written: list[str] = []
    if attention_heads(place.module, layout)[0]:
        read += [layout.attention.query, layout.attention.key, layout.attention.value]
        written += [layout.attention.output]
    if layout.experts and (experts := find_module(place.module, layout.experts.module)) is not None:
        count, _, channels = expert_sizes(experts)
        slices += [
            UnitSlice(place.path(f"{layout.experts.router}.weight"), (1,), units, count),
            UnitSlice(place.path(f"{layout.experts.module}.gate_up_proj"), (2,), units, 2 * count * channels),
            UnitSlice(place.path(f"{layout.experts.module}.down_proj"), (1,), units, count * channels),
        ]
    elif is_linear(find_module(place.module, mlp.down)):
        read += [path for path in (mlp.gate, mlp.up) if path]
        written += [mlp.down]
    for path in dict.fromkeys(read):
        if inputs_of(place.module.get_submodule(path)) != width:
            return None
        slices += _projection(place, path, "in", units)
    for path in written:
        if outputs_of(place.module.get_submodule(path)) != width:
            return None
        slices += _projection(place, path, "out", units)
    return slices


def _is_stream_norm(name: str, module: nn.Module, layout: DecoderLayout) -> bool:
    """Say whether a module is a norm of the residual stream, not one inside an attention."""
    inside_attention = f".{layout.attention.module}." in f".{name}."
    return "norm" in type(module).__name__.lower() and not inside_attention


def _projection(place: _Layer, path: str, side: str, indices: torch.Tensor) -> list[UnitSlice]:
    """Return the slices of a linear map whose outputs ("out", with their bias) or inputs ("in") are the units'."""
    linear = place.module.get_submodule(path)
    dim = output_dim(linear) if side == "out" else 1 - output_dim(linear)
    per_unit = indices.shape[1]
    slices = [UnitSlice(place.path(f"{path}.weight"), (dim,), indices, per_unit * weight_of(linear).shape[1 - dim])]
    if side == "out" and linear.bias is not None:
        slices.append(UnitSlice(place.path(f"{path}.bias"), (0,), indices, per_unit))
    return slices


def _norm(place: _Layer, path: str | None, indices: torch.Tensor) -> list[UnitSlice]:
    """Return the slices of a norm over all heads."""
    norm = find_module(place.module, path)
    if norm is None:
        return []
    names = [name for name, _ in norm.named_parameters(recurse=False)]
    return [UnitSlice(place.path(f"{path}.{name}"), (0,), indices, indices.shape[1]) for name in names]


def _whole(place: _Layer, parts: tuple[str, ...]) -> tuple[UnitSlice, ...]:
    """Return slices that take every number of the named modules of a layer ("" for the layer itself)."""
    return tuple(
        UnitSlice(
            place.path(f"{part}.{name}" if part else name),
            (0,),
            torch.arange(parameter.shape[0]).view(1, -1),
            parameter.numel(),
        )
        for part in parts
        for name, parameter in place.module.get_submodule(part).named_parameters()
    )
