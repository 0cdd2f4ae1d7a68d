"""Small decoders with the module layouts of two architectures whose own code lives on the hub.

Only what pruning looks at is theirs: names, fused projections, and how the forward pass takes them apart. Positions are
rotary where the originals are; there is no key-value cache.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb


class HubConfig(PreTrainedConfig):
    """Widths under the names that the subclasses' originals use."""

    def __init__(
        self,
        vocab_size: int = 258,
        hidden_size: int = 32,
        num_hidden_layers: int = 3,
        num_attention_heads: int = 4,
        **kwargs: object,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        super().__init__(**kwargs)


class BaichuanConfig(HubConfig):
    model_type = "baichuan"

    def __init__(self, intermediate_size: int = 48, **kwargs: object) -> None:
        self.intermediate_size = intermediate_size
        super().__init__(**kwargs)  # type: ignore[arg-type]


class ChatGLMConfig(HubConfig):
    model_type = "chatglm"

    def __init__(self, ffn_hidden_size: int = 48, multi_query_group_num: int = 2, **kwargs: object) -> None:
        self.ffn_hidden_size = ffn_hidden_size
        self.multi_query_group_num = multi_query_group_num
        super().__init__(**kwargs)  # type: ignore[arg-type]


def rotate(query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary embedding of (B, heads, T, d) tensors."""
    length, dim = query.shape[-2:]
    frequencies = 1 / 10000 ** (torch.arange(0, dim, 2) / dim)
    angles = torch.outer(torch.arange(length), frequencies).repeat(1, 2)[None]
    return apply_rotary_pos_emb(query, key, angles.cos(), angles.sin())


class BaichuanAttention(nn.Module):
    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = self.hidden_size // self.num_heads
        self.W_pack = nn.Linear(self.hidden_size, 3 * self.num_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, self.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        batch, length, _ = hidden_states.shape
        packed = self.W_pack(hidden_states).view(batch, length, 3, self.num_heads, self.head_dim)
        query, key, value = (packed[:, :, part].transpose(1, 2) for part in range(3))
        query, key = rotate(query, key)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1)), None


class BaichuanMLP(nn.Module):
    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class BaichuanLayer(nn.Module):
    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        self.self_attn = BaichuanAttention(config)
        self.mlp = BaichuanMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states))[0]
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class ChatGLMAttention(nn.Module):
    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.num_attention_heads_per_partition = config.num_attention_heads
        self.num_multi_query_groups_per_partition = config.multi_query_group_num
        self.hidden_size_per_attention_head = config.hidden_size // config.num_attention_heads
        width = self.hidden_size_per_attention_head
        rows = (config.num_attention_heads + 2 * config.multi_query_group_num) * width
        self.query_key_value = nn.Linear(config.hidden_size, rows, bias=True)
        self.dense = nn.Linear(config.num_attention_heads * width, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        batch, length, _ = hidden_states.shape
        heads, groups = self.num_attention_heads_per_partition, self.num_multi_query_groups_per_partition
        width = self.hidden_size_per_attention_head
        parts = self.query_key_value(hidden_states).split([heads * width, groups * width, groups * width], dim=-1)
        query, key, value = (part.view(batch, length, -1, width).transpose(1, 2) for part in parts)
        query, key = rotate(query, key)
        key, value = (part.repeat_interleave(heads // groups, dim=1) for part in (key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.dense(mixed.transpose(1, 2).reshape(batch, length, -1)), None


class ChatGLMMLP(nn.Module):
    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=False)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, up = self.dense_h_to_4h(hidden_states).chunk(2, dim=-1)
        return self.dense_4h_to_h(F.silu(gate) * up)


class ChatGLMLayer(nn.Module):
    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.input_layernorm = LlamaRMSNorm(config.hidden_size)
        self.self_attention = ChatGLMAttention(config)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size)
        self.mlp = ChatGLMMLP(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states + self.self_attention(self.input_layernorm(hidden_states))[0]
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class HubModel(PreTrainedModel, GenerationMixin):
    """The part that both share: embedding, layers, norm, head, loss."""

    config_class = HubConfig
    _no_split_modules: list[str] = []

    def states(self, input_ids: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, logits_to_keep: int = 0, **_: object
    ) -> CausalLMOutput:
        logits = self.get_output_embeddings()(self.states(input_ids)[:, -logits_to_keep:])
        loss = None if labels is None else F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **_: object) -> dict[str, torch.Tensor]:
        return {"input_ids": input_ids}


class BaichuanForCausalLM(HubModel):
    config_class = BaichuanConfig

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList(BaichuanLayer(config) for _ in range(config.num_hidden_layers))
        self.model.norm = LlamaRMSNorm(config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def states(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden_states = self.model.embed_tokens(input_ids)
        for layer in self.model.layers:
            hidden_states = layer(hidden_states)
        return self.model.norm(hidden_states)


class ChatGLMForConditionalGeneration(HubModel):
    config_class = ChatGLMConfig

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.transformer = nn.Module()
        self.transformer.embedding = nn.Module()
        self.transformer.embedding.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.transformer.encoder = nn.Module()
        self.transformer.encoder.layers = nn.ModuleList(ChatGLMLayer(config) for _ in range(config.num_hidden_layers))
        self.transformer.encoder.final_layernorm = LlamaRMSNorm(config.hidden_size)
        self.transformer.output_layer = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.embedding.word_embeddings

    def get_output_embeddings(self) -> nn.Module:
        return self.transformer.output_layer

    def states(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden_states = self.transformer.embedding.word_embeddings(input_ids)
        for layer in self.transformer.encoder.layers:
            hidden_states = layer(hidden_states)
        return self.transformer.encoder.final_layernorm(hidden_states)
