"""Text sources, token blocks, model sources and the cache: what they give, and what they refuse."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.blocks import draw_texts, evenly_spaced_windows, token_blocks
from pruning.cache import Cache
from pruning.model import PretrainedSource, RandomLlamaSource, choose_device, fingerprint
from pruning.text import (
    BundledPassages,
    HubText,
    LocalText,
    SelfGenerated,
    read_corpus,
    read_documents,
)

WORDS = [f"document {i} says " + "word " * 30 for i in range(40)]


def test_blocks_are_the_joined_text_in_order(tokenizer: PreTrainedTokenizerBase) -> None:
    blocks = token_blocks(["abc", "de"], tokenizer, 3, 2, purpose="x")
    assert tokenizer.decode(blocks.flatten()) == "abc\n\nd"


def test_a_seed_draws_another_order_and_always_the_same(tokenizer: PreTrainedTokenizerBase) -> None:
    first, again, other = (token_blocks(WORDS, tokenizer, 20, 5, purpose="x", seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_windows_are_spread_over_the_whole_text(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "".join(chr(97 + i) * 10 for i in range(20))
    windows = evenly_spaced_windows([text], tokenizer, 10, 4, purpose="x")
    assert [tokenizer.decode(row)[0] for row in windows] == ["a", "f", "k", "p"]
    assert len(evenly_spaced_windows([text + "tail"], tokenizer, 10, None, purpose="x")) == 20


def test_too_short_a_text_is_refused_with_both_numbers(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=r"data\.calibration_samples: 4 blocks of 100 tokens need 400 .* only 5"):
        token_blocks(["abc"], tokenizer, 100, 4, purpose="data.calibration_samples")
    with pytest.raises(ValueError, match=r"stability\.text=x"):
        evenly_spaced_windows(["abc"], tokenizer, 100, 4, purpose="stability.text=x")


def test_local_documents_are_split_without_overlap(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, tmp_path: Path
) -> None:
    file = tmp_path / "text.txt"
    file.write_text("\n\n\n".join(WORDS))
    documents = LocalText(path=str(file), heldout_fraction=0.25).documents(llama, tokenizer, cache, 0)
    assert len(documents.heldout) == 10
    assert not set(documents.train) & set(documents.heldout)
    assert sorted(documents.train + documents.heldout) == sorted(word.strip() for word in WORDS)


def test_jsonl_templates_and_their_errors(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"instruction": "add", "output": "3"}\n\n{"instruction": "sub", "output": "1"}\n')
    assert read_documents(str(file), "{instruction}: {output}") == ["add: 3", "sub: 1"]
    with pytest.raises(ValueError, match="line 1: no field 'text'.*instruction"):
        read_documents(str(file))
    file.write_text('{"text": "fine"}\nbroken\n')
    with pytest.raises(ValueError, match="line 2 is no JSON"):
        read_documents(str(file))


@pytest.mark.parametrize(("name", "message"), [("none.txt", "no such file"), ("a.csv", "must be a .txt")])
def test_files_that_cannot_be_text_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ValueError, match=message):
        read_documents(str(tmp_path / name), key="data.path")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="no text in it"):
        read_documents(str(tmp_path / "empty.txt"))


def test_unknown_corpora_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"stability\.text=wikipdia.*passages.*wikipedia"):
        read_corpus("wikipdia", "stability.text")


def test_bundled_halves_are_disjoint(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache) -> None:
    documents = BundledPassages().documents(llama, tokenizer, cache, 0)
    assert len(documents.train) + len(documents.heldout) == 5153
    assert not set(documents.train) & set(documents.heldout)


def test_hub_text_reads_a_local_folder_in_the_hubs_formats(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, tmp_path: Path
) -> None:
    rows = [{"instruction": f"say {i}", "output": str(i)} for i in range(20)]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    source = HubText(path=str(tmp_path), template="{instruction} {output}", heldout_fraction=0.2)
    documents = source.documents(llama, tokenizer, cache, 0)
    assert len(documents.train) == 16
    assert documents.train[0] == "say 0 0"


def test_hub_text_without_a_network_says_what_to_use(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache
) -> None:
    with pytest.raises(ValueError, match=r"data\.path=no/such-set.*data=bundled"):
        HubText(path="no/such-set").documents(llama, tokenizer, cache, 0)


def test_the_model_writes_the_same_text_for_the_same_seed(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, tmp_path: Path
) -> None:
    source = SelfGenerated(num_documents=6, document_length=20, batch_size=4, heldout_fraction=0.5)
    first = source.documents(llama, tokenizer, cache, 0)
    assert first == source.documents(llama, tokenizer, Cache(tmp_path / "other"), 0)
    assert first != source.documents(llama, tokenizer, cache, 1)
    assert len(list((cache.root / "self_generated").glob("*.json"))) == 2


def test_a_short_source_is_repeated_for_recovery(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, tmp_path: Path
) -> None:
    (tmp_path / "t.txt").write_text("\n\n".join(WORDS[:10]))
    source = LocalText(path=str(tmp_path / "t.txt"), calibration_samples=2, calibration_length=8, heldout_fraction=0.3)
    texts = draw_texts(source, (100, 32), llama, tokenizer, cache, 0)
    assert texts.recovery.shape == (100, 32)
    assert len(texts.recovery.unique(dim=0)) < 100
    assert torch.equal(texts.train_slice, texts.recovery[: len(texts.train_slice)])
    assert texts.heldout.shape[1] == 32


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
