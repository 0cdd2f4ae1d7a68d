"""GGUF files read back by gguf's own reader and by transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel

from tests.pruning.gguf_files import arrays, as_transformers, assert_same, exported, field, tensors
from tests.pruning.narrow import HEAD_DIM, narrow, skip_attention, skip_mlp, unequal, with_added_biases
from tests.zoo import PLAIN, SIZES, _make, build

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


@pytest.mark.parametrize("name", ["llama_mha", "llama_gqa_tied", "mistral", "qwen2", "llama_narrow"])
def test_transformers_reads_equal_widths_to_the_same_logits(name: str, tmp_path: Path, tokens: torch.Tensor) -> None:
    if name == "qwen2":
        model = _make("Qwen2", PLAIN, num_key_value_heads=2)().eval()
    else:
        model = build("llama_gqa_tied" if name == "llama_narrow" else name)
    if name == "llama_narrow":
        for layer in model.model.layers:
            narrow(layer, kv_heads=2, queries_each=2, channels=20)
    reader = exported(model, tmp_path)
    assert field(reader, "general.architecture") == ("qwen2" if name == "qwen2" else "llama")
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, model(tokens).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama_gqa_tied", "llama_biased", "mistral", "qwen2"])
def test_unequal_widths_are_written_layer_by_layer(name: str, tmp_path: Path) -> None:
    model = unequal(build(name))
    grouped = model.config.num_attention_heads // model.config.num_key_value_heads
    whole = model.config.num_key_value_heads
    reader = exported(model, tmp_path)
    assert field(reader, "general.architecture") == "deci"
    assert arrays(reader) == [[2 * grouped, 2, grouped * whole, 1], [2, 2, whole, 1], [40, 30, 48, 48]]
    tied = name == "llama_gqa_tied"
    assert_same(as_transformers(tensors(reader), [0, 1, 2, 3], paired=True), model, tied)


@pytest.mark.parametrize(("name", "architecture"), [("llama", "llama"), ("unequal", "deci"), ("qwen2", "llama")])
def test_added_biases_are_written_where_they_are_computed(name: str, architecture: str, tmp_path: Path) -> None:
    model = _make("Qwen2", PLAIN, num_key_value_heads=2)().eval() if name == "qwen2" else build("llama_gqa_tied")
    with_added_biases(unequal(model) if name == "unequal" else model)
    reader = exported(model, tmp_path)
    assert field(reader, "general.architecture") == architecture
    assert_same(as_transformers(tensors(reader), [0, 1, 2, 3], paired=True), model, tied=name != "qwen2")


def test_unequal_qwen3_is_written_with_fused_heads(tmp_path: Path) -> None:
    model = unequal(_make("Qwen3", SIZES, num_key_value_heads=4, tie_word_embeddings=True)())
    reader = exported(model, tmp_path)
    assert field(reader, "general.architecture") == "openelm"
    assert arrays(reader) == [[4, 2, 8, 1], [2, 2, 4, 1], [40, 30, 48, 48]]
    found = tensors(reader)
    for index, (queries, keys) in enumerate([(4, 2), (2, 2), (8, 4), (1, 1)]):
        rows = found.pop(f"blk.{index}.attn_qkv.weight")
        sizes = [count * HEAD_DIM for count in (queries, keys, keys)]
        for part, values in zip("qkv", rows.split(sizes), strict=True):
            found[f"blk.{index}.attn_{part}.weight"] = values
    assert_same(as_transformers(found, [0, 1, 2, 3], paired=False), model, tied=True)


def test_equal_qwen3_keeps_its_own_architecture(tmp_path: Path) -> None:
    model = build("qwen3")
    reader = exported(model, tmp_path)
    assert field(reader, "general.architecture") == "qwen3"
    assert arrays(reader) == [8, 4, 48]
    assert_same(as_transformers(tensors(reader), [0, 1, 2, 3], paired=False), model, tied=False)


def test_sizes_and_constants(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 12345.0}
    model = _make(
        "Mistral", SIZES, num_key_value_heads=4, sliding_window=100, rms_norm_eps=0.25, rope_parameters=rope
    )()
    reader = exported(model, tmp_path)
    expected = {
        "block_count": 4,
        "embedding_length": 32,
        "vocab_size": 258,
        "context_length": 100,
        "attention.key_length": 8,
        "attention.value_length": 8,
        "rope.dimension_count": 8,
        "rope.freq_base": 12345.0,
        "attention.layer_norm_rms_epsilon": 0.25,
    }
    assert {name: field(reader, f"{{arch}}.{name}") for name in expected} == expected
    assert "rope_freqs.weight" not in tensors(reader)


def test_what_is_cut_out_adds_nothing(tmp_path: Path) -> None:
    model = build("llama_gqa_tied")
    first, second, third, fourth = model.model.layers
    skip_attention(first)
    skip_attention(second)
    skip_mlp(second)
    skip_mlp(third)
    skip_attention(fourth)
    reader = exported(model, tmp_path)
    assert arrays(reader) == [[1, 8, 0], [1, 4, 0], [48, 1, 48]]
    assert field(reader, "deci.block_count") == 3
    found = tensors(reader)
    assert not found.pop("blk.0.attn_output.weight").any()
    assert not found.pop("blk.1.ffn_down.weight").any()
    zeros = [f"blk.0.attn_{part}.weight" for part in ("norm", "q", "k", "v")]
    for name in [*zeros, *(f"blk.1.ffn_{part}.weight" for part in ("norm", "gate", "up"))]:
        found.pop(name)
    assert_same(as_transformers(found, [0, 2, 3], paired=True), model, tied=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_matrices_are_rounded_and_norms_are_not(dtype: torch.dtype, tmp_path: Path) -> None:
    model = build("llama_gqa_tied")
    found = {tensor.name: tensor for tensor in exported(model, tmp_path, dtype).tensors}
    down = torch.frombuffer(bytearray(found["blk.2.ffn_down.weight"].data.tobytes()), dtype=dtype).view(32, 48)
    assert torch.equal(down, model.model.layers[2].mlp.down_proj.weight.to(dtype))
    norm = torch.from_numpy(np.array(found["blk.2.ffn_norm.weight"].data))
    assert torch.equal(norm, model.model.layers[2].post_attention_layernorm.weight)


def test_llama3_scaling_is_written_as_factors(tmp_path: Path) -> None:
    """The rule of Llama 3.1: long waves are stretched by the factor, short ones kept, those between in proportion."""
    model = _make("Llama", SIZES, num_key_value_heads=4, rope_parameters=LLAMA3)()
    expected = []
    for i in range(HEAD_DIM // 2):
        wave = 2 * math.pi * 10000.0 ** (2 * i / HEAD_DIM)
        smooth = min(max((128 / wave - 1.0) / (4.0 - 1.0), 0.0), 1.0)
        expected.append(1 / (smooth + (1 - smooth) / 8.0))
    assert 1.0 < expected[1] < 8.0
    assert tensors(exported(model, tmp_path))["rope_freqs.weight"].tolist() == pytest.approx(expected, rel=1e-5)


def with_uneven_heads() -> PreTrainedModel:
    model = build("llama_gqa_tied")
    narrow(model.model.layers[1], kv_heads=2, queries_each=2, channels=48)
    model.model.layers[1].self_attn.o_proj = torch.nn.Linear(3 * HEAD_DIM, 32)
    return model


def without_attention() -> PreTrainedModel:
    model = build("llama_gqa_tied")
    for layer in model.model.layers:
        skip_attention(layer)
    return model


def with_adapter() -> PreTrainedModel:
    model = build("llama_gqa_tied")
    model.model.layers[0].mlp.lora_A = torch.nn.Linear(32, 4)
    return model


LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
REFUSED: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "family": (lambda: build("gemma2"), "model_type='gemma2'.*llama, mistral, qwen2, qwen3 can"),
    "untied": (lambda: unequal(build("qwen3")), "qwen3 with layers of unequal widths"),
    "scaled": (_make("Qwen3", SIZES, num_key_value_heads=4, rope_parameters=LINEAR), "scaled rotary"),
    "added": (lambda: with_added_biases(build("qwen3")), "qwen3 with the biases that compensation=bias added"),
    "biased": (_make("Qwen3", SIZES, num_key_value_heads=4, attention_bias=True), "attention_bias=true"),
    "uneven": (with_uneven_heads, "layer 1: 3 query heads cannot share 2 KV heads"),
    "no_attention": (without_attention, "no layer of the model has attention"),
    "activation": (_make("Llama", SIZES, num_key_value_heads=4, hidden_act="gelu"), "hidden_act='gelu'"),
    "yarn": (
        _make("Llama", SIZES, num_key_value_heads=4, rope_parameters=LINEAR | {"rope_type": "yarn"}),
        "rope_type='yarn'",
    ),
    "adapters": (with_adapter, "merge adapters first"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_llama_cpp_cannot_compute_is_refused_before_writing(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    (tmp_path / "model.gguf").write_text("older")
    model = make()
    with pytest.raises(ValueError, match=message):
        exported(model, tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("model.gguf", "older")]


def test_numbers_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    model = build("llama_gqa_tied")
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match="blk.3.ffn_up.weight holds numbers beyond 65504; choose bfloat16"):
        exported(model, tmp_path, torch.float16)
    assert list(tmp_path.iterdir()) == []
