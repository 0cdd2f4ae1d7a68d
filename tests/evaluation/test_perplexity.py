from __future__ import annotations

import math

import pytest
import torch
from transformers import PreTrainedModel

from evaluation.perplexity import TextScore, score_text, token_divergence
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
