"""Examples in rows: none sees another, only responses are learnt, and what is too long is cut or left out."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import PreTrainedModel

from pruning.documents import TooLong
from pruning.packing import (
    NOT_LEARNT,
    Example,
    as_blocks,
    as_rows,
    bucketed,
    check_packing,
    fitted,
    labels_of,
    model_inputs,
    pack,
    positions,
    to_rows,
    token_count,
)
from tests.zoo import MODELS, build

OWN_MASKS = {"opt", "bloom", "falcon_multi_query", "falcon_grouped", "falcon_alibi", "baichuan", "chatglm"}
"""Families whose code makes no block mask of positions."""


def examples(seed: int = 0, count: int = 3, vocabulary: int = 258) -> list[Example]:
    draw = random.Random(seed)

    def tokens(most: int) -> list[int]:
        return [draw.randrange(2, vocabulary) for _ in range(draw.randrange(1, most))]

    return [Example(tokens(10), tokens(10)) for _ in range(count)]


@pytest.mark.parametrize("name", sorted(set(MODELS) - OWN_MASKS))
def test_packed_logits_are_those_of_each_example_alone(name: str) -> None:
    model, found = build(name), examples()
    check_packing(model, "data.pack")
    rows = to_rows([found[:2], found[2:]], 40, 1)
    with torch.no_grad():
        packed = model(**model_inputs(rows), use_cache=False).logits
        for row, members in zip(packed, (found[:2], found[2:]), strict=True):
            start = 0
            for example in members:
                alone = model(input_ids=torch.tensor([example.prompt + example.response])).logits[0]
                torch.testing.assert_close(row[start : start + len(example)], alone, rtol=1e-4, atol=1e-5)
                start += len(example)


@pytest.mark.parametrize("name", sorted(OWN_MASKS))
def test_a_model_in_which_examples_would_see_each_other_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"data\.pack=true: in \w+ the examples .* set data\.pack=false"):
        check_packing(build(name), "data.pack")


@pytest.mark.parametrize("name", ["opt", "bloom", "chatglm", "llama_gqa_tied"])
def test_one_example_in_a_row_is_read_as_alone_by_every_family(name: str) -> None:
    model, found = build(name), examples()
    rows = to_rows([[example] for example in found], 32, 1)
    with torch.no_grad():
        logits = model(**model_inputs(rows), use_cache=False).logits
        for row, example in zip(logits, found, strict=True):
            alone = model(input_ids=torch.tensor([example.prompt + example.response])).logits[0]
            torch.testing.assert_close(row[: len(example)], alone, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_packed_row_is_the_sum_of_its_examples(llama: PreTrainedModel) -> None:
    from recovery.losses import TokenLoss

    found = examples(seed=3)
    weight = llama.model.layers[0].self_attn.q_proj.weight

    def gradient(rows: torch.Tensor) -> torch.Tensor:
        llama.zero_grad()
        TokenLoss(head_is_last=True)(llama, {"blocks": rows}, 1).backward()
        return weight.grad.clone()

    alone = sum(gradient(to_rows([[example]], 32, 1)) for example in found)
    torch.testing.assert_close(gradient(to_rows([found], 64, 1)), alone, rtol=1e-4, atol=1e-5)


def test_labels_are_the_responses_and_nothing_else() -> None:
    rows = to_rows([[Example([5, 6], [7, 8]), Example([], [9, 10, 11])], [Example([12], [13])]], 9, 1)
    n = NOT_LEARNT
    assert rows[0].tolist() == [
        [5, 6, 7, 8, 9, 10, 11, 1, 1],
        [n, n, 7, 8, n, 10, 11, n, n],
        [1, 1, 1, 1, 2, 2, 2, 0, 0],
    ]
    assert positions(rows[:, 2]).tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1], [0, 1, 0, 1, 2, 3, 4, 5, 6]]
    assert model_inputs(rows)["input_ids"].shape == (2, 7)
    assert labels_of(rows).tolist() == [[n, n, 7, 8, n, 10, 11], [n, 13, n, n, n, n, n]]
    assert token_count(rows) == 9
    assert as_blocks(rows[:, :, :]).shape == (1, 9)


def test_plain_blocks_are_rows_of_one_example_each() -> None:
    blocks = torch.arange(12).view(3, 4)
    rows = as_rows(blocks)
    assert torch.equal(as_blocks(rows), blocks)
    assert token_count(rows) == token_count(blocks) == 12
    assert rows[1].tolist() == [[4, 5, 6, 7], [NOT_LEARNT, 5, 6, 7], [1, 1, 1, 1]]
    assert torch.equal(as_rows(rows), rows)


def test_rows_hold_every_example_once_and_are_nearly_full() -> None:
    draw = random.Random(0)
    lengths = [draw.randrange(5, 100) for _ in range(500)]
    rows = pack(lengths, 128, 10**6)
    assert sorted(index for row in rows for index in row) == list(range(500))
    assert all(sum(lengths[index] for index in row) <= 128 for row in rows)
    assert sum(lengths) / (128 * len(rows)) > 0.9
    assert [sum(lengths[index] for index in row) <= 128 for row in pack(lengths, 128, 7)] == [True] * 7


def test_what_is_too_long_is_cut_or_dropped_and_counted() -> None:
    short, long, all_prompt = Example([1], [2, 3]), Example([1, 2], [3, 4, 5]), Example([1, 2, 3, 4], [5])
    assert fitted([short, long, all_prompt], 4, TooLong.cut) == ([short, Example([1, 2], [3, 4])], 1, 1)
    assert fitted([short, long, all_prompt], 4, TooLong.drop) == ([short], 0, 2)


def test_buckets_hold_rows_of_similar_length_in_a_drawn_order() -> None:
    draw = random.Random(1)
    lengths = [draw.randrange(1, 200) for _ in range(1000)]

    def padding(order: list[int]) -> int:
        groups = [[lengths[index] for index in order[start : start + 8]] for start in range(0, len(order), 8)]
        return sum(max(group) * len(group) - sum(group) for group in groups)

    order = bucketed(lengths, seed=0)
    assert sorted(order) == list(range(1000))
    assert padding(order) < padding(list(range(1000))) / 5
    assert order != bucketed(lengths, seed=1)
    assert order == bucketed(lengths, seed=0)
    assert [lengths[index] for index in order] != sorted(lengths)
