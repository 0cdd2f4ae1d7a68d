"""Examples of unequal length become rows of equal length, several in one row, with no leak from one to the next.

Every example keeps positions of its own, from 0 on. transformers builds a block mask from positions that begin again, where
it is given no other mask and keeps no keys and values, so a row's logits are those of each example alone
(`check_packing` finds the models for which they are not).

The surprise: rows are one tensor (N, 3, T) of token ids, labels and segments, so that they are drawn, shuffled and kept like
the blocks (N, T) of plain text. Letters: N rows, T tokens in a row, B rows in a batch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from pruning.documents import TooLong

NOT_LEARNT = -100
"""Label of a token that is not learnt: what torch and transformers leave out of the loss."""

OPEN_ROWS = 256
"""Rows that are still filled at the same time."""

BUCKET = 8
"""Rows of similar length that stand together where there is one example in a row."""


@dataclass(frozen=True)
class Example:
    """What is learnt, and what is only read before it."""

    prompt: list[int]
    response: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def fitted(examples: Sequence[Example], length: int, too_long: TooLong) -> tuple[list[Example], int, int]:
    """Return the examples that fit in `length` tokens, how many of them were cut at their end, and how many were left out.

    An example whose prompt alone fills the row has nothing to learn, so it is left out either way.
    """
    found: list[Example] = []
    cut = 0
    for example in examples:
        if len(example) <= length:
            found.append(example)
        elif too_long is TooLong.cut and len(example.prompt) < length:
            found.append(Example(example.prompt, example.response[: length - len(example.prompt)]))
            cut += 1
    return found, cut, len(examples) - len(found)


def pack(lengths: Sequence[int], length: int, count: int) -> list[list[int]]:
    """Share examples out over at most `count` rows of `length` tokens, each to the first open row that has room.

    Args:
        lengths: tokens of each example, none above `length`; what needs a row too many is left out.
        length: T.
        count: N.

    Returns:
        For each row the indices of its examples.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index, size in enumerate(lengths):
        start = max(0, len(rows) - OPEN_ROWS)
        place = next((row for row in range(start, len(rows)) if room[row] >= size), len(rows))
        if place == len(rows):
            if place == count:
                continue
            rows.append([])
            room.append(length)
        rows[place].append(index)
        room[place] -= size
    return rows


def bucketed(lengths: Sequence[int], seed: int, size: int = BUCKET) -> list[int]:
    """Return an order in which rows of similar length stand together, `size` at a time, the groups in a drawn order.

    Rows are sorted within stretches of 16 groups, so that the order stays random over the whole.
    """
    draw = random.Random(seed)
    groups = []
    for start in range(0, len(lengths), 16 * size):
        stretch = sorted(range(start, min(start + 16 * size, len(lengths))), key=lambda index: lengths[index])
        groups += [stretch[first : first + size] for first in range(0, len(stretch), size)]
    draw.shuffle(groups)
    return [index for group in groups for index in group]


def to_rows(packed: Sequence[Sequence[Example]], length: int, padding: int) -> torch.Tensor:
    """Return rows (N, 3, T): ids, labels and segments.

    A label is the token itself where it is learnt. The first token of an example is never learnt: what stands before it
    belongs to another. Segments count the examples of a row from 1 on; padding, behind them, has 0.
    """
    rows = torch.empty(len(packed), 3, length, dtype=torch.long)
    rows[:, 0], rows[:, 1], rows[:, 2] = padding, NOT_LEARNT, 0
    for row, examples in zip(rows, packed, strict=True):
        start = 0
        for segment, example in enumerate(examples, start=1):
            end, learnt = start + len(example), start + max(1, len(example.prompt))
            row[0, start:end] = torch.tensor(example.prompt + example.response)
            row[1, learnt:end] = row[0, learnt:end]
            row[2, start:end] = segment
            start = end
    return rows


def as_rows(blocks: torch.Tensor) -> torch.Tensor:
    """Return rows (N, 3, T) of blocks (N, T) of plain text, of which every token is learnt; rows as they are."""
    if blocks.dim() == 3:
        return blocks
    labels = blocks.clone()
    labels[:, :1] = NOT_LEARNT
    return torch.stack([blocks, labels, torch.ones_like(blocks)], dim=1)


def token_count(blocks: torch.Tensor) -> int:
    """Return the number of tokens in blocks (N, T), or in rows (N, 3, T) without their padding."""
    return blocks.numel() if blocks.dim() == 2 else int((blocks[:, 2] > 0).sum())


def as_blocks(blocks: torch.Tensor) -> torch.Tensor:
    """Return the tokens of rows (N, 3, T) as blocks (M, T) of plain text, padding and the tail left out; blocks as they are."""
    if blocks.dim() == 2:
        return blocks
    length = blocks.shape[2]
    tokens = blocks[:, 0][blocks[:, 2] > 0]
    return tokens[: len(tokens) // length * length].view(-1, length)


def model_inputs(blocks: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what a model is called with for a batch of blocks (B, T) or rows (B, 3, T), all but the labels.

    Columns that are padding in every row are left out. No keys and values are kept: with them there would be no block mask.
    """
    if blocks.dim() == 2:
        return {"input_ids": blocks}
    blocks = trimmed(blocks)
    if int(blocks[:, 2].max()) < 2:  # padding stands behind the only example of each row, which does not see it
        return {"input_ids": blocks[:, 0]}
    return {"input_ids": blocks[:, 0], "position_ids": positions(blocks[:, 2])}


def labels_of(blocks: torch.Tensor) -> torch.Tensor:
    """Return the labels (B, T) of blocks (B, T) or rows (B, 3, T), trimmed like `model_inputs`."""
    return blocks if blocks.dim() == 2 else trimmed(blocks)[:, 1]


def trimmed(rows: torch.Tensor) -> torch.Tensor:
    """Return rows (B, 3, T) without the columns that are padding in all of them."""
    return rows[:, :, : int((rows[:, 2] > 0).any(dim=0).sum())]


def positions(segments: torch.Tensor) -> torch.Tensor:
    """Return the position of each token in its own example, from 0 on, (B, T), for the segments (B, T) of rows."""
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return index - torch.where(begins, index, 0).cummax(dim=1).values


@torch.no_grad()
def check_packing(model: PreTrainedModel, key: str) -> None:
    """Raise where the examples of one row would see each other in this model; `key` is what asks for packing.

    Made-up examples are run in one row and alone; their logits must be equal up to rounding.
    """
    embeddings: Any = model.get_input_embeddings()
    vocabulary: int = embeddings.num_embeddings
    tokens = [(7919 * index + 1) % vocabulary for index in range(24)]
    examples = [Example([], tokens[:9]), Example([], tokens[9:16]), Example([], tokens[16:])]

    def logits(blocks: torch.Tensor) -> torch.Tensor:
        inputs: dict[str, Any] = model_inputs(blocks.to(model.device))
        return model(**inputs, use_cache=False).logits.float()

    alone = torch.cat([logits(torch.tensor([example.response]))[0] for example in examples])
    try:
        error = logits(to_rows([examples], 24, 0))[0] - alone
    except TypeError:  # it takes no positions
        error = torch.full_like(alone, torch.inf)
    if not bool(error.square().mean() <= torch.finfo(model.dtype).eps * alone.var()):
        raise ValueError(
            f"{key}=true: in {type(model).__name__} the examples of one row would see each other; set {key}=false, one "
            "example in a row"
        )
