"""Instructions with their responses: documents of which a recovery learns the responses only.

A record has an `instruction`, an `output` and, where there is one, an `input` (Taori et al., "Stanford Alpaca", 2023). It is
written in Alpaca's own form or in the model's chat template. A document is the whole text with its special tokens, so that
importance can be measured on instructions as well; recovery reads each as an example of its own (`pruning.packing`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from pruning.cache import Cache
from pruning.documents import Documents, Prompts, TooLong, file_corpora, hub_corpus, hub_rows, split_documents
from pruning.text import TextSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Record = Mapping[str, Any]

FIELDS = ("instruction", "output")
"""What every record must have."""

ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
"""The form that models tuned on Alpaca's records know, to the letter."""


class Form(Enum):
    """How a record is written."""

    alpaca = "alpaca"
    chat = "chat"


@dataclass
class Instructions(TextSource):
    """Instructions with responses, from a file or the hub: recovery learns the responses only."""

    path: str = MISSING
    """A .jsonl file (a record a line), a .json file (a list of records), or a data set of the hub."""

    split: str = "train"
    """Of a data set of the hub."""

    form: Form = Form.alpaca
    """alpaca: Alpaca's text around a record; chat: the chat template that comes with the model."""

    too_long: TooLong = TooLong.cut
    """What becomes of an example longer than `recovery.length`. cut: its end is left out; drop: all of it."""

    pack: bool = True
    """Whether several examples share a row, none seeing another; false: one in a row, rows of similar length together."""

    max_documents: int = 60000
    """Records read at most, from the beginning."""

    heldout_fraction: float = 0.04

    def documents(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, seed: int
    ) -> list[Documents]:
        """Return every n-th record held out and the others for training, each with its prompt."""
        if self.pack:
            from pruning.packing import check_packing

            check_packing(model, "data.pack")
        place = Path(self.path).expanduser()
        local = place.exists() or place.suffix in (".json", ".jsonl")
        records = islice(read_file(place) if local else read_hub(self.path, self.split), self.max_documents)
        write = writer(self.form, tokenizer)
        texts = {prompt + response: prompt for prompt, response in map(write, records)}
        if not texts:
            raise ValueError(f"data.path={self.path}: there is no record in it")
        corpora = file_corpora([place]) if local else {hub_corpus(self.path)}
        found = split_documents(list(texts), self.heldout_fraction, corpora)
        return [replace(found, prompts=Prompts(texts, self.too_long, self.pack))]


def read_file(path: Path) -> Iterator[Record]:
    """Return the records of a .jsonl or .json file.

    Raises:
        ValueError: no such file, no JSON, or a record that lacks a field; names the file and the line, or in a .json file the
            number of the record.
    """
    if not path.is_file() or path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"data.path={path}: must be a .jsonl or .json file of records, or a data set of the hub")
    return checked(_lines(path) if path.suffix == ".jsonl" else _items(path))


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"data.path={path}, line {number}"
                try:
                    yield place, json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{place}: no JSON: {error}") from None


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"data.path={path}: no JSON: {error}") from None
    if not isinstance(found, list):
        raise ValueError(f"data.path={path}: must hold a list of records, or be a .jsonl file with a record a line")
    for number, record in enumerate(found, start=1):
        yield f"data.path={path}, record {number}", record


def read_hub(path: str, split: str) -> Iterator[Record]:
    """Return the records of a data set of the hub, in its order."""
    rows = enumerate(hub_rows(path, split), start=1)
    return checked((f"data.path={path}, record {number}", row) for number, row in rows)


def checked(records: Iterable[tuple[str, Any]]) -> Iterator[Record]:
    """Return the records after a look at their fields; each comes with its place, which an error names."""
    for place, record in records:
        has = sorted(record) if isinstance(record, dict) else type(record).__name__
        missing = [name for name in FIELDS if not (isinstance(record, dict) and isinstance(record.get(name), str))]
        if missing:
            raise ValueError(f"{place}: no text under {' and '.join(map(repr, missing))}; it has {has}")
        if not record["output"].strip():
            raise ValueError(f"{place}: its 'output' is empty, so there is nothing to learn; leave the record out")
        yield record


def writer(form: Form, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the function that writes a record as its prompt and its response, special tokens included.

    Raises:
        ValueError: the chat template is asked for and the tokenizer has none.
    """
    if form is Form.chat and not tokenizer.chat_template:
        raise ValueError("data.form=chat: the model's tokenizer has no chat template; use data.form=alpaca")
    begin = tokenizer.bos_token if tokenizer.bos_token_id in tokenizer("")["input_ids"] else ""
    end = tokenizer.eos_token or ""

    def alpaca(record: Record) -> tuple[str, str]:
        template = ALPACA_WITH_INPUT if record.get("input") else ALPACA
        return begin + template.format_map(record), record["output"].strip() + end

    def chat(record: Record) -> tuple[str, str]:
        asked = "\n\n".join(text for text in (record["instruction"], record.get("input")) if text)
        talk = [{"role": "user", "content": asked}, {"role": "assistant", "content": record["output"].strip()}]
        prompt = tokenizer.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(talk, tokenize=False)
        assert isinstance(prompt, str)
        assert isinstance(whole, str)
        if not whole.startswith(prompt):
            raise ValueError(
                "data.form=chat: the model's chat template writes a question otherwise once it is answered, so the "
                "response cannot be told from the prompt; use data.form=alpaca"
            )
        return prompt, whole.removeprefix(prompt)

    return chat if form is Form.chat else alpaca
