"""A text source made of several: tokens are drawn from its parts in proportion to their weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from pruning.cache import Cache
from pruning.documents import Documents, TooLong
from pruning.instructions import Form, Instructions
from pruning.self_generated import FirstToken, SelfGenerated
from pruning.text import BundledPassages, HubText, LocalText, TextSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PartSource(Enum):
    """The `data` option that a part is read like."""

    local = "local"
    hub = "hub"
    bundled = "bundled"
    self_generated = "self_generated"
    instructions = "instructions"


SOURCES: dict[PartSource, type[TextSource]] = {
    PartSource.local: LocalText,
    PartSource.hub: HubText,
    PartSource.bundled: BundledPassages,
    PartSource.self_generated: SelfGenerated,
    PartSource.instructions: Instructions,
}


@dataclass
class MixturePart:
    """One source of a mixture. The keys after `weight` are those of its source; null stands for that source's default."""

    source: PartSource = PartSource.local
    weight: float = 1.0
    """Tokens drawn from this part, relative to the others; above 0."""

    path: str | None = None
    template: str | None = None
    heldout_fraction: float | None = None
    config: str | None = None
    split: str | None = None
    max_documents: int | None = None
    num_documents: int | None = None
    document_length: int | None = None
    first_token: FirstToken | None = None
    temperature: float | None = None
    batch_size: int | None = None
    form: Form | None = None
    too_long: TooLong | None = None
    pack: bool | None = None

    def text_source(self, key: str) -> TextSource:
        """Return the source with the keys that were given; `key` is where the part stands in the configuration.

        Raises:
            ValueError: a weight of 0 or less, no path where one is needed, or a key of another source.
        """
        kind = SOURCES[self.source]
        own = {item.name for item in fields(kind)} - {item.name for item in fields(TextSource)}
        given = {name: value for name, value in self._settings().items() if value is not None}
        if not 0 < self.weight < math.inf:
            raise ValueError(f"{key}.weight={self.weight}: must be above 0; leave the part out to draw nothing from it")
        if "path" in own - given.keys():
            raise ValueError(f"{key}.path is not given: a part with source={self.source.value} needs it")
        for name in given.keys() - own:
            raise ValueError(
                f"{key}.{name}={given[name]}: a part with source={self.source.value} has no such key. "
                f"Allowed: {', '.join(sorted(own)) or 'only weight'}"
            )
        with errors_naming(key):
            return kind(**given)

    def _settings(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("source", "weight")}


@dataclass
class Mixture(TextSource):
    """Several sources at once."""

    parts: dict[str, MixturePart] = field(default_factory=dict)
    """Name -> source, weight and the keys of that source."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parts:
            raise ValueError(
                "data.parts={}: name at least one part, e.g. "
                "'+data.parts={books: {path: books.jsonl}, web: {path: web.jsonl, weight: 2}}'"
            )
        check_parts(self.parts, "data.parts")

    def documents(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, seed: int
    ) -> list[Documents]:
        """Return the documents of every part, by name: like a run's key, they do not depend on the order they were given in."""
        return part_documents(self.parts, "data.parts", model, tokenizer, cache, seed)


def check_parts(parts: Mapping[str, MixturePart], key: str) -> None:
    """Raise for what is wrong with the parts that stand under `key` in the configuration, before anything is read."""
    for name, part in parts.items():
        part.text_source(f"{key}.{name}")


def part_documents(
    parts: Mapping[str, MixturePart],
    key: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cache: Cache,
    seed: int,
) -> list[Documents]:
    """Return the documents of the parts that stand under `key` in the configuration, by name."""
    found = []
    for name, part in sorted(parts.items()):
        with errors_naming(f"{key}.{name}"):
            (documents,) = part.text_source(f"{key}.{name}").documents(model, tokenizer, cache, seed)
        found.append(replace(documents, key=f"{key}.{name}", weight=part.weight))
    return found


@contextmanager
def errors_naming(key: str) -> Iterator[None]:
    """Let what a source says of `data.<name>` name the part's own key."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("data.", f"{key}.", 1)) from error
