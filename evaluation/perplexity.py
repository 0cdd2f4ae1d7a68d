"""Loss and next-token accuracy on text: the probe of every pruning event, and perplexity as the pruning papers take it.

Windows do not overlap, the tail is dropped, no token is put before a window, and every predicted token counts once.
Letters: N blocks, T tokens in a block, V vocabulary.
"""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluation.batch_size import BatchSize
from pruning.progress import track


@dataclass(frozen=True)
class TextScore:
    """How well a model predicts a text, block by block, so that two models can be compared on the same blocks."""

    loss_sums: list[float]
    """Nats, summed over the predicted tokens of each block, (N,)."""

    correct: list[int]
    """Tokens of each block that were the model's first choice, (N,)."""

    tokens_per_block: int
    """Predicted tokens in a block: T - 1."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return sum(self.loss_sums) / (len(self.loss_sums) * self.tokens_per_block)

    @property
    def loss_stderr(self) -> float:
        """Standard error of `loss` over the blocks; infinite for a single one."""
        losses = [total / self.tokens_per_block for total in self.loss_sums]
        return statistics.stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else math.inf

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def bits_per_byte(self, bytes_scored: int) -> float:
        """Return the loss in bits for each byte of text: sum of nats / (ln 2 x bytes). It compares tokenizers.

        Args:
            bytes_scored: UTF-8 bytes that the predicted tokens of all blocks stand for (`scored_bytes`).
        """
        return sum(self.loss_sums) / (math.log(2) * bytes_scored)

    @property
    def token_accuracy(self) -> float:
        """Fraction of tokens that were the model's first choice, in [0, 1]."""
        return sum(self.correct) / (len(self.correct) * self.tokens_per_block)


def score_text(model: PreTrainedModel, blocks: torch.Tensor, batch_size: int = 8) -> TextScore:
    """Score every token of `blocks` (N, T) but each block's first. The loss is taken in float32."""
    loss_sums: list[float] = []
    correct: list[int] = []
    with torch.inference_mode():
        for batch in track(blocks.split(batch_size), "text"):
            ids = batch.to(model.device)
            logits = model(input_ids=ids, use_cache=False).logits
            for tokens, own in zip(ids, logits, strict=True):  # block by block: never two copies of the logits of all
                wide, targets = own[:-1].float(), tokens[1:]
                chosen = wide.gather(-1, targets[:, None]).squeeze(-1)
                loss_sums.append((wide.logsumexp(-1) - chosen).sum(dtype=torch.float64).item())
                correct.append(int((wide.argmax(-1) == targets).sum()))
    if not all(map(math.isfinite, loss_sums)):
        raise RuntimeError("the model's loss on text is not finite: its weights or activations overflow in this dtype")
    return TextScore(loss_sums, correct, blocks.shape[1] - 1)


TOKENS_OF_A_BLOCK = 128
"""Up to this length `evaluation.batch_size` counts blocks of text, beyond it their tokens."""


def text_batch(size: int, length: int) -> BatchSize:
    """Return how many blocks of `length` tokens may be in a batch: `size`, or as many tokens as in so many blocks of 128.

    Longer blocks fill a batch as well by fewer, and logits, the most that scoring holds, stay as small.
    """
    fix = "Use shorter blocks (stability.length, evaluation.windows), a smaller type (model.dtype=bfloat16) or another device"
    return BatchSize(max(1, min(size, size * TOKENS_OF_A_BLOCK // length)), "blocks of text", fix)


def scored_bytes(tokenizer: PreTrainedTokenizerBase, blocks: torch.Tensor) -> int:
    """Return how many UTF-8 bytes the tokens of `blocks` (N, T) but each block's first stand for.

    Counted token by token in the vocabulary: decoding a block would not do, since its border may lie inside a character.
    """
    vocabulary = tokenizer.get_vocab()
    added = set(tokenizer.get_added_vocab().values())
    sentence_pieces = SPACE in vocabulary
    tokens, counts = blocks[:, 1:].unique(return_counts=True)
    strings = tokenizer.convert_ids_to_tokens(tokens.tolist())
    sizes = [
        len(string.encode()) if token in added else token_bytes(string, sentence_pieces)
        for token, string in zip(tokens.tolist(), strings, strict=True)
    ]
    return sum(size * count for size, count in zip(sizes, counts.tolist(), strict=True))


SPACE = "\u2581"
"""How vocabularies of the SentencePiece kind write a space. Byte-level ones write every byte as one character of their own."""


def token_bytes(string: str, sentence_pieces: bool) -> int:
    """Return how many UTF-8 bytes a token that the vocabulary writes as `string` stands for."""
    if not sentence_pieces:
        return len(string)
    if BYTE.fullmatch(string):
        return 1
    return len(string.replace(SPACE, " ").encode())


BYTE = re.compile("<0x[0-9A-F]{2}>")
"""A byte of a character that is not in a vocabulary of the SentencePiece kind."""


def token_divergence(
    before: PreTrainedModel, after: PreTrainedModel, blocks: torch.Tensor, batch_size: int = 8
) -> list[float]:
    """Return KL(p_before || p_after) = sum over the vocabulary of p_before (log p_before - log p_after), nats per token.

    Args:
        before: whose predictions are taken for true.
        after: with the same vocabulary.
        blocks: token ids, (N, T); predictions of every token but each block's first count, as in `score_text`.
        batch_size: blocks in one forward pass; their log-probabilities under both models, (blocks, T - 1, V) in float32, are
            what is held at a time.

    Returns:
        Means over the tokens of each block, (N,).
    """
    found: list[float] = []
    with torch.inference_mode():
        for batch in track(blocks.split(batch_size), "divergence"):
            ids = batch.to(before.device)
            p, q = (
                model(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
                for model in (before, after)
            )
            found += (p.exp() * (p - q)).sum(-1).mean(dim=1, dtype=torch.float64).tolist()
    return found
