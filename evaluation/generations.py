"""Samples to read: how the dense, the pruned and the recovered model go on after the same few prompts of held-out text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPT_TOKENS = 32
NEW_TOKENS = 48


def continue_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: torch.Tensor
) -> dict[str, str]:
    """Return prompt -> what the model writes after it: the likeliest token each time, until it ends or NEW_TOKENS are there.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        prompts: token ids, (N, T), run as one batch.
    """
    import torch

    ids = prompts.to(model.device)
    written = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    new = written[:, prompts.shape[1] :]
    texts = (tokenizer.batch_decode(each, skip_special_tokens=True) for each in (prompts, new))
    return dict(zip(*texts, strict=True))


def generations_table(folder: Path) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows with one line for every prompt in a run folder's `generations.json`; no rows without one."""
    try:
        stages = json.loads((folder / "generations.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        stages = {}
    prompts = list(dict.fromkeys(prompt for found in stages.values() for prompt in found))
    rows = [[prompt, *(found.get(prompt) for found in stages.values())] for prompt in prompts]
    return ["prompt", *stages], rows
