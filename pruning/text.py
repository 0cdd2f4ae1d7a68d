"""Text sources: where the documents come from that calibrate, recover and probe a model.

A source gives documents in two parts. What calibrates and recovers a model comes from `train`, what is measured for the
generalization gap from `heldout`; no document is in both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from pruning.bundled import boolq_passages, half_of_passages
from pruning.cache import Cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Documents:
    """Documents of one source in two disjoint parts."""

    train: list[str]
    heldout: list[str]


@dataclass
class TextSource:
    """Base of the `data` options."""

    calibration_samples: int = 32
    """Number of token blocks that gradient and activation scores are measured on."""

    calibration_length: int = 64
    """Tokens in each of them."""

    def __post_init__(self) -> None:
        for name in ("calibration_samples", "calibration_length"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"data.{name}={value}: must be at least 1")

    def documents(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, seed: int
    ) -> Documents:
        """Return the source's documents. Only a source that lets the model write uses the arguments."""
        raise NotImplementedError


@dataclass
class BundledPassages(TextSource):
    """Book passages that come with the installation: no download."""

    def documents(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, seed: int
    ) -> Documents:
        """Return the first half of the passages for training and the second half held out."""
        return Documents(half_of_passages(heldout=False), half_of_passages(heldout=True))


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
    ) -> Documents:
        """Return every n-th document held out and the others for training."""
        return split_documents(read_documents(self.path, self.template, key="data.path"), self.heldout_fraction)


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
    ) -> Documents:
        """Return every n-th row held out and the others for training."""
        from datasets import load_dataset

        try:
            rows = load_dataset(self.path, self.config, split=self.split, streaming=True).take(self.max_documents)
            texts = [fill_template(self.template, row, f"data.path={self.path}") for row in rows]
        except (OSError, ConnectionError) as error:
            raise ValueError(
                f"data.path={self.path}: not on this machine and cannot be fetched ({error}): "
                "use data=bundled, data=self_generated, or data=local data.path=<file>"
            ) from error
        return split_documents([text for text in texts if text.strip()], self.heldout_fraction)


@dataclass
class SelfGenerated(TextSource):
    """Text that the dense model writes itself: no data at all. Written once per model and seed, then cached."""

    num_documents: int = 64
    document_length: int = 128
    """Tokens in each document."""

    temperature: float = 1.0
    batch_size: int = 32
    heldout_fraction: float = 0.125

    def documents(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, seed: int
    ) -> Documents:
        """Return documents sampled from the model, starting from its beginning-of-text token."""
        from pruning.model import fingerprint

        inputs = {
            "model": fingerprint(model),
            "seed": seed,
            "size": [self.num_documents, self.document_length, self.batch_size],
            "temperature": self.temperature,
        }
        texts = cache.json("self_generated", inputs, lambda: self._write(model, tokenizer, seed))
        return split_documents([text for text in texts if text.strip()], self.heldout_fraction)

    def _write(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> list[str]:
        import torch
        from tqdm import trange

        begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        texts: list[str] = []
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            for start in trange(0, self.num_documents, self.batch_size, desc="the model writes"):
                size = min(self.batch_size, self.num_documents - start)
                tokens = model.generate(  # type: ignore[operator]
                    torch.full((size, 1), begin, device=model.device),
                    attention_mask=torch.ones(size, 1, dtype=torch.long, device=model.device),
                    max_new_tokens=self.document_length,
                    min_new_tokens=self.document_length,
                    do_sample=True,
                    temperature=self.temperature,
                    top_k=0,
                    pad_token_id=tokenizer.eos_token_id,
                )
                texts += tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts


def split_documents(documents: Sequence[str], heldout_fraction: float) -> Documents:
    """Hold out every n-th document, n = 1 / `heldout_fraction` rounded."""
    if not 0 < heldout_fraction < 1:
        raise ValueError(f"data.heldout_fraction={heldout_fraction}: must be in (0, 1)")
    period = max(2, round(1 / heldout_fraction))
    heldout = [text for index, text in enumerate(documents) if index % period == period - 1]
    train = [text for index, text in enumerate(documents) if index % period != period - 1]
    return Documents(train, heldout)


def fill_template(template: str, row: dict[str, Any], place: str) -> str:
    """Return `template` with the row's fields put in; a missing field is an error that names `place`."""
    try:
        return template.format_map(row).strip()
    except KeyError as missing:
        raise ValueError(f"{place}: no field {missing} for the template {template!r}; it has {sorted(row)}") from None


def read_documents(path: str, template: str = "{text}", key: str = "path") -> list[str]:
    """Return the documents of a .txt file (parts between blank lines), a .jsonl file, or a folder of such files.

    Raises:
        ValueError: no such file, another format, a broken line, or no text in it; names `key` and the line.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        files = sorted(file for file in place.iterdir() if file.suffix in (".txt", ".jsonl"))
        documents = [text for file in files for text in read_documents(str(file), template, key)]
    elif not place.exists():
        raise ValueError(f"{key}={path}: there is no such file or folder")
    elif place.suffix == ".jsonl":
        documents = list(_read_jsonl(place, template, key))
    elif place.suffix == ".txt":
        paragraphs = place.read_text(encoding="utf-8").split("\n")
        documents = [text.strip() for text in _join_until_blank(paragraphs)]
    else:
        raise ValueError(f"{key}={path}: must be a .txt file, a .jsonl file, or a folder of them")
    if not documents:
        raise ValueError(f"{key}={path}: there is no text in it")
    return documents


def _read_jsonl(path: Path, template: str, key: str) -> Iterable[str]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{key}={path}: line {number} is no JSON: {error}") from None
            if text := fill_template(template, row, f"{key}={path}, line {number}"):
                yield text


def _join_until_blank(lines: Sequence[str]) -> Iterable[str]:
    paragraph: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph = []


CORPORA = {"passages": lambda: half_of_passages(heldout=True), "wikipedia": boolq_passages}
"""Bundled corpora that perplexity and probes may name: held-out book passages, and BoolQ's encyclopedia passages."""


def read_corpus(name_or_path: str, key: str) -> list[str]:
    """Return the documents of a bundled corpus by name, or of a local file by path."""
    if name_or_path in CORPORA:
        return CORPORA[name_or_path]()
    if not Path(name_or_path).exists() and not name_or_path.endswith((".txt", ".jsonl")):
        raise ValueError(f"{key}={name_or_path}: must be one of {sorted(CORPORA)}, or a .txt or .jsonl file")
    return read_documents(name_or_path, key=key)
