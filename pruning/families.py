"""Declared layouts: where the coupled projections of an architecture family are, and the units they form.

Only the shapes of the weights are trusted, never the head counts in the configuration: a model that was pruned before has
other counts in every layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.units import UnitGroup, UnitKind, UnitSlice


@dataclass(frozen=True)
class DecoderLayout:
    """Where one family keeps its decoder layers and, inside a layer, its projections."""

    family: str
    model_types: tuple[str, ...]
    """`config.model_type` of the architectures that are laid out so."""

    layers: str = "model.layers"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    output: str = "self_attn.o_proj"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"

    @property
    def projections(self) -> tuple[str, ...]:
        """Paths of all projections inside a layer."""
        return (self.query, self.key, self.value, self.output, self.gate, self.up, self.down)


LAYOUTS = (DecoderLayout("llama", ("llama", "mistral", "qwen2")),)


@dataclass(frozen=True)
class LayerWidths:
    """What pruning may change in one layer."""

    query_heads: int
    kv_heads: int
    mlp_channels: int


def find_layout(model: PreTrainedModel) -> DecoderLayout:
    """Return the layout of the model's family, checked against the modules that are really there.

    Raises:
        ValueError: no declared family has this model type, or a projection is missing or not linear.
    """
    model_type = model.config.model_type
    for layout in LAYOUTS:
        if model_type in layout.model_types:
            _check_modules(model, layout)
            return layout
    known = sorted(model_type for layout in LAYOUTS for model_type in layout.model_types)
    raise ValueError(
        f"unsupported architecture: model_type={model_type!r}. Declared families cover {known}: decoder layers with linear "
        f"projections {', '.join(LAYOUTS[0].projections)}. See docs/extending.md to declare another."
    )


def decoder_layers(model: PreTrainedModel, layout: DecoderLayout) -> nn.ModuleList:
    """Return the model's decoder layers, in order."""
    layers = model.get_submodule(layout.layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def block_parameters(model: PreTrainedModel, layout: DecoderLayout) -> int:
    """Return the number of parameters in the decoder layers: everything but embeddings, last norm and head."""
    return sum(parameter.numel() for parameter in decoder_layers(model, layout).parameters())


def layer_widths(model: PreTrainedModel, layout: DecoderLayout) -> list[LayerWidths]:
    """Return the widths of every layer, read off the weights."""
    head_dim = head_dimension(model, layout)
    return [
        LayerWidths(
            query_heads=linear_map(layer, layout.query).out_features // head_dim,
            kv_heads=linear_map(layer, layout.key).out_features // head_dim,
            mlp_channels=linear_map(layer, layout.gate).out_features,
        )
        for layer in decoder_layers(model, layout)
    ]


def head_dimension(model: PreTrainedModel, layout: DecoderLayout) -> int:
    """Return the numbers per head. Pruning never changes it, so rotary embedding stays valid."""
    return int(decoder_layers(model, layout)[0].get_submodule(layout.query.rpartition(".")[0]).head_dim)  # type: ignore[arg-type]


def linear_map(layer: nn.Module, path: str) -> nn.Linear:
    """Return the projection at `path` inside a layer."""
    module = layer.get_submodule(path)
    assert isinstance(module, nn.Linear)
    return module


def find_units(model: PreTrainedModel, layout: DecoderLayout) -> dict[str, UnitGroup]:
    """Return every group of units that can be cut, by name, in layer order.

    A KV group is one key-value head k with its own query heads k*G .. k*G+G-1 (G query heads to a KV head), which is how
    `repeat_kv` in transformers assigns them. An MLP channel is a row of gate and up and a column of down.
    """
    head_dim = head_dimension(model, layout)
    groups: dict[str, UnitGroup] = {}
    for index, layer in enumerate(decoder_layers(model, layout)):
        prefix = f"{layout.layers}.{index}"
        kv_heads = linear_map(layer, layout.key).out_features // head_dim
        queries = linear_map(layer, layout.query).out_features // kv_heads
        attention = (
            *_unit_slices(layer, prefix, layout.query, 0, kv_heads, queries),
            *_unit_slices(layer, prefix, layout.key, 0, kv_heads, head_dim),
            *_unit_slices(layer, prefix, layout.value, 0, kv_heads, head_dim),
            *_unit_slices(layer, prefix, layout.output, 1, kv_heads, queries),
        )
        channels = linear_map(layer, layout.gate).out_features
        mlp = (
            *_unit_slices(layer, prefix, layout.gate, 0, channels, 1),
            *_unit_slices(layer, prefix, layout.up, 0, channels, 1),
            *_unit_slices(layer, prefix, layout.down, 1, channels, 1),
        )
        for name, kind, slices in (
            (f"layers.{index}.attention", UnitKind.kv_group, attention),
            (f"layers.{index}.mlp", UnitKind.mlp_channel, mlp),
        ):
            groups[name] = UnitGroup(name, kind, index, slices)
    return groups


def _unit_slices(layer: nn.Module, prefix: str, path: str, dim: int, units: int, block: int) -> list[UnitSlice]:
    """Return the slices of a projection whose `dim` is `units` consecutive blocks; rows take their bias along."""
    indices = torch.arange(units * block).view(units, block)
    linear = linear_map(layer, path)
    slices = [UnitSlice(f"{prefix}.{path}.weight", dim, indices, block * linear.weight.shape[1 - dim])]
    if dim == 0 and linear.bias is not None:
        slices.append(UnitSlice(f"{prefix}.{path}.bias", 0, indices, block))
    return slices


def _check_modules(model: PreTrainedModel, layout: DecoderLayout) -> None:
    for index, layer in enumerate(decoder_layers(model, layout)):
        for path in layout.projections:
            try:
                module = layer.get_submodule(path)
            except AttributeError:
                module = None
            if not isinstance(module, nn.Linear):
                found = type(module).__name__ if module is not None else "nothing"
                raise ValueError(
                    f"unsupported architecture: model_type={model.config.model_type!r} is declared as {layout.family}, "
                    f"but {layout.layers}.{index}.{path} is {found}, not a linear map"
                )
