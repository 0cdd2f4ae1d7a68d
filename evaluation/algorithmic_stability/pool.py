"""The examples that twin recoveries read: distinct blocks of the run's own text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from pruning.documents import Documents
from pruning.run_texts import spread_over


def draw_pool(
    parts: Sequence[Documents], size: tuple[int, int], tokenizer: PreTrainedTokenizerBase, seed: int
) -> torch.Tensor:
    """Return blocks (P, T) spread over all training documents, none of which shares a token with another.

    Args:
        parts: the documents that the recovery reads.
        size: P and T; (0, 0) for none.
        tokenizer: the model's.
        seed: draws the places.

    Raises:
        ValueError: the text is too short for so many distinct blocks, or it is made of examples with prompts.
    """
    if size[0] and any(part.prompts is not None for part in parts):
        raise ValueError(
            "algorithmic_stability=twins: reads plain text in blocks of one length, but the recovery's text has prompts: "
            "use algorithmic_stability=none, or text without prompts"
        )
    return spread_over(parts, size, tokenizer, seed, "algorithmic_stability=twins, distinct blocks")
