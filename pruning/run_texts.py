"""What a run calibrates on, trains on, and measures the generalization gap on: blocks drawn from its `data` source.

From a mixture, blocks are drawn in proportion to the weights of its parts. Letters: N blocks, T tokens in a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from pruning.blocks import spread_blocks, token_blocks
from pruning.documents import Documents
from pruning.examples import example_rows
from pruning.packing import as_blocks, as_rows


@dataclass(frozen=True)
class RunTexts:
    """The token blocks of one run, all drawn from its `data` source."""

    calibration: torch.Tensor
    """(calibration_samples, calibration_length), from the training documents."""

    compensation: torch.Tensor
    """(N, T) that compensation takes moments on, from the training documents; empty without compensation."""

    recovery: torch.Tensor
    """(N, T) that recovery trains on, or rows (N, 3, T) (`pruning.packing`) where a part has prompts; empty without any."""

    train_slice: torch.Tensor | None
    """(N, T), the first of the distinct recovery blocks, scored for the generalization gap; None without recovery."""

    heldout: torch.Tensor | None
    """As many blocks of the source's held-out documents."""

    validation: torch.Tensor
    """More blocks of these, by which a recovery may end early; empty where it does not."""


GAP_BLOCKS = 32
"""Blocks of training and of held-out text that the generalization gap is measured on, at most."""


def draw_texts(
    parts: Sequence[Documents],
    blocks: Mapping[str, tuple[int, int]],
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    recovery_parts: Sequence[Documents] = (),
) -> RunTexts:
    """Draw everything that a run reads from its source.

    Args:
        parts: the documents of the `data` option; blocks are drawn from each in proportion to its weight.
        blocks: number and length (N, T) of the blocks that each use asks for, (0, 0) for none: `calibration` for
            importance, `compensation`, and `recovery`, for which a part that is shorter is repeated, with `validation`.
        tokenizer: the model's.
        seed: draws the order of the documents, and the places of the calibration blocks.
        recovery_parts: the documents of `recovery.data`; without any, recovery reads `parts`.

    Raises:
        ValueError: a part is too short for what is drawn from it, or so light that no calibration block is.
    """
    check_weights(parts, blocks["calibration"][0])
    calibration, compensation = calibration_blocks(parts, blocks, tokenizer, seed)
    count, length = blocks["recovery"]
    if count == 0:
        nothing = torch.empty(0, 0, dtype=torch.long)
        return RunTexts(calibration, compensation, nothing, None, None, nothing)

    def draw_recovery(part: Documents, count: int) -> torch.Tensor:
        blocks = training_blocks(part, part.train, tokenizer, (count, length), seed + 1, "")
        return blocks[torch.arange(count) % len(blocks)]

    def draw_heldout(part: Documents, count: int) -> torch.Tensor:
        blocks = as_blocks(
            training_blocks(part, part.heldout, tokenizer, (count, length), seed, "the held-out part of ")
        )
        if not len(blocks):
            raise ValueError(
                f"recovery.length={length}: the held-out part of {part.key} is shorter; hold out more of it"
            )
        return blocks

    sources = recovery_parts or parts
    recovery = mixed_blocks(sources, count, draw_recovery)
    train_slice = torch.tensor(list(dict.fromkeys(map(tuple, as_blocks(recovery).tolist())))[:GAP_BLOCKS])
    validations, _ = blocks.get("validation", (0, 0))
    heldout = mixed_blocks(sources, GAP_BLOCKS + validations, draw_heldout)
    if validations and len(heldout) <= GAP_BLOCKS:
        raise ValueError(
            f"recovery.patience: no block is left to validate on: the held-out text has only {len(heldout)} blocks of "
            f"recovery.length={length}, and {GAP_BLOCKS} are measured on; give more text, or recovery.patience=null"
        )
    return RunTexts(calibration, compensation, recovery, train_slice, heldout[:GAP_BLOCKS], heldout[GAP_BLOCKS:])


def training_blocks(
    part: Documents,
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    size: tuple[int, int],
    seed: int,
    prefix: str,
) -> torch.Tensor:
    """Return at most N blocks (N, T) of some documents of a part, or rows (N, 3, T) of examples where it has prompts.

    Args:
        part: where the documents are from.
        documents: its training documents, or those held out.
        tokenizer: used without special tokens: a document has its own.
        size: N and T.
        seed: draws the order of the documents.
        prefix: what stands before the part's key in errors.
    """
    count, length = size
    purpose = f"recovery.length={length}, from {prefix}{part.key}"
    if part.prompts is None:
        return token_blocks(documents, tokenizer, length, count, purpose=purpose, seed=seed)
    return example_rows(documents, part.prompts, tokenizer, length, count, purpose=purpose, seed=seed)


def calibration_blocks(
    parts: Sequence[Documents],
    blocks: Mapping[str, tuple[int, int]],
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the blocks for importance and for compensation: where theirs are as long, the first of the more are the fewer."""
    keys = {"calibration": "data.calibration_samples", "compensation": "compensation.samples"}
    (first, first_length), (second, second_length) = (blocks[use] for use in keys)
    if first_length != second_length:
        calibration, compensation = (spread_over(parts, blocks[use], tokenizer, seed, key) for use, key in keys.items())
        return calibration, compensation
    more = max(keys, key=lambda use: blocks[use][0])
    drawn = spread_over(parts, blocks[more], tokenizer, seed, keys[more])
    return drawn[:first], drawn[:second]


def spread_over(
    parts: Sequence[Documents], size: tuple[int, int], tokenizer: PreTrainedTokenizerBase, seed: int, key: str
) -> torch.Tensor:
    """Return blocks (N, T) spread over all documents of all parts; `key` asks for them. Empty where none are asked for."""
    samples, length = size
    if samples == 0:
        return torch.empty(0, 0, dtype=torch.long)

    def draw(part: Documents, count: int) -> torch.Tensor:
        purpose = f"{key}={samples}, of which {count} from {part.key}"
        return spread_blocks(part.train, tokenizer, length, count, purpose=purpose, seed=seed)

    return mixed_blocks(parts, samples, draw)


def check_weights(parts: Sequence[Documents], samples: int) -> None:
    """Raise where a part of a mixture is so light that none of the calibration samples comes from it."""
    order = interleave([part.weight for part in parts], samples)
    for index, part in enumerate(parts):
        if index not in order:
            raise ValueError(
                f"{part.key}.weight={part.weight:g}: none of data.calibration_samples={samples} comes from this part: "
                "give it more weight, ask for more samples, or leave it out"
            )


def mixed_blocks(
    parts: Sequence[Documents], count: int, draw: Callable[[Documents, int], torch.Tensor]
) -> torch.Tensor:
    """Return `count` blocks (N, T), drawn from each part in proportion to its weight and interleaved.

    Every beginning of the result, and so both of its halves, is mixed in proportion. It ends early where `draw` gives fewer
    blocks of a part than asked for.
    """
    order = interleave([part.weight for part in parts], count)
    drawn = {index: iter(draw(parts[index], order.count(index))) for index in set(order)}
    blocks = []
    for index in order:
        if (block := next(drawn[index], None)) is None:
            break
        blocks.append(block)
    if any(block.dim() == 2 for block in blocks):
        blocks = [as_rows(block[None])[0] if block.dim() == 1 else block for block in blocks]
    return torch.stack(blocks)


def interleave(weights: Sequence[float], count: int) -> list[int]:
    """Return which of the weighted parts each of `count` blocks comes from: always the one that is furthest behind."""
    total, given = sum(weights), [0] * len(weights)
    order = []
    for drawn in range(1, count + 1):
        behind = [weight / total * drawn - had for weight, had in zip(weights, given, strict=True)]
        order.append(behind.index(max(behind)))
        given[order[-1]] += 1
    return order
