"""Documents become token blocks.

Documents are always joined by a blank line, as in the papers' perplexity; no special token is put in.
Letters: N blocks, T tokens in a block.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

SEPARATOR = "\n\n"

CHARACTERS_PER_TOKEN = 8
"""Characters read for each token of a calibration block: prose has 4 or 5."""


def spread_blocks(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, count: int, *, purpose: str, seed: int
) -> torch.Tensor:
    """Draw blocks that are spread evenly over all documents, reading only as much text as they need.

    The documents, in an order drawn with `seed`, are joined and cut into `count` equal stretches; each gives one block, from
    a place drawn in it, from the beginning of a word on. A text that is too short for that is cut into windows instead.

    Args:
        documents: the texts.
        tokenizer: used without special tokens.
        length: T, tokens in a block.
        count: N, blocks wanted.
        purpose: what asks for them; named in the error.
        seed: draws the order of the documents, the places and the order of the blocks.

    Returns:
        Token ids, (N, T); no token of the text is in two blocks.

    Raises:
        ValueError: the documents hold fewer than N x T tokens.
    """
    draw = random.Random(seed)
    order = draw.sample(list(documents), len(documents))
    text = SEPARATOR.join(order)
    reach, stretch = length * CHARACTERS_PER_TOKEN, len(text) / count
    pieces = []
    for index in range(count):
        start = int(index * stretch + draw.random() * max(0, stretch - reach))
        end = int(min(start + reach, (index + 1) * stretch))
        pieces.append(text[text.find(" ", start, end) + 1 or start : end])
    tokens = tokenizer(pieces, add_special_tokens=False)["input_ids"]
    if all(len(ids) >= length for ids in tokens):
        blocks = torch.tensor([ids[:length] for ids in tokens])
    else:
        blocks = evenly_spaced_windows(order, tokenizer, length, count, purpose=purpose)
    return blocks[draw.sample(range(count), count)]


def token_blocks(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, count: int, *, purpose: str, seed: int
) -> torch.Tensor:
    """Join documents by blank lines and cut the tokens into blocks, the tail dropped.

    Args:
        documents: the texts, read in an order drawn with `seed`, and only until there are enough tokens.
        tokenizer: used without special tokens.
        length: T, tokens in a block.
        count: N, blocks wanted.
        purpose: what asks for them; named in the error.
        seed: draws the order of the documents.

    Returns:
        Token ids, (N, T); fewer than N blocks where the text is shorter.

    Raises:
        ValueError: the documents hold no block of T tokens.
    """
    order = list(documents)
    random.Random(seed).shuffle(order)
    tokens: list[int] = []
    separator = tokenizer(SEPARATOR, add_special_tokens=False)["input_ids"]
    for start in range(0, len(order), 32):
        for ids in tokenizer(order[start : start + 32], add_special_tokens=False, verbose=False)["input_ids"]:
            tokens += ids + separator
        if len(tokens) >= length * count:
            break
    found = min(count, len(tokens) // length)
    if not found:
        raise ValueError(
            f"{purpose}: a block of {length} tokens asked for, but the text has only {len(tokens):,} tokens: "
            "give more text, or ask for shorter blocks"
        )
    return torch.tensor(tokens[: found * length]).view(found, length)


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
