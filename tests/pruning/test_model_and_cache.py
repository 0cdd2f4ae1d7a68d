"""Model sources and the cache: what they give, and what they refuse."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.cache import Cache
from pruning.model import PretrainedSource, RandomLlamaSource, byte_tokenizer, choose_device, fingerprint


def test_random_llama_is_the_same_for_the_same_seed(cache: Cache) -> None:
    sources = [RandomLlamaSource(name="t", layers=2, hidden_size=16, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (fingerprint(source.load(cache, "cpu")[0]) for source in sources)
    assert first == again
    assert first != other


def test_byte_tokenizer_gives_text_back(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "Größe:\n\ttab  two spaces 漢字"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == 258


def test_fingerprint_sees_one_bit(llama: PreTrainedModel) -> None:
    before = fingerprint(llama)
    weight = llama.model.layers[0].mlp.up_proj.weight.data
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))
    assert fingerprint(llama) != before


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./no/such/folder", "no such file or folder"),
        ("missing.gguf", "no such file or folder"),
        ("no-such-org/no-such-model", "(?s)cannot be loaded.*hub id"),
        ("package:no-such-package/x.gguf", "not installed"),
    ],
)
def test_paths_that_are_no_model_are_refused(cache: Cache, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainedSource(name="x", path=path).load(cache, "cpu")


def test_folders_and_files_that_are_no_model_are_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        PretrainedSource(name="x", path=str(tmp_path)).load(cache, "cpu")
    (tmp_path / "fake.gguf").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no GGUF file"):
        PretrainedSource(name="x", path=str(tmp_path / "fake.gguf")).load(cache, "cpu")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(ValueError, match=r"cannot be read|not supported"):
        PretrainedSource(name="x", path=str(tmp_path / "broken.gguf")).load(cache, "cpu")
    assert not list((cache.root / "unpacked_gguf").glob("*/"))


def test_a_tokenizer_of_another_model_is_refused(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, tmp_path: Path
) -> None:
    """Its text would become tokens without an embedding. Added tokens that no text holds are no reason."""
    source = PretrainedSource(name="x", path=str(tmp_path))
    llama.save_pretrained(tmp_path)
    other = byte_tokenizer()
    other.add_tokens(["<pad>"])
    other.save_pretrained(tmp_path)
    assert len(source.load(cache, "cpu")[1]) == 259
    llama.resize_token_embeddings(257)
    llama.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"model\.path=.*tokens up to 257, but .* embeddings for 0 to 256.*own tokenizer"
    ):
        source.load(cache, "cpu")


def test_quantised_weights_are_refused(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, tmp_path: Path
) -> None:
    llama.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="quantised"):
        PretrainedSource(name="x", path=str(tmp_path)).load(cache, "cpu")


def test_an_unknown_device_is_refused() -> None:
    assert choose_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="device=cuda:99"):
        choose_device("cuda:99")


def test_a_damaged_entry_is_computed_again(cache: Cache) -> None:
    calls = []

    def compute() -> list[float]:
        calls.append(1)
        return [0.1, 2.0]

    for _ in range(2):
        assert cache.json("kind", {"a": 1}, compute) == [0.1, 2.0]
    assert len(calls) == 1
    (entry,) = (cache.root / "kind").glob("*.json")
    entry.write_text(entry.read_text().replace("0.1", "0.7"))
    assert cache.json("kind", {"a": 1}, compute) == [0.1, 2.0]
    entry.write_text("half a fi")
    assert cache.json("kind", {"a": 1}, compute) == [0.1, 2.0]
    assert len(calls) == 3
    cache.json("kind", {"a": 2}, compute)
    assert len(calls) == 4


def test_a_damaged_folder_is_built_again_and_a_failed_build_leaves_nothing(cache: Cache) -> None:
    folder = cache.folder("kind", {}, lambda path: (path / "f").write_text("whole") and None)
    (folder / "f").write_text("changed")
    again = cache.folder("kind", {}, lambda path: (path / "f").write_text("whole") and None)
    assert (again / "f").read_text() == "whole"

    def fail(path: Path) -> None:
        (path / "f").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        cache.folder("other", {}, fail)
    assert not [path for path in (cache.root / "other").iterdir() if path.suffix != ".lock"]


def test_two_that_ask_at_once_compute_once(cache: Cache) -> None:
    calls = []
    gate = threading.Event()

    def compute() -> int:
        calls.append(1)
        gate.wait(1)
        return 7

    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(cache.json("k", {}, compute))) for _ in range(3)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert results == [7, 7, 7]
    assert len(calls) == 1
