"""A merged LoRA adapter taken apart again: the weights as they were, and beside them the factors as trainable parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel


@contextmanager
def unmerged(model: PreTrainedModel, adapter: Path) -> Iterator[tuple[Any, list[str]]]:
    """Hold the adapter beside the weights it was merged into, and put the merged weights back at the end, bit by bit.

    Yields:
        The adapted model, and the names of its factors A and B.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    adapted: Any = PeftModel.from_pretrained(model, str(adapter), is_trainable=True, autocast_adapter_dtype=True)
    layers: list[Any] = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    weights = [layer.get_base_layer().weight for layer in layers]
    merged = [weight.detach().clone() for weight in weights]
    try:
        for layer in layers:
            layer.merged_adapters.extend(layer.active_adapters)
            layer.unmerge()
        yield adapted.eval(), [name for name, _ in adapted.named_parameters() if "lora_" in name]
    finally:
        adapted.unload()
        with torch.no_grad():
            for weight, value in zip(weights, merged, strict=True):
                weight.copy_(value)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
