"""Pruned models as ordinary checkpoints: config.json, safetensors, tokenizer; no pickles.

The widths of each layer stand in the configuration's own `per_layer_config`. transformers records that field but its
LLaMA code does not build from it yet, so a model with unequal widths is loaded here: the ordinary class is built, its
projections are resized, and transformers' own loader fills them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pruning.families import DecoderLayout, decoder_layers, find_layout, head_dimension
from pruning.files import require_free_space, whole_folder, write_text
from pruning.model import fingerprint


def is_pruned(config: PreTrainedConfig) -> bool:
    """Say whether a configuration describes layers of unequal widths."""
    return config.is_heterogeneous


def save_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, model_card: str = ""
) -> None:
    """Write the model and its tokenizer to `folder`, and check that they load again as they are.

    Raises:
        RuntimeError: what was written does not load to the same weights; `folder` is then as it was before.
    """
    with whole_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if model_card:
            write_text(temporary / "README.md", model_card)
        again = load_checkpoint(temporary, model.dtype)
        if fingerprint(again) != fingerprint(model):
            raise RuntimeError(f"{folder}: the saved model does not load to the weights it was saved from")


def require_space_for(model: PreTrainedModel, folder: Path) -> None:
    """Raise when the disk that holds `folder` has no room for a checkpoint of `model`, with a tenth to spare."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    require_free_space(folder, int(1.1 * size) + 50 * 2**20, "the checkpoint")


def load_checkpoint(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a causal language model from a folder, pruned or not, in evaluation mode."""
    if is_pruned(AutoConfig.from_pretrained(folder)):
        return load_pruned(folder, dtype)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def load_pruned(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a model whose layers have unequal widths, in evaluation mode."""
    config = AutoConfig.from_pretrained(folder)
    config.allow_global_per_layer_attribute_access = True
    base: Any = AutoModelForCausalLM._model_mapping[type(config)]
    return pruned_class(base).from_pretrained(folder, config=config, dtype=dtype).eval()


def pruned_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return `base` with a constructor that gives every layer the widths in `config.per_layer_config`.

    It keeps the name of `base`, so that what it saves names the ordinary architecture.
    """

    def __init__(self: PreTrainedModel, config: PreTrainedConfig) -> None:
        base.__init__(self, config)
        resize_layers(self, find_layout(self))

    return type(base.__name__, (base,), {"__init__": __init__, "__module__": base.__module__})


def resize_layers(model: PreTrainedModel, layout: DecoderLayout) -> None:
    """Give the projections of every layer the sizes in `config.per_layer_config`; their values are left unset."""
    head_dim = head_dimension(model, layout)
    for layer, config in zip(decoder_layers(model, layout), model.config.per_layer_config, strict=True):
        queries = config.num_attention_heads * head_dim
        keys = config.num_key_value_heads * head_dim
        channels = config.intermediate_size
        for path in (layout.query, layout.key, layout.value):
            _resize(layer.get_submodule(path), queries if path == layout.query else keys, None)
        _resize(layer.get_submodule(layout.output), None, queries)
        _resize(layer.get_submodule(layout.gate), channels, None)
        _resize(layer.get_submodule(layout.up), channels, None)
        _resize(layer.get_submodule(layout.down), None, channels)


def _resize(linear: nn.Module, rows: int | None, columns: int | None) -> None:
    assert isinstance(linear, nn.Linear)
    linear.out_features = linear.out_features if rows is None else rows
    linear.in_features = linear.in_features if columns is None else columns
    linear.weight = nn.Parameter(linear.weight.new_empty(linear.out_features, linear.in_features))
    if linear.bias is not None and rows is not None:
        linear.bias = nn.Parameter(linear.bias.new_empty(rows))
