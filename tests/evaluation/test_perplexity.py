from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from evaluation.perplexity import TextScore, score_text, scored_bytes, token_divergence
from tests.conftest import build


def slow_scores(model: PreTrainedModel, blocks: torch.Tensor) -> tuple[list[float], list[int]]:
    losses, correct = [], []
    for block in blocks:
        loss, right = 0.0, 0
        with torch.no_grad():
            logits = model(input_ids=block.unsqueeze(0)).logits[0].double()
        for position in range(len(block) - 1):
            target = int(block[position + 1])
            loss -= float(torch.log_softmax(logits[position], dim=-1)[target])
            right += max(range(logits.shape[1]), key=logits[position].tolist().__getitem__) == target
        losses.append(loss)
        correct.append(right)
    return losses, correct


def predictable_blocks(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Put the model's own first choice into every other place, so that some tokens are predicted rightly."""
    blocks = tokens.clone()
    for place in range(2, blocks.shape[1], 2):
        with torch.no_grad():
            blocks[:, place] = model(input_ids=blocks[:, :place]).logits[:, -1].argmax(-1)
    return blocks


def test_losses_and_hits_are_those_of_a_loop_over_tokens(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    blocks = predictable_blocks(llama, tokens)
    losses, correct = slow_scores(llama, blocks)
    score = score_text(llama, blocks)
    assert score.loss_sums == pytest.approx(losses, rel=1e-5)
    assert score.correct == correct
    assert 0 < sum(correct) < 6 * 23
    assert score.loss == pytest.approx(sum(losses) / (6 * 23), rel=1e-5)
    assert score.token_accuracy == pytest.approx(sum(correct) / (6 * 23))
    assert score.perplexity == pytest.approx(math.exp(sum(losses) / (6 * 23)), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batch_size_does_not_change_the_scores(llama: PreTrainedModel, tokens: torch.Tensor, batch_size: int) -> None:
    one, other = score_text(llama, tokens, 3), score_text(llama, tokens, batch_size)
    assert other.loss_sums == pytest.approx(one.loss_sums, rel=1e-5)
    assert other.correct == one.correct


def test_the_first_token_of_a_block_is_not_predicted(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    score = score_text(llama, tokens)
    assert score.tokens_per_block == tokens.shape[1] - 1
    assert len(score.loss_sums) == len(score.correct) == len(tokens)


def test_a_block_is_scored_alone(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    together = score_text(llama, tokens)
    alone = score_text(llama, tokens[2:3])
    assert alone.loss_sums[0] == pytest.approx(together.loss_sums[2], rel=1e-5)


def test_half_precision_models_are_scored_close_to_float32(tokens: torch.Tensor) -> None:
    exact = score_text(build("llama_gqa_tied"), tokens)
    half = score_text(build("llama_gqa_tied").to(torch.bfloat16), tokens)
    assert half.loss == pytest.approx(exact.loss, rel=0.02)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(
    llama: PreTrainedModel, tokens: torch.Tensor
) -> None:
    with torch.no_grad():
        llama.get_output_embeddings().weight.zero_()
    assert score_text(llama, tokens).perplexity == pytest.approx(258, rel=1e-5)


def test_a_hopeless_perplexity_is_infinite_and_does_not_fail() -> None:
    assert TextScore([8000.0], [0], 10).perplexity == math.inf
    assert TextScore([20.0, 40.0], [0, 0], 10).perplexity == pytest.approx(math.exp(3))


TEXT = "Zoë paid 5 €\tfor 漢字 and  😀.\n\nNext: naïve <mark> text. " * 3


def byte_level() -> PreTrainedTokenizerBase:
    """Return a byte-level tokenizer with merges, where characters it has not met fall into several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["and text for naïve and text"], trainer)
    tokenizer.add_tokens(["<mark>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentence_pieces() -> PreTrainedTokenizerBase:
    """Return a tokenizer of the SentencePiece kind, where characters it does not know fall into their bytes."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["<unk>", *fallback, "▁", *"abdefgimnoprtvwxyZëïN.:", "an", "and", "▁and", "te", "▁te"]
    merges = [("a", "n"), ("an", "d"), ("▁", "and"), ("t", "e"), ("▁", "te")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens(["<mark>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize("make", [byte_level, sentence_pieces])
def test_the_bytes_of_windows_are_those_of_the_text_behind_their_first_tokens(
    make: Callable[[], PreTrainedTokenizerBase],
) -> None:
    tokenizer = make()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == TEXT
    one = scored_bytes(tokenizer, torch.tensor([[0, *ids]]))
    assert one == len(TEXT.encode())
    for length in (2, 3, 5, 8):
        windows = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
        first = sum(scored_bytes(tokenizer, torch.tensor([[0, token]])) for token in windows[:, 0].tolist())
        tail = scored_bytes(tokenizer, torch.tensor([[0, *ids[windows.numel() :]]]))
        assert scored_bytes(tokenizer, windows) == len(TEXT.encode()) - first - tail
    assert 0 < len(ids) < len(TEXT.encode())


def test_a_model_that_knows_nothing_needs_the_bits_of_its_vocabulary_for_each_token(
    llama: PreTrainedModel, tokens: torch.Tensor, tokenizer: PreTrainedTokenizerBase
) -> None:
    with torch.no_grad():
        llama.get_output_embeddings().weight.zero_()
    assert scored_bytes(tokenizer, tokens) == 6 * 23  # one token a byte
    assert score_text(llama, tokens).bits_per_byte(6 * 23) == pytest.approx(math.log2(258), rel=1e-5)
    assert TextScore([3.0, 5.0], [0, 0], 4).bits_per_byte(20) == pytest.approx(8 / 20 / 0.6931471805599453)


def test_scoring_leaves_the_model_as_it_was(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    score_text(llama, tokens)
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())


def test_the_divergence_is_that_of_a_loop_over_tokens(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    other = build("llama_mha")
    expected = []
    for block in tokens:
        total = 0.0
        with torch.no_grad():
            p, q = (torch.softmax(model(block.unsqueeze(0)).logits[0].double(), dim=-1) for model in (llama, other))
        for position in range(len(block) - 1):
            pairs = zip(p[position].tolist(), q[position].tolist(), strict=True)
            total += sum(before * math.log(before / after) for before, after in pairs)
        expected.append(total / (len(block) - 1))
    assert token_divergence(llama, other, tokens, 4) == pytest.approx(expected, rel=1e-3)
    assert token_divergence(llama, llama, tokens, 4) == [0.0] * len(tokens)
