"""What discovery cannot prove it refuses, and it names the module."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from pruning.discovery import discover_layout
from tests import hub_layouts
from tests.pruning.undeclared import OLD_NAMES, make
from tests.zoo import PLAIN, SIZES, build


class MixingAttention(hub_layouts.BaichuanAttention):
    """Every second head hands its last number to the head after it."""

    mixes = True

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        batch, length, _ = hidden_states.shape
        packed = self.W_pack(hidden_states).view(batch, length, 3, self.num_heads, self.head_dim)
        query, key, value = (packed[:, :, part].transpose(1, 2) for part in range(3))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)
        return self.o_proj(mixed.roll(1, dims=-1) if self.mixes else mixed), None


class ReorderedAttention(hub_layouts.ChatGLMAttention):
    """Keys come first in the fused projection."""

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        kept, rows = self.query_key_value.forward, torch.arange(64).roll(-16)
        self.query_key_value.forward = lambda states: kept(states)[..., rows]
        try:
            return super().forward(hidden_states)
        finally:
            self.query_key_value.forward = kept


class InterleavedExperts(hf.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeExperts):
    """Rows of gate and up take turns."""

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        rows, channels = self.gate_up_proj[top_k_index], self.down_proj[top_k_index]
        gates = torch.einsum("nkfd,nd->nkf", rows, hidden_states)
        mixed = torch.einsum("nkdf,nkf->nkd", channels, F.silu(gates[..., ::2]) * gates[..., 1::2])
        return (mixed * top_k_weights[..., None]).sum(1)


class ShiftedRouter(hf.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeTopKRouter):
    """Row e chooses expert e + 1."""

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits, scores, indices = super().forward(hidden_states)
        return logits, scores, (indices + 1) % self.num_experts


class ShiftingNorm(hf.models.llama.modeling_llama.LlamaRMSNorm):
    """Every channel is multiplied by the weight of the channel before it."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden_states, hidden_states.shape[-1:]) * self.weight.roll(1)


class ConstantNorm(hf.models.llama.modeling_llama.LlamaRMSNorm):
    """Every channel has a factor of its own, which is no parameter."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) * torch.arange(1.0, hidden_states.shape[-1] + 1)


class ConstantMLP(hub_layouts.BaichuanMLP):
    """Every channel has a constant of its own, which is no parameter."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gated = F.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        return self.down_proj(gated * torch.arange(1.0, gated.shape[-1] + 1))


class PositionedModel(hub_layouts.BaichuanForCausalLM):
    """Positions are a fixed table."""

    def states(self, input_ids: torch.Tensor) -> torch.Tensor:
        return super().states(input_ids) + torch.arange(32.0)


def odd(family: str, path: str, odd_class: type) -> Callable[[], PreTrainedModel]:
    """Return a builder of a model of the zoo in which one module computes something else."""

    def builder() -> PreTrainedModel:
        model = build(family)
        model.get_submodule(path).__class__ = odd_class
        return model

    return builder


def one_mixing_layer() -> PreTrainedModel:
    """Return a model whose third layer mixes heads, though it is of the same class and sizes as the others."""
    model = build("baichuan")
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.__class__ = MixingAttention
        layer.self_attn.mixes = index == 2
    return model


def second_mlp() -> PreTrainedModel:
    """Return a model with an adapter beside the down projections."""
    model = build("baichuan")
    layer = model.model.layers[0]
    layer.adapter = nn.Sequential(nn.Linear(32, 4), nn.ReLU(), nn.Linear(4, 32))
    layer.register_forward_hook(lambda module, given, output: output + module.adapter(given[0]))
    return model


REFUSED: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "mixed heads": (odd("baichuan", "model.layers.2.self_attn", MixingAttention), r"layers\.2\.self_attn\.o_proj"),
    "mixed heads in a layer like others": (one_mixing_layer, r"layers\.2\.self_attn\.o_proj"),
    "keys before queries": (
        odd("chatglm", "transformer.encoder.layers.0.self_attention", ReorderedAttention),
        r"layers\.0\.self_attention\.query_key_value",
    ),
    "queries, values and keys in blocks": (lambda: make("CodeGen", PLAIN | OLD_NAMES, rotary_dim=4), r"h\.0\.attn\.qkv"),
    "a norm for every head": (
        lambda: make("StableLm", PLAIN, num_key_value_heads=2, qk_layernorm=True),
        r"layers\.0\.self_attn\.q_layernorm\.norms\.0",
    ),
    "norms with a row for every head": (
        lambda: make("Cohere", PLAIN, num_key_value_heads=2, use_qk_norm=True),
        r"layers\.0\.self_attn\.q_norm.*\(4, 8\)",
    ),
    "a norm that shifts": (odd("baichuan", "model.layers.1.input_layernorm", ShiftingNorm), r"1\.input_layernorm"),
    "a norm with constants": (odd("baichuan", "model.layers.1.input_layernorm", ConstantNorm), r"1\.input_layernorm"),
    "a parameter by head": (lambda: make("GptOss", SIZES, num_key_value_heads=4), r"layers\.0\.self_attn.*sinks"),
    "a bias by head under a name of its own": (
        lambda: make("Mpt", {"vocab_size": 258}, d_model=32, n_heads=4, n_layers=2),
        r"blocks\.0\.attn",
    ),
    "low-rank projections": (
        lambda: make("DeepseekV3", PLAIN, n_routed_experts=8, n_group=2, topk_group=1, moe_intermediate_size=16,
                     num_hidden_layers=1, q_lora_rank=16, kv_lora_rank=16),
        r"layers\.0\.self_attn\.q_b_proj",
    ),
    "gates and ups in turns": (odd("qwen3_moe", "model.layers.0.mlp.experts", InterleavedExperts), r"0\.mlp\.experts"),
    "a router that counts otherwise": (odd("qwen3_moe", "model.layers.3.mlp.gate", ShiftedRouter), r"3\.mlp\.gate"),
    "channels with constants": (odd("baichuan", "model.layers.1.mlp", ConstantMLP), r"layers\.1\.mlp\.down_proj"),
    "positions in no embedding": (odd("baichuan", "", PositionedModel), "lm_head"),
    "two MLPs": (second_mlp, r"layers\.0\.adapter"),
    "no decoder": (
        lambda: hf.T5ForConditionalGeneration(hf.T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=2, vocab_size=9)),
        "encoder",
    ),
    "no layers to repeat": (lambda: make("Mamba", PLAIN), r"backbone\.layers\.0\.mixer"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_what_cannot_be_proved_and_names_it(case: str) -> None:
    builder, module = REFUSED[case]
    model = builder()
    with pytest.raises(ValueError, match=rf"model_type='{model.config.model_type}'.*{module}.*docs/extending\.md"):
        discover_layout(model)
