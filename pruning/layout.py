"""Layouts: where a decoder keeps the projections whose rows and columns go together, and what its weights tell of its widths.

A layout is data: paths of modules, and how fused projections are laid out. Only the shapes of the weights are trusted,
never the head counts in the configuration: a model that was pruned before has other counts in every layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

DISCOVERED = "discovered"
"""Family of the layouts that are not declared."""


@dataclass(frozen=True)
class AttentionLayout:
    """The attention of one decoder layer. Paths are relative to the layer."""

    module: str = "self_attn"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    """Query, key and value are the same path where they are fused."""

    output: str = "self_attn.o_proj"

    interleaved: bool = False
    """Rows of a fused projection: all query heads, all keys, all values; or, if true, KV head after KV head, each
    with its query heads, its key and its value."""

    query_norm: str | None = None
    key_norm: str | None = None
    """Norms over all heads together. (Norms inside one head do not change and are not named.)"""

    head_dim: int | None = None
    """Numbers per head, where the attention module does not tell."""

    alibi: bool = False
    """Whether every head has a bias of its own on distance, handed in by the model. `config.alibi` overrules it."""

    reads_config: bool = False
    """Whether the module takes its head count from its configuration while it runs."""

    @property
    def fused(self) -> bool:
        """Whether query, key and value are one projection."""
        return self.query == self.value


@dataclass(frozen=True)
class MlpLayout:
    """The MLP of one decoder layer. Paths are relative to the layer."""

    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    gate: str | None = "mlp.gate_proj"
    """None without a gate; the same path as `up` where they are fused: all gates, then all ups."""


@dataclass(frozen=True)
class ExpertsLayout:
    """A mixture of experts whose weights are stacked: gate_up_proj (E, 2F, D), down_proj (E, D, F), router (E, D)."""

    module: str = "mlp.experts"
    router: str = "mlp.gate"


@dataclass(frozen=True)
class ConfigNames:
    """Configuration keys of the widths; None where the family has no such key."""

    query_heads: str | None = "num_attention_heads"
    kv_heads: str | None = "num_key_value_heads"
    mlp_channels: str | None = "intermediate_size"
    experts: str | None = None


@dataclass(frozen=True)
class DecoderLayout:
    """Where one family keeps its decoder layers and, inside a layer, its projections."""

    family: str
    model_types: tuple[str, ...]
    """`config.model_type` of the architectures that are laid out so."""

    layers: str = "model.layers"
    attention: AttentionLayout = field(default_factory=AttentionLayout)
    mlp: MlpLayout = field(default_factory=MlpLayout)
    experts: ExpertsLayout | None = None
    """Used in the layers that have it; the others have the MLP."""

    names: ConfigNames = field(default_factory=ConfigNames)
    adds_residual: bool = False
    """Whether attention and MLP add the residual themselves (their second argument)."""

    runs_on_hidden_size: bool = False
    """Whether the code computes with `config.hidden_size` while it runs, which therefore stays that of the dense model."""


@dataclass(frozen=True)
class LayerWidths:
    """What pruning may change in one layer; 0 for a part that is gone or was never there."""

    query_heads: int
    kv_heads: int
    mlp_channels: int
    """Channels of the MLP, or of each expert."""

    experts: int = 0


def decoder_layers(model: nn.Module, layout: DecoderLayout) -> nn.ModuleList:
    """Return the model's decoder layers, in order."""
    layers = model.get_submodule(layout.layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def block_parameters(model: PreTrainedModel, layout: DecoderLayout) -> int:
    """Return the number of parameters in the decoder layers: everything but embeddings, last norm and head."""
    return sum(parameter.numel() for parameter in decoder_layers(model, layout).parameters())


def find_module(layer: nn.Module, path: str | None) -> nn.Module | None:
    """Return the module at `path` inside a layer, or None where there is none (it may have been cut out)."""
    if path is None:
        return None
    try:
        return layer.get_submodule(path)
    except AttributeError:
        return None


def is_linear(module: nn.Module | None) -> bool:
    """Say whether a module is a linear map whose rows and columns can be cut."""
    return isinstance(module, nn.Linear | Conv1D)


def output_dim(linear: nn.Module) -> int:
    """Return the weight's dimension that holds the outputs: 0 for `nn.Linear`, 1 for GPT-2's `Conv1D`."""
    return 1 if isinstance(linear, Conv1D) else 0


def weight_of(module: nn.Module) -> torch.Tensor:
    """Return the weight of a linear map, an embedding or a norm."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def outputs_of(linear: nn.Module) -> int:
    """Return the number of outputs of a linear map, read off its weight."""
    return weight_of(linear).shape[output_dim(linear)]


def inputs_of(linear: nn.Module) -> int:
    """Return the number of inputs of a linear map, read off its weight."""
    return weight_of(linear).shape[1 - output_dim(linear)]


def expert_sizes(experts: nn.Module) -> tuple[int, int, int]:
    """Return the number of experts, the hidden width, and the channels of each expert."""
    down = experts.down_proj
    assert isinstance(down, torch.Tensor)
    count, hidden, channels = down.shape
    return count, hidden, channels


def head_dimension(layer: nn.Module, layout: DecoderLayout) -> int:
    """Return the numbers per head. Pruning never changes it, so rotary embedding stays valid."""
    if layout.attention.head_dim is not None:
        return layout.attention.head_dim
    attention = layer.get_submodule(layout.attention.module)
    for name in ("head_dim", "head_size", "hidden_size_per_attention_head"):
        if isinstance(found := getattr(attention, name, None), int):
            return found
    raise ValueError(f"{layout.family}: {layout.attention.module} has no head_dim; give it in the layout")


def attention_heads(layer: nn.Module, layout: DecoderLayout) -> tuple[int, int]:
    """Return the query heads and the KV heads of a layer, (0, 0) when its attention is gone."""
    attention = layout.attention
    output = find_module(layer, attention.output)
    if output is None:
        return 0, 0
    head_dim = head_dimension(layer, layout)
    queries = inputs_of(output) // head_dim
    if attention.fused:
        return queries, (outputs_of(layer.get_submodule(attention.query)) // head_dim - queries) // 2
    return queries, outputs_of(layer.get_submodule(attention.key)) // head_dim


def layer_widths(model: PreTrainedModel, layout: DecoderLayout) -> list[LayerWidths]:
    """Return the widths of every layer, read off the weights."""
    found = []
    for layer in decoder_layers(model, layout):
        experts = find_module(layer, layout.experts.module) if layout.experts else None
        down = find_module(layer, layout.mlp.down)
        if experts is not None:
            count, _, channels = expert_sizes(experts)
        else:
            count, channels = 0, inputs_of(down) if down is not None and is_linear(down) else 0
        found.append(LayerWidths(*attention_heads(layer, layout), channels, count))
    return found
