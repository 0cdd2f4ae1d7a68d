"""Tiny models of architectures of transformers that no family declares."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from transformers import PreTrainedModel

OLD_NAMES = {"n_layer": 4, "n_head": 4, "n_embd": 32, "n_inner": 48, "n_positions": 256}
"""The sizes of `tests.zoo.PLAIN` as GPT-2 and its like call them."""


def make(name: str, sizes: dict[str, Any], **options: Any) -> PreTrainedModel:
    """Return a tiny `<name>ForCausalLM` with random weights, in evaluation mode; the same every time."""
    torch.manual_seed(1)
    model_class = getattr(hf, f"{name}ForCausalLM")
    return model_class(model_class.config_class(**(sizes | options))).eval()
