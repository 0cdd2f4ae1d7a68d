"""Documents: read from files or from what is bundled, split in two, and known by the corpora they are from.

A corpus is named by what it is, not by where it lies: a file by its content (`file:<SHA-256>`), a set of the hub by its
name (`hub:<name>`), a bundled one as `bundled:<name>`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from pruning.bundled import boolq_passages, half_of_passages
from pruning.cache import file_digest

FORMATS = (".txt", ".jsonl")


class TooLong(Enum):
    """What becomes of an example that is longer than a row."""

    cut = "cut"
    drop = "drop"


@dataclass(frozen=True)
class Prompts:
    """What documents begin with that is read but not learnt, and how they become rows of tokens."""

    texts: Mapping[str, str]
    """Document -> its beginning."""

    too_long: TooLong
    pack: bool
    """Whether several examples go into one row."""


@dataclass(frozen=True)
class Documents:
    """Documents of one source in two disjoint parts: what calibrates and recovers, and what is held out."""

    train: list[str]
    heldout: list[str]
    corpora: frozenset[str] = frozenset()
    """Names of the corpora they are from; empty where none is behind them."""

    key: str = "data"
    """Where the source stands in the configuration."""

    weight: float = 1.0
    """Tokens drawn from it, relative to the other sources of a mixture."""

    prompts: Prompts | None = None
    """Given where documents are examples to train on one by one; recovery learns what follows each prompt."""


def split_documents(documents: Sequence[str], heldout_fraction: float, corpora: Iterable[str] = ()) -> Documents:
    """Hold out every n-th of the distinct documents, n = 1 / `heldout_fraction` rounded."""
    if not 0 < heldout_fraction < 1:
        raise ValueError(f"data.heldout_fraction={heldout_fraction}: must be in (0, 1)")
    period = max(2, round(1 / heldout_fraction))
    distinct = list(dict.fromkeys(documents))
    heldout = [text for index, text in enumerate(distinct) if index % period == period - 1]
    train = [text for index, text in enumerate(distinct) if index % period != period - 1]
    return Documents(train, heldout, frozenset(corpora))


def fill_template(template: str, row: dict[str, Any], place: str) -> str:
    """Return `template` with the row's fields put in; a missing field is an error that names `place`."""
    try:
        return template.format_map(row).strip()
    except KeyError as missing:
        raise ValueError(f"{place}: no field {missing} for the template {template!r}; it has {sorted(row)}") from None


def text_files(path: str, key: str) -> list[Path]:
    """Return the file at `path`, or those of a folder in the order of their names.

    Raises:
        ValueError: no such file or folder, or another format; names `key`.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise ValueError(f"{key}={path}: there is no such file or folder")
    files = sorted(file for file in place.iterdir() if file.suffix in FORMATS) if place.is_dir() else [place]
    if not files or files[0].suffix not in FORMATS:
        raise ValueError(f"{key}={path}: must be a .txt file, a .jsonl file, or a folder of them")
    return files


def read_documents(path: str, template: str = "{text}", key: str = "path") -> list[str]:
    """Return the documents of a .txt file (parts between blank lines), a .jsonl file, or a folder of such files.

    Raises:
        ValueError: no such file, another format, a broken line, or no text in it; names `key` and the line.
    """
    documents: list[str] = []
    for file in text_files(path, key):
        if file.suffix == ".jsonl":
            documents += _read_jsonl(file, template, key)
        else:
            paragraphs = file.read_text(encoding="utf-8").split("\n")
            documents += [text.strip() for text in _join_until_blank(paragraphs)]
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


def file_corpora(files: Iterable[Path]) -> frozenset[str]:
    """Return the names of files as corpora: equal for copies, whatever they are called."""
    return frozenset(f"file:{file_digest(file)}" for file in files)


def hub_rows(path: str, split: str, config: str | None = None) -> Iterator[dict[str, Any]]:
    """Return the rows of a data set of the hub, or of a folder in its formats, in their order.

    Raises:
        ValueError: it is not there, has no such split or configuration, or cannot be read.
    """
    from datasets import load_dataset

    try:
        yield from load_dataset(path, config, split=split, streaming=True)
    except (OSError, ConnectionError) as error:
        raise ValueError(
            f"data.path={path}: not on this machine and cannot be fetched ({error}): use data=bundled, "
            "data=self_generated, or a file of your own"
        ) from error
    except ValueError as error:
        asked = f"config={config}, split={split}" if config else f"split={split}"
        raise ValueError(f"data.path={path} with {asked} cannot be read: {error}") from error


def hub_corpus(name: str) -> str:
    """Return the name of a hub data set as a corpus; all its configurations and splits are one corpus."""
    return f"hub:{name.lower()}"


CORPORA = {"passages": lambda: half_of_passages(heldout=True), "wikipedia": boolq_passages}
"""Bundled corpora that perplexity and probes may name: held-out book passages, and BoolQ's encyclopedia passages."""

HUB_NAMES = {
    "passages": ("cimec/lambada", "lambada", "EleutherAI/lambada_openai", "bookcorpus/bookcorpus", "bookcorpus"),
    "wikipedia": ("google/boolq", "boolq", "aps/super_glue", "super_glue"),
}
"""Bundled corpus -> the hub's data sets that hold the same passages, or the books that they were taken from."""


def read_corpus(name_or_path: str, key: str) -> list[str]:
    """Return the documents of a bundled corpus by name, or of a local file by path."""
    if name_or_path in CORPORA:
        return CORPORA[name_or_path]()
    if not Path(name_or_path).exists() and not name_or_path.endswith(FORMATS):
        raise ValueError(f"{key}={name_or_path}: must be one of {sorted(CORPORA)}, or a .txt or .jsonl file")
    return read_documents(name_or_path, key=key)


def corpora_of(name_or_path: str, key: str) -> frozenset[str]:
    """Return the names of the corpora that `read_corpus` reads for the same arguments."""
    if name_or_path in CORPORA:
        return frozenset({f"bundled:{name_or_path}", *map(hub_corpus, HUB_NAMES[name_or_path])})
    return file_corpora(text_files(name_or_path, key))
