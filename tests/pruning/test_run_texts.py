"""What a run draws from its sources: proportions of a mixture, repetition, and the slices of the generalization gap."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from pruning.blocks import spread_blocks, token_blocks
from pruning.documents import Documents
from pruning.run_texts import GAP_BLOCKS, RunTexts, draw_texts, interleave


def part(letter: str, weight: float, documents: int = 60, length: int = 400) -> Documents:
    """Documents in which every word begins with one letter, in capitals where they are held out."""
    texts = [" ".join(f"{letter}{i}{letter}{j}" for j in range(length // 8)) for i in range(documents)]
    return Documents(texts[:-20], [text.upper() for text in texts[-20:]], key=f"data.parts.{letter}", weight=weight)


def letters(blocks: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> str:
    """The letter that most of each block is written with."""
    return "".join(max("abcABC", key=tokenizer.decode(block).count) for block in blocks)


def drawn(parts: list[Documents], tokenizer: PreTrainedTokenizerBase, recovery: int = 60, seed: int = 0) -> RunTexts:
    blocks = {"calibration": (24, 32), "compensation": (12, 16), "recovery": (recovery, 32)}
    return draw_texts(parts, blocks, tokenizer, seed)


def test_blocks_of_a_mixture_are_in_proportion_to_the_weights(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = drawn([part("a", 1), part("b", 2), part("c", 3)], tokenizer)
    for blocks in (texts.calibration, texts.compensation, texts.recovery):
        found = letters(blocks, tokenizer)
        assert [found.count(letter) * 6 for letter in "abc"] == [len(found), 2 * len(found), 3 * len(found)]
    assert [letters(texts.heldout, tokenizer).count(letter) for letter in "ABC"] == [5, 11, 16]


def test_every_beginning_of_a_mixture_is_mixed(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = drawn([part("a", 1), part("b", 3)], tokenizer)
    for found in (letters(texts.calibration, tokenizer), letters(texts.recovery, tokenizer)):
        assert all(abs(found[:n].count("a") - n / 4) <= 1 for n in range(1, len(found) + 1))
    half = letters(texts.calibration, tokenizer)
    assert half[:12].count("a") == half[12:].count("a") == 3


@pytest.mark.parametrize(("calibration", "compensation"), [(6, 20), (20, 6), (8, 8)])
def test_importance_and_compensation_share_blocks_where_they_are_as_long(
    calibration: int, compensation: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    blocks = {"calibration": (calibration, 32), "compensation": (compensation, 32), "recovery": (0, 0)}
    texts = draw_texts([part("a", 1), part("b", 1)], blocks, tokenizer, 0)
    fewer = min(calibration, compensation)
    assert len(texts.calibration) == calibration
    assert len(texts.compensation) == compensation
    assert torch.equal(texts.calibration[:fewer], texts.compensation[:fewer])
    assert letters(texts.calibration, tokenizer).count("a") == calibration / 2


@pytest.mark.parametrize("weights", [[1], [1, 1], [0.2, 0.7, 0.1], [5, 1, 1, 1, 1], [1e-3, 1]])
def test_interleaving_keeps_every_part_near_its_share(weights: list[float]) -> None:
    order = interleave(weights, 400)
    for n in range(1, 401):
        for index, weight in enumerate(weights):
            assert abs(order[:n].count(index) - n * weight / sum(weights)) < 1 + 1e-9


def test_a_mixture_is_the_same_for_the_same_seed_only(tokenizer: PreTrainedTokenizerBase) -> None:
    parts = [part("a", 1), part("b", 1)]
    first, again, other = (drawn(parts, tokenizer, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.calibration, again.calibration)
    assert torch.equal(first.recovery, again.recovery)
    assert not torch.equal(first.calibration, other.calibration)
    assert not torch.equal(first.recovery, other.recovery)


def test_a_single_source_is_drawn_as_it_is_without_a_mixture(tokenizer: PreTrainedTokenizerBase) -> None:
    only = part("a", 0.3)
    texts = drawn([only], tokenizer, seed=7)
    calibration = spread_blocks(only.train, tokenizer, 32, 24, purpose="x", seed=7)
    recovery = token_blocks(only.train, tokenizer, 32, 60, purpose="x", seed=8)
    assert torch.equal(texts.calibration, calibration)
    assert torch.equal(texts.recovery, recovery)
    assert torch.equal(texts.train_slice, recovery[:GAP_BLOCKS])
    assert torch.equal(texts.heldout, token_blocks(only.heldout, tokenizer, 32, 32, purpose="x", seed=7))


def test_a_short_part_is_repeated_for_recovery_and_keeps_its_share(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = drawn([part("a", 1, documents=22), part("b", 1)], tokenizer, recovery=200)
    found = letters(texts.recovery, tokenizer)
    assert found.count("a") == found.count("b") == 100
    own = [tuple(row) for row, letter in zip(texts.recovery.tolist(), found, strict=True) if letter == "a"]
    assert 10 < len(set(own)) < 30
    assert own[: len(set(own))] == own[len(set(own)) : 2 * len(set(own))]


def test_the_gap_is_measured_on_distinct_blocks(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = drawn([part("a", 1, documents=23)], tokenizer, recovery=100)
    assert (
        len(texts.train_slice.unique(dim=0)) == len(texts.train_slice) == len(texts.recovery.unique(dim=0)) < GAP_BLOCKS
    )
    assert len(texts.heldout) == GAP_BLOCKS


def test_held_out_text_that_ends_keeps_the_proportion(tokenizer: PreTrainedTokenizerBase) -> None:
    short = part("b", 1)
    parts = [part("a", 1), Documents(short.train, short.heldout[:1], key=short.key, weight=1)]
    found = letters(drawn(parts, tokenizer).heldout, tokenizer)
    assert 10 < len(found) < GAP_BLOCKS
    assert abs(found.count("A") - found.count("B")) <= 1


def test_what_is_not_asked_for_is_not_drawn(tokenizer: PreTrainedTokenizerBase) -> None:
    blocks = {"calibration": (4, 16), "compensation": (0, 0), "recovery": (0, 0)}
    texts = draw_texts([part("a", 1)], blocks, tokenizer, 0)
    assert texts.calibration.shape == (4, 16)
    assert texts.compensation.numel() == texts.recovery.numel() == 0
    assert texts.train_slice is None
    assert texts.heldout is None


def test_a_part_that_is_too_short_or_too_light_is_named(tokenizer: PreTrainedTokenizerBase) -> None:
    tiny = Documents(["word"], ["word"], key="data.parts.tiny")
    with pytest.raises(
        ValueError, match=r"data\.calibration_samples=24, of which 12 from data\.parts\.tiny: .* only 4"
    ):
        drawn([part("a", 1), tiny], tokenizer)
    with pytest.raises(ValueError, match=r"data\.parts\.b\.weight=0\.001: none of data\.calibration_samples=24"):
        drawn([part("a", 1), part("b", 1e-3)], tokenizer)
    heldout = Documents(part("b", 1).train, [], key="data.parts.b")
    with pytest.raises(ValueError, match=r"recovery\.length=32, from the held-out part of data\.parts\.b"):
        drawn([part("a", 1), heldout], tokenizer)


def test_text_to_validate_on_is_held_out_and_is_not_what_is_measured(tokenizer: PreTrainedTokenizerBase) -> None:
    parts = [part("a", 1), part("b", 1)]
    blocks = {"calibration": (24, 32), "compensation": (0, 0), "recovery": (60, 32), "validation": (10, 32)}
    texts, without = draw_texts(parts, blocks, tokenizer, 0), drawn(parts, tokenizer)
    assert letters(texts.validation, tokenizer) == "AB" * 5
    assert torch.equal(texts.heldout, without.heldout)
    seen = {tuple(block) for block in (*texts.heldout.tolist(), *texts.recovery.tolist())}
    assert not seen & {tuple(block) for block in texts.validation.tolist()}
    assert len(without.validation) == 0


def test_too_little_held_out_text_to_validate_on_is_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    blocks = {"calibration": (24, 32), "compensation": (0, 0), "recovery": (60, 32), "validation": (10, 32)}
    few = part("a", 1)
    few = Documents(few.train, few.heldout[:1], key="data", weight=1.0)
    with pytest.raises(ValueError, match=r"recovery\.patience: no block is left .* recovery\.patience=null"):
        draw_texts([few], blocks, tokenizer, 0)
