"""A copy of a model whose linear maps are held in 4 bits, for adapters to be trained on (QLoRA)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import nn
from transformers import PreTrainedModel


def require_bitsandbytes(device: str) -> None:
    """Raise where weights cannot be held in 4 bits."""
    if device != "cuda":
        raise ValueError(
            f"recovery.quantize=nf4: needs an NVIDIA GPU, and the run is on device={device}; use recovery.quantize=null"
        )
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            "recovery.quantize=nf4: needs the package bitsandbytes (pip install bitsandbytes), or use recovery.quantize=null"
        )


def quantized_copy(model: PreTrainedModel, names: Sequence[str]) -> PreTrainedModel:
    """Return a copy of the model with these linear maps in NF4, which compute in the model's own type.

    Dettmers et al., "QLoRA: efficient finetuning of quantized LLMs" (2023).
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    quantized = copy.deepcopy(model)
    for name in names:
        linear = quantized.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            continue  # GPT-2's transposed maps have no 4-bit form
        small = Linear4bit(
            linear.in_features, linear.out_features, linear.bias is not None, model.dtype, quant_type="nf4"
        )
        small.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
        if linear.bias is not None:
            small.bias = linear.bias
        quantized.set_submodule(name, small.to(model.device))
    torch.cuda.empty_cache()
    return quantized
