"""Cutting tiny llama-like models by hand: the first heads and channels stay."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.compensation.apply import compensate
from pruning.compensation.base import Correction
from pruning.pruned_model import SkippedSublayer
from tests.zoo import SIZES

HEAD_DIM: int = SIZES["head_dim"]


def narrow(layer: nn.Module, kv_heads: int, queries_each: int, channels: int) -> None:
    """Keep the first KV heads, the first query heads of each, and the first channels of a layer."""
    attention, mlp = layer.self_attn, layer.mlp
    group = attention.num_key_value_groups
    keys = list(range(kv_heads))
    queries = [key * group + i for key in keys for i in range(queries_each)]
    _keep(attention.q_proj, 0, queries, attention.head_dim)
    _keep(attention.k_proj, 0, keys, attention.head_dim)
    _keep(attention.v_proj, 0, keys, attention.head_dim)
    _keep(attention.o_proj, 1, queries, attention.head_dim)
    attention.num_key_value_groups = queries_each
    _keep(mlp.gate_proj, 0, range(channels), 1)
    _keep(mlp.up_proj, 0, range(channels), 1)
    _keep(mlp.down_proj, 1, range(channels), 1)


def unequal(model: PreTrainedModel) -> PreTrainedModel:
    """Give the four layers of a tiny model different widths: fewer KV heads, fewer query heads, whole, one head."""
    layers = model.model.layers
    narrow(layers[0], 2, layers[0].self_attn.num_key_value_groups, 40)
    narrow(layers[1], 2, 1, 30)
    narrow(layers[3], 1, 1, 48)
    return model


def with_added_biases(model: PreTrainedModel) -> PreTrainedModel:
    """Give every attention and every MLP of a tiny model a bias at its output, as bias compensation does."""
    outputs = [f"model.layers.{index}.{part}" for index in range(4) for part in ("self_attn.o_proj", "mlp.down_proj")]
    generator = torch.Generator().manual_seed(0)
    compensate(model, {name: Correction(added_bias=torch.randn(32, generator=generator)) for name in outputs})
    return model


def skip_attention(layer: nn.Module) -> None:
    """Cut out the attention of a layer, with its norm."""
    layer.self_attn = SkippedSublayer(returns_tuple=True, adds_residual=False, layer_idx=layer.self_attn.layer_idx)
    layer.input_layernorm = nn.Identity()


def skip_mlp(layer: nn.Module) -> None:
    """Cut out the MLP of a layer, with its norm."""
    layer.mlp = SkippedSublayer(returns_tuple=False, adds_residual=False, layer_idx=layer.self_attn.layer_idx)
    layer.post_attention_layernorm = nn.Identity()


def _keep(linear: nn.Linear, dim: int, blocks: list[int] | range, size: int) -> None:
    kept = torch.tensor([block * size + i for block in blocks for i in range(size)])
    linear.weight = nn.Parameter(linear.weight.detach().index_select(dim, kept))
    if dim == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[kept])
