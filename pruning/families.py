"""The families whose layout is declared, and the way to the layout of any model."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.layout import (
    AttentionLayout,
    ConfigNames,
    DecoderLayout,
    ExpertsLayout,
    MlpLayout,
    decoder_layers,
    find_module,
    is_linear,
)


def _fused(module: str, projection: str, output: str, **options: bool) -> AttentionLayout:
    """Return the layout of an attention whose query, key and value are one projection."""
    path = f"{module}.{projection}"
    return AttentionLayout(module, path, path, path, f"{module}.{output}", **options)  # type: ignore[arg-type]


H_TO_4H = MlpLayout(up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", gate=None)

LAYOUTS = (
    DecoderLayout("llama", ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3")),
    DecoderLayout(
        "olmo2",
        ("olmo2",),
        attention=AttentionLayout(query_norm="self_attn.q_norm", key_norm="self_attn.k_norm"),
    ),
    DecoderLayout(
        "phi3",
        ("phi3",),
        attention=_fused("self_attn", "qkv_proj", "o_proj", reads_config=True),
        mlp=MlpLayout(up="mlp.gate_up_proj", gate="mlp.gate_up_proj"),
    ),
    DecoderLayout("glm", ("glm", "glm4"), mlp=MlpLayout(up="mlp.gate_up_proj", gate="mlp.gate_up_proj")),
    DecoderLayout(
        "baichuan",
        ("baichuan",),
        attention=_fused("self_attn", "W_pack", "o_proj"),
        names=ConfigNames(kv_heads=None),
    ),
    DecoderLayout(
        "chatglm",
        ("chatglm",),
        layers="transformer.encoder.layers",
        attention=_fused("self_attention", "query_key_value", "dense"),
        mlp=MlpLayout(up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", gate="mlp.dense_h_to_4h"),
        names=ConfigNames(kv_heads="multi_query_group_num", mlp_channels="ffn_hidden_size"),
    ),
    DecoderLayout(
        "gpt_neox",
        ("gpt_neox",),
        layers="gpt_neox.layers",
        attention=_fused("attention", "query_key_value", "dense", interleaved=True),
        mlp=H_TO_4H,
        names=ConfigNames(kv_heads=None),
    ),
    DecoderLayout(
        "bloom",
        ("bloom",),
        layers="transformer.h",
        attention=_fused("self_attention", "query_key_value", "dense", interleaved=True, alibi=True),
        mlp=H_TO_4H,
        names=ConfigNames(query_heads="n_head", kv_heads=None, mlp_channels=None),
        adds_residual=True,
    ),
    DecoderLayout(
        "falcon",
        ("falcon",),
        layers="transformer.h",
        attention=_fused("self_attention", "query_key_value", "dense", interleaved=True),
        mlp=H_TO_4H,
        names=ConfigNames(kv_heads="num_kv_heads", mlp_channels="ffn_hidden_size"),
        runs_on_hidden_size=True,
    ),
    DecoderLayout(
        "gpt2",
        ("gpt2",),
        layers="transformer.h",
        attention=_fused("attn", "c_attn", "c_proj"),
        mlp=MlpLayout(up="mlp.c_fc", down="mlp.c_proj", gate=None),
        names=ConfigNames(query_heads="n_head", kv_heads=None, mlp_channels="n_inner"),
    ),
    DecoderLayout(
        "opt",
        ("opt",),
        layers="model.decoder.layers",
        attention=AttentionLayout(output="self_attn.out_proj"),
        mlp=MlpLayout(up="fc1", down="fc2", gate=None),
        names=ConfigNames(kv_heads=None, mlp_channels="ffn_dim"),
    ),
    DecoderLayout(
        "qwen3_moe",
        ("qwen3_moe",),
        experts=ExpertsLayout(),
        names=ConfigNames(mlp_channels="moe_intermediate_size", experts="num_experts"),
    ),
    DecoderLayout("mixtral", ("mixtral",), experts=ExpertsLayout(), names=ConfigNames(experts="num_local_experts")),
)


def declared_layout(model: PreTrainedModel) -> DecoderLayout | None:
    """Return the layout that is declared for the model's architecture, or None.

    Raises:
        ValueError: a projection of the declared layout is missing or not linear.
    """
    for layout in LAYOUTS:
        if model.config.model_type in layout.model_types:
            _check_modules(model, layout)
            return layout
    return None


def find_layout(model: PreTrainedModel) -> DecoderLayout:
    """Return the layout of the model: declared for its architecture, or discovered by perturbation.

    Raises:
        ValueError: nothing is declared and discovery cannot prove a layout; or weights are quantised.
    """
    from pruning.discovery import discover_layout

    _refuse_quantised(model)
    return declared_layout(model) or discover_layout(model)


def _check_modules(model: PreTrainedModel, layout: DecoderLayout) -> None:
    """Raise when a layer has an attention or MLP module, but not the projections that the layout declares in it."""
    attention, mlp = layout.attention, layout.mlp
    for index, layer in enumerate(decoder_layers(model, layout)):
        paths = [attention.query, attention.key, attention.value, attention.output]
        if not (layout.experts and find_module(layer, layout.experts.module)):
            paths += [path for path in (mlp.gate, mlp.up, mlp.down) if path]
        for path in paths:
            module = find_module(layer, path)
            if not is_linear(module) and not _was_cut_out(layer, path):
                found = type(module).__name__ if module is not None else "nothing"
                raise ValueError(
                    f"unsupported architecture: model_type={model.config.model_type!r} is declared as {layout.family}, "
                    f"but {layout.layers}.{index}.{path} is {found}, not a linear map"
                )


def _was_cut_out(layer: nn.Module, path: str) -> bool:
    """Say whether a projection, or the module it was in, left with its attention or MLP."""
    places = (find_module(layer, path), find_module(layer, path.rpartition(".")[0]))
    return any(isinstance(place, nn.Identity) or hasattr(place, "is_skipped") for place in places)


def _refuse_quantised(model: PreTrainedModel) -> None:
    """Raise when a weight is not made of floating-point numbers: rows cannot be cut out of packed blocks."""
    for name, parameter in model.named_parameters():
        if not torch.is_floating_point(parameter) or parameter.element_size() < 2:
            raise ValueError(
                f"{name} is stored as {parameter.dtype}: quantised weights cannot be pruned; load the model in float32, "
                "bfloat16 or float16 (model.dtype)"
            )
