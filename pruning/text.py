"""Text sources: where the documents come from that calibrate, recover and probe a model.

A source gives documents in two parts. What calibrates and recovers a model comes from `train`, what is measured for the
generalization gap from `heldout`; no document is in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from pruning.bundled import half_of_passages
from pruning.cache import Cache
from pruning.documents import (
    Documents,
    file_corpora,
    fill_template,
    hub_corpus,
    hub_rows,
    read_documents,
    split_documents,
    text_files,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class AllowTested(Enum):
    """How near to the text that a run is measured on its own text may be."""

    none = "none"
    corpus = "corpus"
    documents = "documents"


@dataclass
class TextSource:
    """Base of the `data` options."""

    calibration_samples: int = 32
    """Number of token blocks that gradient and activation scores are measured on."""

    calibration_length: int = 64
    """Tokens in each of them."""

    self_generated_share: float = 0.0
    """Share of the blocks for importance and compensation that the dense model writes itself, in [0, 1): text like what it has
    learnt, whatever the source holds."""

    allow_tested: AllowTested = AllowTested.none
    """none: refuse text of a corpus that perplexity or the probes are measured on; corpus: allow other documents of it,
    and mark the figures as in domain; documents: allow even the same documents, and mark the figures as contaminated."""

    def __post_init__(self) -> None:
        for name in ("calibration_samples", "calibration_length"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"data.{name}={value}: must be at least 1")
        if not 0 <= self.self_generated_share < 1:
            raise ValueError(
                f"data.self_generated_share={self.self_generated_share}: must be in [0, 1); data=self_generated is for 1"
            )

    def documents(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, seed: int
    ) -> list[Documents]:
        """Return the source's documents: one entry, or one for each part of a mixture.

        Only a source that lets the model write uses the arguments.
        """
        raise NotImplementedError


@dataclass
class BundledPassages(TextSource):
    """Book passages that come with the installation: no download."""

    def documents(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, seed: int
    ) -> list[Documents]:
        """Return the first half of the passages for training and the second half held out."""
        train, heldout = half_of_passages(heldout=False), half_of_passages(heldout=True)
        return [Documents(train, heldout, frozenset({"bundled:passages"}))]


@dataclass
class LocalText(TextSource):
    """Your own .txt (documents between blank lines) or .jsonl files."""

    path: str = MISSING
    """A .txt or .jsonl file, or a folder of them."""

    template: str = "{text}"
    """How a document is made of a .jsonl line's fields, e.g. "{instruction}\\n{input}\\n{output}"."""

    heldout_fraction: float = 0.1
    """Part of the documents that is held out, spread evenly over the file. In (0, 1)."""

    def documents(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, seed: int
    ) -> list[Documents]:
        """Return every n-th document held out and the others for training."""
        texts = read_documents(self.path, self.template, key="data.path")
        return [split_documents(texts, self.heldout_fraction, file_corpora(text_files(self.path, "data.path")))]


@dataclass
class HubText(TextSource):
    """A data set of the Hugging Face hub (needs a network or a filled cache), or a local folder in its formats."""

    path: str = MISSING
    config: str | None = None
    split: str = "train"
    template: str = "{text}"
    """How a document is made of a row's fields."""

    max_documents: int = 20000
    """Rows read at most, from the beginning."""

    heldout_fraction: float = 0.1

    def documents(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, seed: int
    ) -> list[Documents]:
        """Return every n-th row held out and the others for training."""
        rows = enumerate(islice(hub_rows(self.path, self.split, self.config), self.max_documents), start=1)
        texts = [fill_template(self.template, row, f"data.path={self.path}, row {number}") for number, row in rows]
        texts = [text for text in texts if text]
        if not texts:
            raise ValueError(f"data.path={self.path}: there is no text in its split={self.split}")
        place = Path(self.path)
        files = [file for file in place.rglob("*") if file.is_file()] if place.is_dir() else []
        corpora = file_corpora(files) or {hub_corpus(self.path)}
        return [split_documents(texts, self.heldout_fraction, corpora)]
