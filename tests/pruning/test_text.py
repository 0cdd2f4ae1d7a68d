"""Text sources and documents: what they give, what they are known by, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.cache import Cache
from pruning.documents import Documents, corpora_of, read_corpus, read_documents
from pruning.run_texts import draw_texts
from pruning.self_generated import FirstToken, SelfGenerated, with_self_generated
from pruning.text import BundledPassages, HubText, LocalText, TextSource

WORDS = [f"document {i} says " + "word " * 30 for i in range(40)]


class Given:
    """The arguments of `TextSource.documents`."""

    def __init__(self, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache) -> None:
        self.arguments = (llama, tokenizer, cache)

    def documents(self, source: TextSource, seed: int = 0) -> Documents:
        (found,) = source.documents(*self.arguments, seed)
        return found


@pytest.fixture
def given(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache) -> Given:
    return Given(llama, tokenizer, cache)


def test_local_documents_are_split_without_overlap(given: Given, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("\n\n\n".join(WORDS))
    documents = given.documents(LocalText(path=str(file), heldout_fraction=0.25))
    assert len(documents.heldout) == 10
    assert not set(documents.train) & set(documents.heldout)
    assert sorted(documents.train + documents.heldout) == sorted(word.strip() for word in WORDS)


def test_a_document_that_stands_twice_is_not_in_both_parts(given: Given, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(WORDS[:10] + WORDS[:10]))
    documents = given.documents(LocalText(path=str(tmp_path / "text.txt"), heldout_fraction=0.3))
    assert len(documents.heldout) == 3
    assert not set(documents.train) & set(documents.heldout)


def test_jsonl_templates_and_their_errors(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"instruction": "add", "output": "3"}\n\n{"instruction": "sub", "output": "1"}\n')
    assert read_documents(str(file), "{instruction}: {output}") == ["add: 3", "sub: 1"]
    with pytest.raises(ValueError, match="line 1: no field 'text'.*instruction"):
        read_documents(str(file))
    file.write_text('{"text": "fine"}\nbroken\n')
    with pytest.raises(ValueError, match="line 2 is no JSON"):
        read_documents(str(file))


def test_a_folder_is_read_in_the_order_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second\n\nthird")
    (tmp_path / "a.jsonl").write_text('{"text": "first"}')
    (tmp_path / "c.csv").write_text("not text")
    assert read_documents(str(tmp_path)) == ["first", "second", "third"]


@pytest.mark.parametrize(("name", "message"), [("none.txt", "no such file"), ("a.csv", "must be a .txt")])
def test_files_that_cannot_be_text_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ValueError, match=message):
        read_documents(str(tmp_path / name), key="data.path")
    with pytest.raises(ValueError, match="must be a .txt"):
        read_documents(str(tmp_path), key="data.path")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="no text in it"):
        read_documents(str(tmp_path / "empty.txt"))


def test_unknown_corpora_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"stability\.text=wikipdia.*passages.*wikipedia"):
        read_corpus("wikipdia", "stability.text")


def test_bundled_halves_are_disjoint(given: Given) -> None:
    documents = given.documents(BundledPassages())
    assert len(documents.train) + len(documents.heldout) == 5153
    assert not set(documents.train) & set(documents.heldout)


def test_a_corpus_is_known_under_all_its_names(given: Given, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(WORDS))
    shutil.copy(tmp_path / "text.txt", tmp_path / "copy.txt")
    (tmp_path / "other.txt").write_text("\n\n".join(WORDS[:-1]))
    (own,) = given.documents(LocalText(path=str(tmp_path / "text.txt"))).corpora
    assert corpora_of(str(tmp_path / "copy.txt"), "x") == {own}
    assert corpora_of(str(tmp_path / "other.txt"), "x") != {own}
    assert own in corpora_of(str(tmp_path), "x")
    assert given.documents(BundledPassages()).corpora < corpora_of("passages", "x")
    assert not corpora_of("passages", "x") & corpora_of("wikipedia", "x")


def test_hub_text_reads_a_local_folder_in_the_hubs_formats(given: Given, tmp_path: Path) -> None:
    rows = [{"instruction": f"say {i}", "output": str(i)} for i in range(20)]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    source = HubText(path=str(tmp_path), template="{instruction} {output}", heldout_fraction=0.2)
    documents = given.documents(source)
    assert len(documents.train) == 16
    assert documents.train[0] == "say 0 0"
    assert documents.corpora == corpora_of(str(tmp_path / "train.jsonl"), "x")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ('{"text": "a"}', {"split": "validation"}, r"with split=validation cannot be read: .*validation.*train"),
        ('{"text": "a"}', {"config": "en"}, r"with config=en, split=train cannot be read: .*'en'"),
        ('{"text": "a"}\n{bad\n', {}, r"with split=train cannot be read: .*JSON"),
        ('{"text": " "}\n{"text": ""}\n', {}, r": there is no text in its split=train"),
        ('{"body": "a"}\n', {}, r", row 1: no field 'text'"),
    ],
)
def test_a_hub_set_that_cannot_be_used_is_named(
    given: Given, tmp_path: Path, rows: str, options: dict[str, str], message: str
) -> None:
    (tmp_path / "train.jsonl").write_text(rows)
    with pytest.raises(ValueError, match=rf"data\.path={tmp_path} ?{message}"):
        given.documents(HubText(path=str(tmp_path), **options))


def test_hub_text_without_a_network_says_what_to_use(given: Given) -> None:
    with pytest.raises(ValueError, match=r"data\.path=no/such-set.*data=bundled"):
        given.documents(HubText(path="no/such-set"))


def test_a_hub_set_is_known_by_its_name(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"text": WORDS}).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    documents = given.documents(HubText(path="CIMEC/LAMBADA", split="validation"))
    assert len(documents.train) == 36
    assert documents.corpora == {"hub:cimec/lambada"}
    assert documents.corpora < corpora_of("passages", "x")


def test_the_model_writes_the_same_text_for_the_same_seed(given: Given, cache: Cache, tmp_path: Path) -> None:
    source = SelfGenerated(num_documents=6, document_length=20, batch_size=4, heldout_fraction=0.5)
    first = given.documents(source)
    llama, tokenizer, _ = given.arguments
    assert [first] == source.documents(llama, tokenizer, Cache(tmp_path / "other"), 0)
    assert first != given.documents(source, seed=1)
    assert len(list((cache.root / "self_generated").glob("*.json"))) == 2


def test_the_models_documents_begin_with_what_was_asked_for(given: Given) -> None:
    llama, tokenizer, _ = given.arguments
    drawn = SelfGenerated(num_documents=500, first_token=FirstToken.random)._first_tokens(tokenizer).flatten()
    assert len(drawn.unique()) > 150
    assert not set(drawn.tolist()) & set(tokenizer.all_special_ids)
    begin = SelfGenerated(num_documents=3, first_token=FirstToken.begin)._first_tokens(tokenizer)
    assert begin.tolist() == [[tokenizer.bos_token_id]] * 3


def test_a_low_temperature_writes_the_likeliest_text(given: Given) -> None:
    source = SelfGenerated(num_documents=2, document_length=8, temperature=1e-4, first_token=FirstToken.begin)
    llama, tokenizer, _ = given.arguments
    (text,) = set(source._write(llama, tokenizer, 0))
    tokens = torch.tensor([[tokenizer.bos_token_id]])
    for _ in range(8):
        scores = llama(tokens).logits[0, -1]
        scores[tokenizer.eos_token_id] = -torch.inf
        tokens = torch.cat([tokens, scores.argmax().view(1, 1)], dim=1)
    assert text == tokenizer.decode(tokens[0], skip_special_tokens=True)


@pytest.mark.parametrize("option", ["temperature", "num_documents", "document_length", "batch_size"])
def test_nothing_to_write_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.{option}=0: must be"):
        SelfGenerated(**{option: 0})


def test_the_models_own_text_has_its_share_of_the_calibration_blocks(given: Given) -> None:
    llama, tokenizer, cache = given.arguments
    parts = [Documents(["alpha beta " * 200], [], key="data.a"), Documents(["gamma delta " * 400], [], weight=3.0)]
    assert with_self_generated(parts, 0.0, 640, llama, tokenizer, cache, 0) == parts
    mixed = with_self_generated(parts, 0.2, 640, llama, tokenizer, cache, 0)
    assert mixed[:2] == parts
    assert mixed[2].weight == pytest.approx(1.0)  # a fifth of 1 + 3 + 1
    blocks = {"calibration": (20, 32), "compensation": (10, 16), "recovery": (0, 0)}
    drawn = [tokenizer.decode(block) for block in draw_texts(mixed, blocks, tokenizer, 0).calibration]
    assert sum(not any(word in text for word in ("alpha", "gamma")) for text in drawn) == 4
    text = "\n\n".join(mixed[2].train)
    assert len(tokenizer(text)["input_ids"]) >= 640 * 0.2


def test_a_share_of_one_is_another_source() -> None:
    with pytest.raises(ValueError, match=r"data\.self_generated_share=1\.0: .*data=self_generated"):
        LocalText(path="x", self_generated_share=1.0)
