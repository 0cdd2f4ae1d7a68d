"""Documents with prompts become rows of examples. Letters: N rows, T tokens in a row."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from pruning.documents import Prompts
from pruning.packing import Example, bucketed, fitted, pack, to_rows

log = logging.getLogger(__name__)

SPARE = 1.2
"""Tokens of examples read for each token of packed rows, so that something fits into the ends of the last rows too."""


def example_rows(
    documents: Sequence[str],
    prompts: Prompts,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    count: int,
    *,
    purpose: str,
    seed: int,
) -> torch.Tensor:
    """Return rows of examples; those that are longer than a row are cut or left out, which is said.

    Args:
        documents: the whole texts, read in an order drawn with `seed`, and only until there are enough rows.
        prompts: their beginnings, and how they become rows.
        tokenizer: used without special tokens, which are in the texts.
        length: T.
        count: N.
        purpose: what asks for them; named in the error.
        seed: draws the order of the documents.

    Returns:
        Ids, labels and segments, (N, 3, T); fewer than N rows where there are fewer examples.

    Raises:
        ValueError: no example fits in a row.
    """
    order = list(documents)
    random.Random(seed).shuffle(order)
    examples: list[Example] = []
    read = cut = left_out = 0
    while read < len(order) and (
        sum(map(len, examples)) < SPARE * length * count if prompts.pack else len(examples) < count
    ):
        batch = order[read : read + 256]
        found, cut_here, left_out_here = fitted(tokenized(batch, prompts, tokenizer), length, prompts.too_long)
        examples += found
        read, cut, left_out = read + len(batch), cut + cut_here, left_out + left_out_here
    if cut or left_out:
        log.info("%s: of %d examples longer ones were cut (%d) or left out (%d)", purpose, read, cut, left_out)
    if not examples:
        raise ValueError(
            f"{purpose}: none of {len(order):,} examples fits in a row: give more of them, a larger recovery.length, or "
            "too_long=cut"
        )
    lengths = [len(example) for example in examples]
    if prompts.pack:
        packed = [[examples[index] for index in row] for row in pack(lengths, length, count)]
    else:
        packed = [[examples[index]] for index in bucketed(lengths[:count], seed)]
    padding = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
    return to_rows(packed, length, padding)


def tokenized(documents: Sequence[str], prompts: Prompts, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Return the tokens of each document, those of its prompt apart: what follows a prompt is tokenised as in generation."""
    begins = [prompts.texts[document] for document in documents]
    ends = [document.removeprefix(begin) for document, begin in zip(documents, begins, strict=True)]
    ids = tokenizer([*begins, *ends], add_special_tokens=False, verbose=False)["input_ids"]
    return [Example(begin, end) for begin, end in zip(ids[: len(begins)], ids[len(begins) :], strict=True)]
