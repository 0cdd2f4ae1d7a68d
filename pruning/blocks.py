"""Documents become token blocks: what a run calibrates on, trains on, and is measured on.

Documents are always joined by a blank line, as in the papers' perplexity; no special token is put in.
Letters: N blocks, T tokens in a block.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.cache import Cache
from pruning.text import TextSource

SEPARATOR = "\n\n"


@dataclass(frozen=True)
class RunTexts:
    """The token blocks of one run, all drawn from its `data` source."""

    calibration: torch.Tensor
    """(calibration_samples, calibration_length), from the training documents."""

    recovery: torch.Tensor
    """(N, T) that recovery trains on; empty without recovery."""

    train_slice: torch.Tensor | None
    """The first of the recovery blocks, scored for the generalization gap; None without recovery."""

    heldout: torch.Tensor | None
    """As many blocks of the source's held-out documents."""


GAP_BLOCKS = 32
"""Blocks of training and of held-out text that the generalization gap is measured on, at most."""


def draw_texts(
    source: TextSource,
    recovery_blocks: tuple[int, int],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cache: Cache,
    seed: int,
) -> RunTexts:
    """Draw everything that a run reads from its source.

    Args:
        source: the `data` option.
        recovery_blocks: number and length of the blocks that recovery asks for; (0, 0) for none. A source that is
            shorter is repeated.
        model: the dense model, for a source that lets it write.
        tokenizer: the model's.
        cache: for a source that lets the model write.
        seed: draws the order of the documents.

    Raises:
        ValueError: the source is too short for one block of each kind.
    """
    documents = source.documents(model, tokenizer, cache, seed)
    samples, length = source.calibration_samples, source.calibration_length
    calibration = token_blocks(
        documents.train, tokenizer, length, samples, purpose="data.calibration_samples", seed=seed
    )
    count, length = recovery_blocks
    if count == 0:
        return RunTexts(calibration, torch.empty(0, 0, dtype=torch.long), None, None)
    available = count_tokens(documents.train, tokenizer) // length
    drawn = token_blocks(
        documents.train, tokenizer, length, max(1, min(count, available)), purpose="recovery.length", seed=seed + 1
    )
    repeated = drawn[torch.arange(count) % len(drawn)]
    heldout = max(1, min(GAP_BLOCKS, count_tokens(documents.heldout, tokenizer) // length))
    return RunTexts(
        calibration,
        repeated,
        drawn[:GAP_BLOCKS],
        token_blocks(documents.heldout, tokenizer, length, heldout, purpose="held-out part of the data", seed=seed),
    )


def count_tokens(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the tokens of all documents, separators not counted."""
    return sum(len(ids) for ids in tokenizer(list(documents), add_special_tokens=False)["input_ids"])


def token_blocks(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    count: int,
    *,
    purpose: str,
    seed: int | None = None,
) -> torch.Tensor:
    """Join documents by blank lines and cut the tokens into `count` blocks, the tail dropped.

    Args:
        documents: the texts; read in order, or in an order drawn with `seed`.
        tokenizer: used without special tokens.
        length: T, tokens in a block.
        count: N, blocks wanted.
        purpose: what asks for them; named in the error.
        seed: draws the order of the documents when given.

    Returns:
        Token ids, (N, T).

    Raises:
        ValueError: the documents hold fewer than N x T tokens.
    """
    order = list(documents)
    if seed is not None:
        random.Random(seed).shuffle(order)
    tokens: list[int] = []
    separator = tokenizer(SEPARATOR, add_special_tokens=False)["input_ids"]
    for start in range(0, len(order), 256):
        for ids in tokenizer(order[start : start + 256], add_special_tokens=False)["input_ids"]:
            tokens += ids + separator
        if len(tokens) >= length * count:
            return torch.tensor(tokens[: length * count]).view(count, length)
    raise ValueError(
        f"{purpose}: {count} blocks of {length} tokens need {count * length:,} tokens, but the text has only "
        f"{len(tokens):,}: give more text, or ask for fewer or shorter blocks"
    )


def evenly_spaced_windows(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, count: int | None, *, purpose: str
) -> torch.Tensor:
    """Join documents by blank lines, cut the tokens into windows, the tail dropped, and take `count` of them.

    Args:
        documents: the texts, in their own order.
        tokenizer: used without special tokens.
        length: T, tokens in a window.
        count: N, windows wanted, spread evenly over the text; None for all of them.
        purpose: what asks for them; named in the error.

    Returns:
        Token ids, (N, T).

    Raises:
        ValueError: the text holds fewer windows than asked for.
    """
    ids = tokenizer(SEPARATOR.join(documents), add_special_tokens=False, return_tensors="pt", verbose=False)
    tokens = ids["input_ids"][0]
    windows = tokens[: len(tokens) // length * length].view(-1, length)
    if len(windows) < (count or 1):
        raise ValueError(
            f"{purpose}: {count or 1} windows of {length} tokens asked for, but the text has only {len(tokens):,} tokens: "
            "give more text, or ask for fewer or shorter windows"
        )
    if count is None:
        return windows
    return windows[torch.arange(count) * len(windows) // count]
