"""A mixture in the configuration: its parts are sources, and what is wrong with one names its key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from conf import identity, schema
from pruning.cache import Cache
from pruning.mixture import SOURCES, Mixture, MixturePart, PartSource
from pruning.self_generated import SelfGenerated
from pruning.text import BundledPassages, HubText, LocalText, TextSource


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    schema.register()
    identity.register()
    with initialize_config_dir(config_dir=str(Path(schema.__file__).parent), version_base="1.3"):
        yield


def composed(parts: str, *more: str) -> Mixture:
    found = schema.typed(compose("config", overrides=["data=mixture", f"+data.parts={parts}", *more])).data
    assert isinstance(found, Mixture)
    return found


def test_parts_are_the_sources_that_the_command_line_names() -> None:
    mixture = composed(
        "{mine: {path: a.jsonl, template: '{q}', weight: 2}, web: {source: hub, path: allenai/c4, config: en}, "
        "passages: {source: bundled}, own: {source: self_generated, num_documents: 8, first_token: begin}}",
        "data.parts.web.weight=0.5",
    )
    sources = {name: part.text_source("x") for name, part in mixture.parts.items()}
    assert sources == {
        "mine": LocalText(path="a.jsonl", template="{q}"),
        "web": HubText(path="allenai/c4", config="en"),
        "passages": BundledPassages(),
        "own": SelfGenerated(num_documents=8, first_token=sources["own"].first_token),
    }
    assert sources["own"].first_token.value == "begin"
    assert [part.weight for part in mixture.parts.values()] == [2, 0.5, 1, 1]


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ("{a: {pth: x.txt}}", "data.parts.a.pth"),
        ("{a: {path: x.txt, weight: much}}", "data.parts.a.weight"),
        ("{a: {source: lokal}}", r"local, hub, bundled, self_generated"),
        ("{a: x.txt}", "data.parts.a"),
    ],
)
def test_a_mistyped_part_dies_at_composition_and_is_named(parts: str, named: str) -> None:
    with pytest.raises(HydraException) as caught:
        composed(parts)
    assert named in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("{}", r"data\.parts=\{\}: name at least one part"),
        ("{a: {path: x.txt, weight: 0}}", r"data\.parts\.a\.weight=0\.0: must be above 0"),
        ("{a: {path: x.txt, weight: nan}}", r"data\.parts\.a\.weight=nan: must be above 0"),
        ("{a: {weight: 1}}", r"data\.parts\.a\.path is not given: a part with source=local needs it"),
        ("{a: {source: hub}}", r"data\.parts\.a\.path is not given: a part with source=hub"),
        ("{a: {path: x.txt, split: test}}", r"data\.parts\.a\.split=test: .*source=local.* Allowed: .*template"),
        ("{a: {source: bundled, path: x.txt}}", r"data\.parts\.a\.path=x\.txt: .* Allowed: only weight"),
        ("{b: {source: self_generated, temperature: 0}}", r"data\.parts\.b\.temperature=0\.0: must be above 0"),
    ],
)
def test_a_part_that_cannot_be_is_refused_before_any_work(parts: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        composed(parts)


def test_a_part_has_every_key_of_every_source() -> None:
    keys = {item.name for item in fields(MixturePart)} - {"source", "weight"}
    base = {item.name for item in fields(TextSource)}
    assert keys == {item.name for kind in SOURCES.values() for item in fields(kind)} - base
    assert set(SOURCES) == set(PartSource)


def test_documents_keep_their_part_and_its_weight(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"text {i}" for i in range(10)))
    (tmp_path / "b.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n')
    parts = {
        "mine": MixturePart(path=str(tmp_path / "a.txt"), weight=3, heldout_fraction=0.5),
        "other": MixturePart(path=str(tmp_path / "b.jsonl"), template="{body}", heldout_fraction=0.5),
    }
    mine, other = Mixture(parts=parts).documents(llama, tokenizer, cache, 0)
    assert (mine.key, mine.weight, len(mine.train), len(mine.heldout)) == ("data.parts.mine", 3, 5, 5)
    assert (other.key, other.weight, other.train, other.heldout) == ("data.parts.other", 1, ["one"], ["two"])
    assert [mine, other] == Mixture(parts=dict(reversed(parts.items()))).documents(llama, tokenizer, cache, 0)
    assert mine.corpora
    assert not mine.corpora & other.corpora


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (MixturePart(path="none.txt"), r"^data\.parts\.a\.path=none\.txt: there is no such file"),
        (MixturePart(source=PartSource.hub, path="no/set"), r"^data\.parts\.a\.path=no/set: not on this machine"),
        (
            MixturePart(source=PartSource.self_generated, num_documents=2, document_length=2, heldout_fraction=2.0),
            r"^data\.parts\.a\.heldout_fraction=2\.0: must be in \(0, 1\)",
        ),
    ],
)
def test_a_part_that_cannot_be_read_is_named(
    part: MixturePart, message: str, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache
) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(parts={"a": part}).documents(llama, tokenizer, cache, 0)
