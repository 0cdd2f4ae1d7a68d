"""What llama.cpp can run of a pruned model: its decoder layers, and the architecture whose code takes their widths.

Most architectures of llama.cpp read one width for all layers. Two read query heads, KV heads and feed-forward channels
of every layer: `deci`, which is llama otherwise and runs layers without attention, and `openelm`, which computes what
Qwen3 computes where input and output embeddings are tied. Limits of theirs are worked around with parts of zeros, which
add nothing to the residual stream: the head dimension is taken from the first layer, so that one needs a head (and every
layer of `openelm` does); and where a layer has 0 channels `deci` skips its attention too, so every layer needs a channel.

Letters: D hidden, d head dimension, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from gguf import MODEL_ARCH
from transformers import PreTrainedModel

from pruning.layout import DecoderLayout, attention_heads, decoder_layers, head_dimension, layer_widths

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
PAIRED_ROTATION = (MODEL_ARCH.LLAMA, MODEL_ARCH.DECI)
"""Architectures whose rotary embedding turns neighbours (2i, 2i+1); the others turn (i, i + d/2), as transformers does."""

PER_LAYER = (MODEL_ARCH.DECI, MODEL_ARCH.OPENELM)
"""Architectures that read the widths of every layer."""

ATTENTION = ("input_layernorm.", "self_attn.")
MLP = ("post_attention_layernorm.", "mlp.")


@dataclass(frozen=True)
class GgufLayer:
    """One decoder layer as it will be written."""

    query_heads: int
    kv_heads: int
    channels: int
    tensors: dict[str, torch.Tensor]
    """Parameters by their name inside the layer, rotary dimensions in transformers' order."""

    @property
    def widths(self) -> tuple[int, int, int]:
        """Query heads, KV heads, channels."""
        return self.query_heads, self.kv_heads, self.channels


def gguf_layers(model: PreTrainedModel, layout: DecoderLayout) -> list[GgufLayer]:
    """Return the layers to write. Layers without attention and MLP do nothing and are left out.

    Raises:
        ValueError: a layer has query heads that its KV heads cannot share evenly, or no layer has attention.
    """
    hidden, head_dim = embedding(model).shape[1], model_head_dim(model, layout)
    written: list[GgufLayer] = []
    for index, (layer, widths) in enumerate(
        zip(decoder_layers(model, layout), layer_widths(model, layout), strict=True)
    ):
        queries, keys, channels = widths.query_heads, widths.kv_heads, widths.mlp_channels
        if queries and queries % keys:
            raise ValueError(f"layer {index}: {queries} query heads cannot share {keys} KV heads evenly")
        if not queries and not channels:
            continue
        gone = (() if queries else ATTENTION) + (() if channels else MLP)
        tensors = {name: value.detach() for name, value in layer.named_parameters() if not name.startswith(gone)}
        if not queries and (not written or model.config.model_type == "qwen3"):
            queries, keys, tensors = 1, 1, tensors | _zero_head(model, head_dim)
        if not channels:
            channels, tensors = 1, tensors | _zero_channel(hidden)
        written.append(GgufLayer(queries, keys, channels, tensors))
    return written


def embedding(model: PreTrainedModel) -> torch.nn.Parameter:
    """Return the token embedding, (vocabulary, D)."""
    return model.get_parameter("model.embed_tokens.weight")


def model_head_dim(model: PreTrainedModel, layout: DecoderLayout) -> int:
    """Return the numbers per head, read off the first layer that has attention."""
    for layer in decoder_layers(model, layout):
        if attention_heads(layer, layout)[0]:
            return head_dimension(layer, layout)
    raise ValueError("no layer of the model has attention: llama.cpp runs no such model")


def choose_architecture(
    model: PreTrainedModel, layers: list[GgufLayer], head_dim: int, plain_rotation: bool
) -> MODEL_ARCH:
    """Return the architecture of llama.cpp that computes what the model computes.

    Qwen2 is llama with biases. llama.cpp's own `qwen2` wants heads that fill the hidden width, an unscaled rotary embedding
    and no biases at the outputs, so where pruning, scaling or compensation changed that, `llama` is the one.

    Raises:
        ValueError: there is none.
    """
    family, hidden = model.config.model_type, embedding(model).shape[1]
    equal = len({layer.widths for layer in layers}) == 1
    output_biases = ("self_attn.o_proj.bias", "mlp.down_proj.bias")
    biased = any(name in layer.tensors for layer in layers for name in output_biases)
    if family == "qwen3":
        _check_qwen3(model, equal, plain_rotation, biased)
        return MODEL_ARCH.QWEN3 if equal else MODEL_ARCH.OPENELM
    if not equal:
        return MODEL_ARCH.DECI
    if family == "qwen2" and plain_rotation and not biased and layers[0].query_heads * head_dim == hidden:
        return MODEL_ARCH.QWEN2
    return MODEL_ARCH.LLAMA


def is_tied(model: PreTrainedModel) -> bool:
    """Say whether the token embedding is also the output matrix."""
    return model.get_parameter("lm_head.weight") is embedding(model)


def fuse_heads(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a layer with query, key and value in one projection, (H*d + 2*K*d, D) for K KV heads."""
    names = [f"self_attn.{name}_proj.weight" for name in "qkv"]
    fused = torch.cat([tensors[name].to(tensors[names[0]]) for name in names])
    return {"self_attn.qkv_proj.weight": fused} | {k: v for k, v in tensors.items() if k not in names}


def pair_rotation(values: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the rows of a query or key projection with the two numbers that rotate together as neighbours.

    Args:
        values: (H*d, D) weight or (H*d,) bias, where number i of a head rotates with number i + d/2.
        heads: H.
    """
    return values.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _check_qwen3(model: PreTrainedModel, equal: bool, plain_rotation: bool, biased: bool) -> None:
    """Raise when llama.cpp has no code for a Qwen3 model like this."""
    if not plain_rotation:
        raise ValueError("model_type=qwen3 with a scaled rotary embedding: llama.cpp takes no scaling for it")
    if getattr(model.config, "attention_bias", False):
        raise ValueError("model_type=qwen3 with attention_bias=true: llama.cpp takes no biases for it")
    if biased:
        raise ValueError(
            "model_type=qwen3 with the biases that compensation=bias added: llama.cpp takes no biases for it; prune with "
            "compensation=least_squares"
        )
    if not (equal or is_tied(model)):
        raise ValueError(
            "model_type=qwen3 with layers of unequal widths and an output matrix of its own: what takes unequal layers "
            "with query and key norms in llama.cpp wants tied embeddings; prune every layer alike"
        )


def _zero_head(model: PreTrainedModel, head_dim: int) -> dict[str, torch.Tensor]:
    hidden = embedding(model).shape[1]
    tensors = {f"self_attn.{name}_proj.weight": torch.zeros(head_dim, hidden) for name in "qkv"}
    tensors |= {"self_attn.o_proj.weight": torch.zeros(hidden, head_dim), "input_layernorm.weight": torch.ones(hidden)}
    if model.config.model_type == "qwen3":
        tensors |= {f"self_attn.{name}_norm.weight": torch.ones(head_dim) for name in "qk"}
    return tensors


def _zero_channel(hidden: int) -> dict[str, torch.Tensor]:
    rows = {f"mlp.{name}_proj.weight": torch.zeros(1, hidden) for name in ("gate", "up")}
    return rows | {
        "post_attention_layernorm.weight": torch.ones(hidden),
        "mlp.down_proj.weight": torch.zeros(hidden, 1),
    }
