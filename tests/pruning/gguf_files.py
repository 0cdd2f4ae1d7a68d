"""Reading GGUF files back with gguf's own reader, without the code that wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel

from pruning.export.gguf_file import export_gguf
from pruning.model import byte_tokenizer
from tests.pruning.narrow import HEAD_DIM


def exported(model: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.float32) -> gguf.GGUFReader:
    export_gguf(model, byte_tokenizer(), folder / "model.gguf", dtype)
    return gguf.GGUFReader(folder / "model.gguf")


def field(reader: gguf.GGUFReader, name: str) -> Any:
    return reader.get_field(name.replace("{arch}", reader.get_field("general.architecture").contents())).contents()


def arrays(reader: gguf.GGUFReader) -> list[Any]:
    names = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    return [field(reader, f"{{arch}}.{name}") for name in names]


def tensors(reader: gguf.GGUFReader) -> dict[str, torch.Tensor]:
    return {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}


def half_split(values: torch.Tensor) -> torch.Tensor:
    """Undo the neighbouring of rotary pairs, row by row: row 2i of a head goes to i, row 2i + 1 to i + d/2."""
    result = torch.empty_like(values)
    for row in range(values.shape[0]):
        head, place = divmod(row, HEAD_DIM)
        result[head * HEAD_DIM + place // 2 + (place % 2) * HEAD_DIM // 2] = values[row]
    return result


def as_transformers(found: dict[str, torch.Tensor], layers: list[int], paired: bool) -> dict[str, torch.Tensor]:
    """Return the tensors of a file under transformers' names; `layers` are the numbers of its layers in the model."""
    parts = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    result = {}
    for name, values in found.items():
        stem, ending = name.rsplit(".", 1)
        if stem in top:
            result[f"{top[stem]}.{ending}"] = values
            continue
        _, index, part = stem.split(".")
        if paired and part in ("attn_q", "attn_k"):
            values = half_split(values)
        result[f"model.layers.{layers[int(index)]}.{parts[part]}.{ending}"] = values
    return result


def assert_same(found: dict[str, torch.Tensor], model: PreTrainedModel, tied: bool) -> None:
    expected = {name: value for name, value in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    assert sorted(found) == sorted(expected)
    for name, values in expected.items():
        assert torch.equal(found[name], values), name
