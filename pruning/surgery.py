"""Cutting a plan out of a model.

The law that every family is tested for: a model with units cut gives the logits of the model with the same units masked
(masking.py).
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.layout import (
    DISCOVERED,
    DecoderLayout,
    attention_heads,
    decoder_layers,
    expert_sizes,
    find_module,
    head_dimension,
    layer_widths,
    weight_of,
)
from pruning.masking import masked
from pruning.pruned_model import (
    SkippedSublayer,
    own_config,
    refresh_leaf,
    register_alibi,
    replace_module,
    replace_parameter,
)
from pruning.structure import record_structure
from pruning.units import (
    Places,
    PruningPlan,
    UnitGroup,
    UnitKind,
    from_positions,
    positions,
    removed_places,
    removed_units,
)


def cut(model: PreTrainedModel, layout: DecoderLayout, groups: Mapping[str, UnitGroup], plan: PruningPlan) -> None:
    """Remove from `model`, in place, the units that `plan` does not keep, and record its structure in its configuration.

    A model whose layout was discovered is cut on a copy first.

    Raises:
        ValueError: the plan does not fit, or the copy does not compute what it should; nothing has been touched then.
    """
    removed = removed_units(plan, groups)
    if layout.family == DISCOVERED:
        _prove_on_copy(model, layout, groups, removed)
    _carry_out(model, layout, groups, removed)


def _carry_out(
    model: PreTrainedModel,
    layout: DecoderLayout,
    groups: Mapping[str, UnitGroup],
    removed: Mapping[str, Sequence[int]],
) -> None:
    """Remove the given units from the model, in place."""
    if getattr(model.config, "alibi", layout.attention.alibi):
        _keep_alibi(model, layout, groups, removed)
    for name, places in removed_places(groups, removed).items():
        parameter = model.get_parameter(name)
        new = nn.Parameter(_without(parameter.detach(), places), requires_grad=parameter.requires_grad)
        replace_parameter(model, parameter, new)
    depth = [groups[name] for name in removed if groups[name].kind.is_depth]
    for group in depth:
        _remove_sublayer(model, layout, group)
    _remove_layers(model, layout, {group.layer for group in depth if group.kind is UnitKind.layer})
    refresh_numbers(model, layout)
    record_structure(model, layout)


@torch.inference_mode()
def _prove_on_copy(
    model: PreTrainedModel,
    layout: DecoderLayout,
    groups: Mapping[str, UnitGroup],
    removed: Mapping[str, Sequence[int]],
) -> None:
    """Raise unless a copy of the model, cut, gives the logits of the copy with the same units masked."""
    trial = copy.deepcopy(model)
    tokens = (torch.arange(16, device=model.device) % model.config.vocab_size).view(2, 8)
    with masked(trial, groups, removed):
        expected = trial(input_ids=tokens).logits.float()
    try:
        _carry_out(trial, layout, groups, removed)
        found = trial(input_ids=tokens).logits.float()
        far = float((found - expected).abs().max() / expected.abs().max())
    except Exception as error:
        raise ValueError(f"{_undeclared(model, groups, removed)}: its own code fails then ({error})") from error
    if not far < (1e-3 if model.dtype is torch.float32 else 5e-2):
        raise ValueError(f"{_undeclared(model, groups, removed)}: its outputs would be off by {far:.1%}")


def _undeclared(model: PreTrainedModel, groups: Mapping[str, UnitGroup], removed: Mapping[str, Sequence[int]]) -> str:
    kinds = sorted({groups[name].kind.name for name in removed})
    return f"model_type={model.config.model_type!r} is not declared, and cutting {', '.join(kinds)} out of it does not hold"


def _without(values: torch.Tensor, places: Places) -> torch.Tensor:
    """Return what is left of a parameter. Positions in runs (experts) that leave as a whole need not be even."""
    original = values.shape
    kept: dict[int, torch.Tensor] = {}
    for dims, gone in sorted(places.items(), key=lambda item: len(item[0])):
        stays = torch.ones([original[dim] for dim in dims], dtype=torch.bool)
        stays.view(-1)[gone] = False
        for axis, dim in enumerate(dims[:-1]):
            if dim in kept:
                stays = stays.index_select(axis, kept[dim])
        chosen = stays.flatten().nonzero().flatten()
        if len(dims) == 1:
            kept[dims[0]] = chosen
        shape = list(values.shape)
        shape[dims[-1]] = len(chosen) // math.prod(values.shape[dim] for dim in dims[:-1])
        values = from_positions(positions(values, dims)[chosen.to(values.device)], shape, dims)
    return values.contiguous()


def _keep_alibi(
    model: PreTrainedModel,
    layout: DecoderLayout,
    groups: Mapping[str, UnitGroup],
    removed: Mapping[str, Sequence[int]],
) -> None:
    """Note in every attention with distance biases which of the dense model's heads it keeps."""
    gone: dict[int | None, set[int]] = defaultdict(set)
    for name, units in removed.items():
        group = groups[name]
        if group.kind in (UnitKind.kv_group, UnitKind.query_head):
            columns = group.slices[-1].indices[torch.tensor(units)].flatten()
            gone[group.layer] |= set((columns // head_dimension(_layer(model, layout, group), layout)).tolist())
    for index, heads in gone.items():
        assert index is not None
        attention: Any = decoder_layers(model, layout)[index].get_submodule(layout.attention.module)
        count, _ = attention_heads(decoder_layers(model, layout)[index], layout)
        present = getattr(attention, "alibi_heads", tuple(range(count)))
        attention.alibi_total = getattr(attention, "alibi_total", count)
        attention.alibi_heads = tuple(head for place, head in enumerate(present) if place not in heads)
        register_alibi(attention)


def _layer(model: PreTrainedModel, layout: DecoderLayout, group: UnitGroup) -> nn.Module:
    assert group.layer is not None
    return decoder_layers(model, layout)[group.layer]


def _remove_sublayer(model: PreTrainedModel, layout: DecoderLayout, group: UnitGroup) -> None:
    """Put something that adds nothing where the attention or MLP of a group was."""
    assert group.layer is not None
    prefix = f"{layout.layers}.{group.layer}"
    if group.kind is UnitKind.attention_layer:
        replace_module(
            model,
            f"{prefix}.{layout.attention.module}",
            SkippedSublayer(returns_tuple=True, adds_residual=layout.adds_residual, layer_idx=group.layer),
        )
    elif group.kind is UnitKind.mlp_layer:
        parent = layout.mlp.down.rpartition(".")[0]
        skipped = SkippedSublayer(returns_tuple=False, adds_residual=layout.adds_residual, layer_idx=group.layer)
        if not parent:  # the projections lie in the layer itself
            replace_module(model, f"{prefix}.{layout.mlp.up}", nn.Identity())
        replace_module(model, f"{prefix}.{parent or layout.mlp.down}", skipped)


def _remove_layers(model: PreTrainedModel, layout: DecoderLayout, removed: set[int | None]) -> None:
    """Drop whole layers, and count the others and the configuration's lists anew."""
    if not removed:
        return
    config, layers = model.config, decoder_layers(model, layout)
    kept = [index for index in range(len(layers)) if index not in removed]
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == len(layers):
            setattr(config, name, [value[index] for index in kept])
    if layout.experts and hasattr(config, "mlp_only_layers"):
        dense = [find_module(layers[index], layout.experts.module) is None for index in kept]
        config.mlp_only_layers = [index for index, is_dense in enumerate(dense) if is_dense]
        config.decoder_sparse_step = 1
    for index, old in enumerate(kept):
        for module in layers[old].modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = index  # type: ignore[assignment]
    replace_module(model, layout.layers, nn.ModuleList(layers[index] for index in kept))
    config.num_hidden_layers = len(kept)


def refresh_numbers(model: PreTrainedModel, layout: DecoderLayout) -> None:
    """Set the widths that modules keep as numbers to what their weights now are."""
    hidden = weight_of(model.get_input_embeddings()).shape[1]
    for module in model.modules():
        refresh_leaf(module)
    for layer, widths in zip(decoder_layers(model, layout), layer_widths(model, layout), strict=True):
        _set_existing(layer, {"hidden_size": hidden, "embed_dim": hidden})
        if widths.kv_heads:
            _refresh_attention(layer, layout)
        experts = find_module(layer, layout.experts.module) if layout.experts else None
        if layout.experts and experts is not None:
            count, _, channels = expert_sizes(experts)
            numbers = {"num_experts": count, "hidden_dim": hidden, "intermediate_dim": channels}
            for module in (experts, layer.get_submodule(layout.experts.router)):
                _set_existing(module, numbers)
        parent = layout.mlp.down.rpartition(".")[0]
        if parent and (mlp := find_module(layer, parent)) is not None:
            _set_existing(mlp, {"intermediate_size": widths.mlp_channels, "hidden_size": hidden})


def _refresh_attention(layer: nn.Module, layout: DecoderLayout) -> None:
    """Set head counts under every name that attention modules give them."""
    heads, kv_heads = attention_heads(layer, layout)
    width = heads * head_dimension(layer, layout)
    attention = layer.get_submodule(layout.attention.module)
    numbers = {
        "num_heads": heads,
        "num_attention_heads": heads,
        "num_attention_heads_per_partition": heads,
        "num_key_value_heads": kv_heads,
        "num_kv_heads": kv_heads,
        "num_multi_query_groups_per_partition": kv_heads,
        "num_key_value_groups": heads // kv_heads,
        "split_size": width,
    }
    _set_existing(attention, numbers)
    if hasattr(attention, "kv_dim"):  # GPT-BigCode splits its fused projection by these
        sizes = {"embed_dim": width, "kv_heads": kv_heads, "kv_dim": kv_heads * head_dimension(layer, layout)}
        _set_existing(attention, sizes)
    if layout.attention.reads_config:
        assert layout.names.query_heads is not None
        values: Any = {layout.names.query_heads: heads}
        attention.own_config_values = values
        own_config(attention, values)


def _set_existing(module: nn.Module, numbers: Mapping[str, int]) -> None:
    for name, value in numbers.items():
        if isinstance(getattr(module, name, None), int):
            setattr(module, name, int(value))
