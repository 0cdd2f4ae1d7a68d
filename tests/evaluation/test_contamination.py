"""The contamination guard: what it finds by the names of corpora and by their content, what it refuses, what it marks."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import evaluation.contamination
from evaluation.contamination import NGRAM, check_tested_texts, mark, mark_notes, overlaps, sequences
from pruning.cache import Cache
from pruning.documents import Documents, split_documents
from pruning.mixture import Mixture, MixturePart, PartSource
from pruning.text import AllowTested, BundledPassages, LocalText, TextSource

VOCABULARY = [f"{first}{second}" for first in ("red", "old", "far", "wet") for second in ("fox", "sea", "hat", "sun")]


def written(seed: int, documents: int = 20, words: int = 60) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(VOCABULARY, k=words)) for _ in range(documents)]


@pytest.fixture
def read(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache):
    return lambda source: source.documents(llama, tokenizer, cache, 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two texts that have nothing in common, and a copy of the first under another name and in another format."""
    (tmp_path / "mine.txt").write_text("\n\n".join(written(0)))
    (tmp_path / "other.txt").write_text("\n\n".join(written(1)))
    shutil.copy(tmp_path / "mine.txt", tmp_path / "copy.txt")
    rows = [{"text": text.upper().replace(" ", ", ")} for text in written(0)]
    (tmp_path / "retyped.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def checked(
    sources: list[Documents],
    cache: Cache,
    allowed: AllowTested = AllowTested.none,
    probe: str = "wikipedia",
    **texts: object,
) -> dict[str, float]:
    return check_tested_texts(sources, allowed, {name: str(text) for name, text in texts.items()}, probe, cache)


def by_hand(tested: list[str], sources: list[list[str]]) -> list[float]:
    """The shares, from tuples of words."""

    def grams(documents: list[str]) -> list[tuple[str, ...]]:
        split = ["".join(c.lower() if c.isalnum() else " " for c in document).split() for document in documents]
        return [tuple(words[i : i + NGRAM]) for words in split for i in range(len(words) - NGRAM + 1)]

    wanted, held = grams(tested), [set(grams(documents)) for documents in sources]
    return [sum(gram in found for gram in wanted) / len(wanted) for found in (*held, set().union(*held))]


def test_shares_are_those_of_word_tuples_counted_by_hand() -> None:
    tested, first, second = written(0), written(1), written(2)
    first[3] = "So: " + tested[4].replace(" ", ", ").upper()
    first[5] += tested[6][:150]
    second[7] = tested[4] + " " + tested[8]
    second[9] = tested[11][40:300]
    expected = by_hand(tested, [first, second])
    assert 0 < expected[0] < expected[1] < expected[2] < 0.3
    assert overlaps(tested, [first, second]) == pytest.approx(expected)


def test_sequences_do_not_cross_documents_and_ignore_case_and_punctuation() -> None:
    words = [f"w{i}" for i in range(NGRAM + 2)]
    assert len(sequences([" ".join(words)])) == 3
    assert len(sequences([" ".join(words[:7]), " ".join(words[7:])])) == 0
    assert sequences(["-- ".join(words).upper()]).tolist() == sequences([" ".join(words)]).tolist()
    assert len(set(sequences([" ".join(words)]).tolist()) & set(sequences([" ".join(reversed(words))]).tolist())) == 0


def test_scripts_without_spaces_are_compared_by_character() -> None:
    text = "昨日は雨が降っていたので、家で本を読みました。"
    assert len(sequences([text])) == sum(c.isalnum() for c in text) - NGRAM + 1
    assert overlaps([text], [["前の話。" + text]]) == [1, 1]


def test_texts_that_have_nothing_in_common_are_measured_without_a_mark(read, folder: Path, cache: Cache) -> None:
    metrics = checked(read(LocalText(path=str(folder / "mine.txt"))), cache, other=folder / "other.txt")
    names = [f"{text}/{name}" for text in ("text/other", "probe") for name in ("overlap", "in_domain", "contaminated")]
    assert metrics == dict.fromkeys(names, 0.0)
    assert mark(metrics, "text/other") == mark(metrics, "probe") == ""
    assert mark_notes(metrics) == []


@pytest.mark.parametrize("name", ["mine.txt", "copy.txt", "retyped.jsonl"])
@pytest.mark.parametrize("allowed", [AllowTested.none, AllowTested.corpus])
def test_the_same_documents_are_refused_in_every_disguise(
    read, folder: Path, cache: Cache, name: str, allowed: AllowTested
) -> None:
    source = read(LocalText(path=str(folder / "mine.txt"), heldout_fraction=0.1))
    message = (
        rf"evaluation\.texts\.test=.*{name}: 90\.0% of its 13-word .*\(data\); up to 1% are allowed "
        rf"with data\.allow_tested={allowed.value}\. .*data\.allow_tested=documents"
    )
    with pytest.raises(ValueError, match=message):
        checked(source, cache, allowed, test=folder / name)
    with pytest.raises(ValueError, match=rf"stability\.text=.*{name}: 90\.0%"):
        checked(source, cache, allowed, probe=str(folder / name))
    metrics = checked(source, cache, AllowTested.documents, test=folder / name)
    assert metrics["text/test/overlap"] == pytest.approx(0.9)
    assert mark(metrics, "text/test") == " (contaminated)"
    assert [note.partition(":")[0] for note in mark_notes(metrics)] == ["contaminated"]


def test_a_few_documents_in_common_are_found(read, folder: Path, cache: Cache) -> None:
    (folder / "mostly.txt").write_text("\n\n".join([*written(3, 97), *written(0)[:3]]))
    source = read(LocalText(path=str(folder / "mine.txt")))
    with pytest.raises(ValueError, match=r"mostly\.txt: 3\.0% of its"):
        checked(source, cache, test=folder / "mostly.txt")


def test_other_documents_of_the_same_corpus_are_refused_unless_asked_for(read, cache: Cache) -> None:
    source = read(BundledPassages())
    message = r"evaluation\.texts\.books=passages: of the same corpus .*\(data\).*data\.allow_tested=corpus"
    with pytest.raises(ValueError, match=message):
        checked(source, cache, books="passages")
    metrics = checked(source, cache, AllowTested.corpus, books="passages")
    assert 0 < metrics["text/books/overlap"] < 0.01
    assert (metrics["text/books/in_domain"], metrics["text/books/contaminated"]) == (1, 0)
    assert mark(metrics, "text/books") == " (in domain)"
    assert mark(metrics, "probe") == ""
    assert [note.partition(":")[0] for note in mark_notes(metrics)] == ["in domain"]


def test_a_hub_set_that_the_bundled_text_was_taken_from_is_the_same_corpus(cache: Cache) -> None:
    source = split_documents(written(5), 0.1, {"hub:bookcorpus/bookcorpus"})
    with pytest.raises(ValueError, match=r"stability\.text=passages: of the same corpus"):
        checked([source], cache, probe="passages")
    assert mark(checked([source], cache, AllowTested.corpus, probe="passages"), "probe") == " (in domain)"


def test_the_part_of_a_mixture_that_holds_the_text_is_named(read, folder: Path, cache: Cache) -> None:
    parts = {name: MixturePart(path=str(folder / f"{name}.txt")) for name in ("other", "copy")}
    with pytest.raises(ValueError, match=r"evaluation\.texts\.t=.*90\.0% .*\(data\.parts\.copy\)"):
        checked(read(Mixture(parts=parts)), cache, t=folder / "mine.txt")
    parts = {"other": parts["other"], "passages": MixturePart(source=PartSource.bundled)}
    with pytest.raises(ValueError, match=r"stability\.text=passages: .*\(data\.parts\.passages\)"):
        checked(read(Mixture(parts=parts)), cache, probe="passages")


def test_only_what_trains_counts_not_what_is_held_out(cache: Cache, folder: Path) -> None:
    source = Documents(train=written(1), heldout=written(0))
    assert checked([source], cache, t=folder / "mine.txt")["text/t/overlap"] == 0


def test_a_sweep_compares_once(read, folder: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    source = read(LocalText(path=str(folder / "mine.txt")))
    first = checked(source, cache, t=folder / "other.txt")
    monkeypatch.setattr(evaluation.contamination, "sequences", None)
    assert checked(source, cache, t=folder / "other.txt") == first


def test_text_under_test_that_is_not_there_names_its_key(cache: Cache) -> None:
    with pytest.raises(ValueError, match=r"evaluation\.texts\.t=none\.txt"):
        checked([Documents([], [])], cache, t="none.txt")


@pytest.mark.parametrize("source", [BundledPassages, LocalText])
def test_nothing_is_allowed_by_default(source: type[TextSource]) -> None:
    assert source().allow_tested is AllowTested.none
