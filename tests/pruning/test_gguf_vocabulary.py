"""Tokenizers in GGUF files: what is written, and what transformers makes of it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf import TokenType
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Tokenizer

from pruning.export.gguf_file import export_gguf
from pruning.export.gguf_vocabulary import Vocabulary, read_vocabulary
from pruning.model import byte_tokenizer
from tests.zoo import SIZES, _make

TEXT = "the cat sat on the mat, the cats sat there; that is that, isn't it? 12 cats, 123 mats."
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
WITHOUT_SPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def trained(split: Any, ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    """Return a small byte-level tokenizer that splits text by `split`."""
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer, backend.decoder = split, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    backend.add_tokens(["<think>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def sentencepiece(**options: Any) -> LlamaTokenizer:
    """Return a small tokenizer of the kind of Llama 2: bytes first, then characters, then merges of them."""
    letters = [*"abcdeht", "▁"]
    merges = [("t", "h"), ("▁", "th"), ("▁th", "e"), ("a", "t")]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    tokens += [left + right for left, right in merges]
    return LlamaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, **options)


def exported(tokenizer: PreTrainedTokenizerBase, folder: Path, rows: int) -> gguf.GGUFReader:
    model = _make("Llama", SIZES | {"vocab_size": rows}, num_key_value_heads=4)()
    export_gguf(model, tokenizer, folder / "model.gguf", model.dtype)
    return gguf.GGUFReader(folder / "model.gguf")


def stored(reader: gguf.GGUFReader, name: str) -> Any:
    found = reader.get_field(f"tokenizer.{name}")
    return None if found is None else found.contents()


@pytest.mark.parametrize(
    ("split", "ignore_merges", "name"),
    [
        (BYTE_LEVEL, False, "gpt-2"),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL]), False, "smollm"),
        (pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), WITHOUT_SPLIT]), True, "llama-bpe"),
    ],
)
def test_splits_have_llama_cpps_names(split: Any, ignore_merges: bool, name: str) -> None:
    tokenizer = trained(split, ignore_merges)
    assert read_vocabulary(tokenizer, len(tokenizer)).split == name


def test_qwen2_split() -> None:
    qwen = Qwen2Tokenizer(vocab={"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}, merges=[("a", "b")])
    assert read_vocabulary(qwen, 4).split == "qwen2"


def test_without_merges_any_split_will_do() -> None:
    vocabulary = read_vocabulary(byte_tokenizer(), 258)
    assert vocabulary.split == "gpt-2"
    assert len(vocabulary.merges) == 1
    left, right = vocabulary.merges[0].split(" ")
    assert left not in vocabulary.tokens
    assert right not in vocabulary.tokens


def test_bytewise_tokens_merges_and_special_tokens(tmp_path: Path) -> None:
    tokenizer = trained(BYTE_LEVEL)
    tokenizer.chat_template = "{{ messages }}"
    size = len(tokenizer)
    reader = exported(tokenizer, tmp_path, size + 2)
    tokens, types = stored(reader, "ggml.tokens"), stored(reader, "ggml.token_type")
    assert tokens == [*tokenizer.convert_ids_to_tokens(range(size)), f"[PAD{size}]", f"[PAD{size + 1}]"]
    by_token = dict(zip(tokens, types, strict=True))
    assert [by_token[token] for token in ("<s>", "</s>", "<unk>")] == [TokenType.CONTROL] * 3
    assert by_token["<think>"] == TokenType.USER_DEFINED
    assert by_token["the"] == by_token["a"] == TokenType.NORMAL
    assert types[size:] == [TokenType.UNUSED] * 2
    merges = stored(reader, "ggml.merges")
    assert tokens[3 + 256 : size - 1] == [merge.replace(" ", "") for merge in merges]
    assert [stored(reader, f"ggml.{name}_token_id") for name in ("bos", "eos", "unknown")] == [0, 1, 2]
    assert stored(reader, "ggml.padding_token_id") is None
    assert stored(reader, "ggml.add_bos_token") is False
    assert stored(reader, "chat_template") == "{{ messages }}"


@pytest.mark.parametrize("tokenizer", [trained(BYTE_LEVEL), sentencepiece()], ids=["bytewise", "sentencepiece"])
def test_transformers_reads_the_tokenizer_back(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    exported(tokenizer, tmp_path, len(tokenizer))
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    assert len(set(ids)) > 10
    assert again(TEXT, add_special_tokens=False).input_ids == ids


def test_sentencepiece_scores_order_the_merges(tmp_path: Path) -> None:
    tokenizer = sentencepiece()
    reader = exported(tokenizer, tmp_path, len(tokenizer))
    assert stored(reader, "ggml.model") == "llama"
    tokens, types = stored(reader, "ggml.tokens"), stored(reader, "ggml.token_type")
    scores = dict(zip(tokens, stored(reader, "ggml.scores"), strict=True))
    order = ["th", "▁th", "▁the", "at"]
    assert sorted(order, key=lambda token: -scores[token]) == order
    assert types[:3] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    assert types[3:259] == [TokenType.BYTE] * 256
    assert set(types[259:]) == {TokenType.NORMAL}


def test_space_prefix() -> None:
    def prefix(tokenizer: PreTrainedTokenizerBase) -> bool:
        return read_vocabulary(tokenizer, len(tokenizer)).space_prefix

    assert prefix(sentencepiece())
    assert not prefix(sentencepiece(add_prefix_space=False))
    legacy = sentencepiece()
    legacy.backend_tokenizer.pre_tokenizer = None
    marks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    legacy.backend_tokenizer.normalizer = normalizers.Sequence(marks)
    assert prefix(legacy)
    legacy.backend_tokenizer.normalizer = marks[1]
    assert not prefix(legacy)


def test_begin_token_that_is_added_is_declared(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = trained(BYTE_LEVEL)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    reader = exported(tokenizer, tmp_path, len(tokenizer))
    assert (stored(reader, "ggml.add_bos_token"), stored(reader, "ggml.add_eos_token")) == (True, False)


def refused(change: str) -> Vocabulary:
    tokenizer = trained(BYTE_LEVEL, ignore_merges=change == "whole words")
    backend, rows = tokenizer.backend_tokenizer, len(tokenizer)
    if change == "words":
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    if change == "split":
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if change == "prefix":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    if change == "case":
        backend.normalizer = normalizers.Lowercase()
    if change == "marks":
        tokenizer = sentencepiece()
        tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    return read_vocabulary(tokenizer, rows - 1 if change == "size" else rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("words", "kind WordLevel"),
        ("split", "known are the splits of gpt-2, smollm, llama-bpe, qwen2"),
        ("prefix", "no name in llama.cpp"),
        ("case", "after .'Lowercase'."),
        ("whole words", "no name in llama.cpp"),
        ("marks", "changes text by {'type': 'NFKC'}"),
        ("size", "tokens, but the embedding has"),
    ],
)
def test_unknown_tokenizers_are_refused(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refused(change)
