"""Tiny models of every declared family: the real classes with random weights, and two layouts whose code lives on the hub."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from transformers import PreTrainedModel

from tests import hub_layouts

SIZES = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
"""Heads times their dimension differ from the hidden size on purpose, where a family allows it."""

PLAIN = {key: value for key, value in SIZES.items() if key != "head_dim"} | {"num_attention_heads": 4}


def _make(name: str, sizes: dict[str, Any], **options: Any) -> Callable[[], PreTrainedModel]:
    """Return a builder of `<name>ForCausalLM` from `<name>Config`."""

    def build() -> PreTrainedModel:
        model_class = getattr(hf, f"{name}Model" if name.endswith("LMHead") else f"{name}ForCausalLM")
        return model_class(model_class.config_class(**(sizes | options)))

    return build


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama_mha": _make("Llama", SIZES, num_key_value_heads=8),
    "llama_gqa_tied": _make("Llama", SIZES, num_key_value_heads=4, tie_word_embeddings=True),
    "llama_biased": _make("Llama", SIZES, num_key_value_heads=2, attention_bias=True, mlp_bias=True),
    "mistral": _make("Mistral", SIZES, num_key_value_heads=4, sliding_window=None),
    "qwen2": _make("Qwen2", SIZES, num_key_value_heads=4),
    "qwen3": _make("Qwen3", SIZES, num_key_value_heads=4),
    "gemma2": _make("Gemma2", SIZES, num_key_value_heads=4, sliding_window=16, query_pre_attn_scalar=8),
    "gemma3": _make("Gemma3", SIZES, num_key_value_heads=4, sliding_window=16, query_pre_attn_scalar=8),
    "phi3": _make("Phi3", PLAIN, num_key_value_heads=2),
    "olmo2": _make("Olmo2", PLAIN, num_key_value_heads=2),
    "glm": _make("Glm", SIZES, num_key_value_heads=4, attention_bias=True),
    "gpt_neox": _make("GPTNeoX", PLAIN),
    "opt": _make("OPT", PLAIN, ffn_dim=48, word_embed_proj_dim=32),
    "bloom": _make("Bloom", PLAIN | {"n_layer": 4, "n_head": 4}),
    "gpt2": _make("GPT2LMHead", PLAIN | {"n_layer": 4, "n_head": 4, "n_embd": 32, "n_inner": 48, "n_positions": 256}),
    "falcon_multi_query": _make("Falcon", PLAIN, ffn_hidden_size=48),
    "falcon_grouped": _make(
        "Falcon", PLAIN, ffn_hidden_size=48, new_decoder_architecture=True, num_kv_heads=2, bias=True
    ),
    "falcon_alibi": _make("Falcon", PLAIN, ffn_hidden_size=48, multi_query=False, alibi=True, parallel_attn=False),
    "qwen3_moe": _make(
        "Qwen3Moe",
        SIZES,
        num_key_value_heads=4,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        mlp_only_layers=[1],
    ),
    "mixtral": _make("Mixtral", SIZES, num_key_value_heads=4, num_local_experts=4, sliding_window=None),
    "baichuan": lambda: hub_layouts.BaichuanForCausalLM(hub_layouts.BaichuanConfig()),
    "chatglm": lambda: hub_layouts.ChatGLMForConditionalGeneration(hub_layouts.ChatGLMConfig()),
}


def build(name: str) -> PreTrainedModel:
    """Return a tiny model with random weights and biases, in evaluation mode; the same every time."""
    torch.manual_seed(1)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()
