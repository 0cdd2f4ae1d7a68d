"""Export to GGUF, the file format of llama.cpp and of the programs built on it.

The file holds what the model holds: with float32 (or the checkpoint's own type) not a number changes, only the order of
query and key rows where llama.cpp rotates other pairs of numbers than transformers. Norms and biases are always float32,
as llama.cpp wants them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    GGML_QUANT_VERSION,
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    MODEL_TENSOR,
    TENSOR_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.export.gguf_layers import (
    PAIRED_ROTATION,
    PER_LAYER,
    SUPPORTED,
    GgufLayer,
    choose_architecture,
    embedding,
    fuse_heads,
    gguf_layers,
    is_tied,
    model_head_dim,
    pair_rotation,
)
from pruning.export.gguf_vocabulary import add_vocabulary, read_vocabulary
from pruning.families import declared_layout
from pruning.files import beside

KINDS = {
    torch.float32: (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    torch.float16: (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    torch.bfloat16: (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}


def export_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, dtype: torch.dtype) -> None:
    """Write a model, pruned or not, and its tokenizer to one GGUF file.

    Args:
        model: llama, mistral, qwen2 or qwen3; left as it is.
        tokenizer: with a byte-pair encoding.
        path: what to write; replaced as a whole or not at all.
        dtype: float32, float16 or bfloat16, of the matrices.

    Raises:
        ValueError: llama.cpp has no code for such a model or tokenizer, or float16 cannot hold a weight.
    """
    _check_supported(model)
    layout = declared_layout(model)
    assert layout is not None
    layers, head_dim = gguf_layers(model, layout), model_head_dim(model, layout)
    factors = rotation_factors(model, head_dim)
    architecture = choose_architecture(model, layers, head_dim, factors is None)
    vocabulary = read_vocabulary(tokenizer, embedding(model).shape[0])
    writer = GGUFWriter(None, MODEL_ARCH_NAMES[architecture])
    writer.add_name(path.stem)
    writer.add_file_type(KINDS[dtype][1])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    _add_sizes(writer, model, layers, head_dim, architecture)
    add_vocabulary(writer, vocabulary, tokenizer)
    _write(writer, path, list(_named_tensors(model, layers, architecture, factors)), dtype)


def rotation_factors(model: PreTrainedModel, head_dim: int) -> torch.Tensor | None:
    """Return by what each rotary frequency is divided, (head_dim / 2,), or None where they are not scaled.

    Raises:
        ValueError: the scaling depends on the length of the text, or scales more than the frequencies.
    """
    rope = model.config.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        raise ValueError(f"rope_type={kind!r} cannot be exported; default, linear and llama3 can")
    plain = rope["rope_theta"] ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    return (plain / model.get_buffer("model.rotary_emb.inv_freq").double().cpu()).float()


def _check_supported(model: PreTrainedModel) -> None:
    """Raise unless the model is computed as llama.cpp's architectures compute it."""
    config = model.config
    if config.model_type not in SUPPORTED:
        raise ValueError(f"model_type={config.model_type!r} cannot be exported to GGUF; {', '.join(SUPPORTED)} can")
    if config.hidden_act not in ("silu", "swish"):
        raise ValueError(f"hidden_act={config.hidden_act!r} cannot be exported to GGUF; llama.cpp computes silu here")


def _add_sizes(
    writer: GGUFWriter, model: PreTrainedModel, layers: list[GgufLayer], head_dim: int, architecture: MODEL_ARCH
) -> None:
    """Put the sizes and constants of the model into the metadata: one number a width, or one for every layer."""
    config, (vocabulary, hidden) = model.config, embedding(model).shape
    widths: list[Any] = list(zip(*(layer.widths for layer in layers), strict=True))
    if architecture not in PER_LAYER:
        widths = [numbers[0] for numbers in widths]
    writer.add_head_count(widths[0])
    writer.add_head_count_kv(widths[1])
    writer.add_feed_forward_length(widths[2])
    writer.add_block_count(len(layers))
    writer.add_vocab_size(vocabulary)
    writer.add_embedding_length(hidden)
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    writer.add_context_length(min(window, config.max_position_embeddings))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _named_tensors(
    model: PreTrainedModel, layers: list[GgufLayer], architecture: MODEL_ARCH, factors: torch.Tensor | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of the file with its name in GGUF."""
    names = get_tensor_name_map(architecture, len(layers))

    def named(name: str, values: torch.Tensor) -> tuple[str, torch.Tensor]:
        found = names.get_name(name, (".weight", ".bias"))
        if found is None:
            raise ValueError(
                f"{name} has no place in llama.cpp's {MODEL_ARCH_NAMES[architecture]}; merge adapters first"
            )
        return found, values.detach()

    if factors is not None:
        yield f"{TENSOR_NAMES[MODEL_TENSOR.ROPE_FREQS]}.weight", factors
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        if name != "lm_head.weight" or not is_tied(model):
            yield named(name, model.get_parameter(name))
    for index, layer in enumerate(layers):
        heads = {"self_attn.q_proj": layer.query_heads, "self_attn.k_proj": layer.kv_heads}
        tensors = fuse_heads(layer.tensors) if architecture is MODEL_ARCH.OPENELM else layer.tensors
        for name, values in tensors.items():
            if architecture in PAIRED_ROTATION and (count := heads.get(name.rpartition(".")[0])):
                values = pair_rotation(values, count)
            yield named(f"model.layers.{index}.{name}", values)


def _write(writer: GGUFWriter, path: Path, tensors: list[tuple[str, torch.Tensor]], dtype: torch.dtype) -> None:
    """Write metadata and tensors beside `path`, one tensor in memory at a time, and rename the file into place."""
    types = [dtype if values.ndim > 1 else torch.float32 for _, values in tensors]
    for (name, values), kind in zip(tensors, types, strict=True):
        size = values.numel() * kind.itemsize
        writer.add_tensor_info(name, values.shape, np.dtype(np.float32), size, raw_dtype=KINDS[kind][0])
    temporary = beside(path)
    try:
        writer.write_header_to_file(temporary)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for (name, values), kind in zip(tensors, types, strict=True):
            writer.write_tensor_data(_numbers(name, values, kind))
        writer.close()
        temporary.replace(path)
    except BaseException:
        writer.close()
        temporary.unlink(missing_ok=True)
        raise


def _numbers(name: str, values: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    """Return the numbers of a tensor as they lie in the file; bfloat16, which numpy does not have, as its bits."""
    converted = values.to("cpu", dtype).contiguous()
    if not torch.isfinite(converted).all() and torch.isfinite(values).all():
        raise ValueError(f"dtype=float16: {name} holds numbers beyond 65504; choose bfloat16 or float32")
    return (converted.view(torch.int16) if dtype is torch.bfloat16 else converted).numpy()
