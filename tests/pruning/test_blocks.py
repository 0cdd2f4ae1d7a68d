"""Token blocks: where they come from in the text, in which order, and what is too short for them."""

from __future__ import annotations

import random
import re
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from pruning.blocks import evenly_spaced_windows, spread_blocks, token_blocks

WORDS = [f"document {i} says " + "word " * 30 for i in range(40)]


def numbered(documents: int, words: int) -> list[str]:
    """Documents whose words say where they stand: d3w17 is word 17 of document 3."""
    return [" ".join(f"d{i}w{j}" for j in range(words)) for i in range(documents)]


def places(tokenizer: PreTrainedTokenizerBase, block: torch.Tensor) -> list[tuple[int, int]]:
    """The whole words of a block, as (document, word)."""
    return [(int(d), int(w)) for d, w in re.findall(r"d(\d+)w(\d+)(?= )", tokenizer.decode(block))]


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.characters = 0

    def __call__(self, text: str | list[str], **options: Any) -> Any:
        self.characters += len(text) if isinstance(text, str) else sum(map(len, text))
        return self.tokenizer(text, **options)


def test_recovery_blocks_are_the_joined_text_in_a_drawn_order(tokenizer: PreTrainedTokenizerBase) -> None:
    order = list(WORDS)
    random.Random(3).shuffle(order)
    blocks = token_blocks(WORDS, tokenizer, 50, 20, purpose="x", seed=3)
    assert tokenizer.decode(blocks.flatten()) == "\n\n".join(order)[:1000]
    assert not torch.equal(blocks, token_blocks(WORDS, tokenizer, 50, 20, purpose="x", seed=4))


def test_a_short_text_gives_the_recovery_fewer_blocks(tokenizer: PreTrainedTokenizerBase) -> None:
    assert token_blocks(["abcdefgh"], tokenizer, 3, 9, purpose="x", seed=0).shape == (3, 3)
    with pytest.raises(ValueError, match=r"recovery\.length=100.* only 5"):
        token_blocks(["abc"], tokenizer, 100, 4, purpose="recovery.length=100", seed=0)


def test_windows_are_spread_over_the_whole_text(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "".join(chr(97 + i) * 10 for i in range(20))
    windows = evenly_spaced_windows([text], tokenizer, 10, 4, purpose="x")
    assert [tokenizer.decode(row)[0] for row in windows] == ["a", "f", "k", "p"]
    assert len(evenly_spaced_windows([text + "tail"], tokenizer, 10, None, purpose="x")) == 20


def test_too_short_a_text_is_refused_with_both_numbers(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=r"stability\.text=x: 4 windows of 100 tokens .* only 3"):
        evenly_spaced_windows(["abc"], tokenizer, 100, 4, purpose="stability.text=x")
    with pytest.raises(ValueError, match=r"data\.calibration_samples=4: 4 windows of 100 tokens .* only 3"):
        spread_blocks(["abc"], tokenizer, 100, 4, purpose="data.calibration_samples=4", seed=0)


def test_calibration_blocks_come_from_many_long_documents(tokenizer: PreTrainedTokenizerBase) -> None:
    documents = numbered(40, 1000)
    blocks = spread_blocks(documents, tokenizer, 64, 40, purpose="x", seed=0)
    assert blocks.shape == (40, 64)
    origin = Counter(places(tokenizer, block)[0][0] for block in blocks)
    assert len(origin) >= 35
    first, second = ({places(tokenizer, block)[0][0] for block in half} for half in blocks.chunk(2))
    assert min(len(first), len(second)) >= 17


def test_calibration_blocks_of_one_book_are_spread_over_it(tokenizer: PreTrainedTokenizerBase) -> None:
    book = numbered(1, 20_000)
    blocks = spread_blocks(book, tokenizer, 64, 20, purpose="x", seed=0)
    starts = [places(tokenizer, block)[0][1] for block in blocks]
    assert sorted(start * 20 // 20_000 for start in starts) == pytest.approx(list(range(20)), abs=1)
    first, second = (sum(half) / 10 for half in (starts[:10], starts[10:]))
    assert abs(first - second) < 7000
    assert starts != [places(tokenizer, b)[0][1] for b in spread_blocks(book, tokenizer, 64, 20, purpose="x", seed=1)]


def test_calibration_blocks_are_running_text_from_the_beginning_of_a_word(tokenizer: PreTrainedTokenizerBase) -> None:
    documents = numbered(6, 400)
    for block in spread_blocks(documents, tokenizer, 50, 12, purpose="x", seed=5):
        text = tokenizer.decode(block)
        assert re.match(r"d\d+w\d+ ", text)
        for part in text.split("\n\n"):
            assert any(part in document for document in documents)


def test_no_text_is_in_two_calibration_blocks(tokenizer: PreTrainedTokenizerBase) -> None:
    for count in (2, 30, 90):
        blocks = spread_blocks(numbered(5, 300), tokenizer, 64, count, purpose="x", seed=2)
        found = Counter(place for block in blocks for place in places(tokenizer, block))
        assert blocks.shape == (count, 64)
        assert set(found.values()) == {1}


def test_calibration_blocks_are_the_same_for_the_same_seed_only(tokenizer: PreTrainedTokenizerBase) -> None:
    first, again, other = (spread_blocks(WORDS, tokenizer, 20, 9, purpose="x", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_all_of_a_text_can_be_drawn(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "".join(chr(97 + i) * 10 for i in range(20))
    blocks = spread_blocks([text], tokenizer, 10, 20, purpose="x", seed=0)
    assert sorted(tokenizer.decode(block) for block in blocks) == [chr(97 + i) * 10 for i in range(20)]


def test_only_as_much_text_is_read_as_the_blocks_need(tokenizer: PreTrainedTokenizerBase) -> None:
    documents, counting = numbered(500, 1000), Counting(tokenizer)
    spread_blocks(documents, counting, 64, 32, purpose="x", seed=0)
    assert counting.characters <= 64 * 32 * 8
    counting.characters = 0
    token_blocks(documents, counting, 64, 32, purpose="x", seed=0)
    assert counting.characters < sum(map(len, documents)) / 10
