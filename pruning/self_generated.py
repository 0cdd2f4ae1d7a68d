"""Text that the dense model writes itself, so that nothing else is needed to calibrate and recover it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from pruning.cache import Cache
from pruning.documents import Documents, split_documents
from pruning.text import TextSource

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class FirstToken(Enum):
    """What the model's own documents begin with."""

    random = "random"
    begin = "begin"


@dataclass
class SelfGenerated(TextSource):
    """Text that the dense model writes itself: no data at all. Written once per model and seed, then cached."""

    num_documents: int = 256
    document_length: int = 128
    """Tokens in each document."""

    first_token: FirstToken = FirstToken.random
    """random: any token of the vocabulary but the special ones, another for each document (Liu et al., "LLM-QAT", 2023); begin:
    the beginning-of-text token, after which a model that was tuned on conversations writes their opening every time."""

    temperature: float = 1.0
    batch_size: int = 64
    """Documents written at once."""

    heldout_fraction: float = 0.125

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_documents", "document_length", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"data.{name}={value}: must be at least 1")
        if self.temperature <= 0:
            raise ValueError(f"data.temperature={self.temperature}: must be above 0")

    def documents(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, seed: int
    ) -> list[Documents]:
        """Return documents sampled from the model."""
        return [split_documents(self.texts(model, tokenizer, cache, seed), self.heldout_fraction)]

    def texts(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, seed: int) -> list[str]:
        """Return the texts that the model writes."""
        from pruning.model import fingerprint

        inputs = {
            "model": fingerprint(model),
            "seed": seed,
            "size": [self.num_documents, self.document_length, self.batch_size],
            "first_token": self.first_token.value,
            "temperature": self.temperature,
        }
        texts = cache.json("self_generated", inputs, lambda: self._write(model, tokenizer, seed))
        return [text for text in texts if text.strip()]

    def _write(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> list[str]:
        import torch

        from pruning.progress import track

        texts: list[str] = []
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            first = self._first_tokens(tokenizer).to(model.device)
            for begin in track(first.split(self.batch_size), "the model writes"):
                tokens = model.generate(  # type: ignore[operator]
                    begin,
                    attention_mask=torch.ones_like(begin),
                    max_new_tokens=self.document_length,
                    min_new_tokens=self.document_length,
                    do_sample=True,
                    temperature=self.temperature,
                    top_k=0,
                    use_cache=True,
                    pad_token_id=tokenizer.eos_token_id,
                )
                texts += tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts

    def _first_tokens(self, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
        """Return what each document begins with, (num_documents, 1), drawn with torch's generator."""
        import torch

        if self.first_token is FirstToken.begin:
            begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            return torch.full((self.num_documents, 1), begin)
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        ordinary = torch.tensor(sorted(set(range(len(tokenizer))) - special))
        return ordinary[torch.randint(len(ordinary), (self.num_documents, 1))]


def with_self_generated(
    parts: Sequence[Documents],
    share: float,
    tokens: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cache: Cache,
    seed: int,
) -> list[Documents]:
    """Return documents to calibrate on: those of a source, and what the model writes itself.

    Args:
        parts: the source's documents.
        share: of what is drawn from all of them that is the model's own, in [0, 1).
        tokens: that will be drawn in all, at most.
        model: the dense one.
        tokenizer: its tokenizer.
        cache: keeps what was written.
        seed: draws what is written.
    """
    if not share:
        return list(parts)
    source = SelfGenerated(num_documents=math.ceil(SPARE * share * tokens / SelfGenerated.document_length))
    texts = source.texts(model, tokenizer, cache, seed)
    weight = share / (1 - share) * sum(part.weight for part in parts)
    return [*parts, Documents(texts, [], key="data.self_generated_share", weight=weight)]


SPARE = 1.1
"""How much more is written than will be drawn: text may become fewer tokens than it was written in."""
