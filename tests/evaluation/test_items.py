from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from evaluation.items import BUNDLED, bundled_items
from pruning.bundled import half_of_passages
from pruning.cache import Cache

KEYS = {
    "boolq": {"question", "passage", "idx", "label"},
    "piqa": {"goal", "sol1", "sol2", "label"},
    "hellaswag": {"activity_label", "ctx_a", "ctx_b", "ctx", "endings", "label"},
    "winogrande": {"sentence", "option1", "option2", "answer"},
    "arc_easy": {"id", "question", "choices", "answerKey"},
    "arc_challenge": {"id", "question", "choices", "answerKey"},
    "openbookqa": {"id", "question_stem", "choices", "answerKey"},
    "lambada_openai": {"text"},
}
COUNTS = {
    "boolq": 3270,
    "piqa": 1838,
    "hellaswag": 10042,
    "winogrande": 1267,
    "arc_easy": 570,
    "arc_challenge": 299,
    "openbookqa": 500,
    "lambada_openai": 2577,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@lru_cache
def items(root: Path, task: str) -> list[dict[str, Any]]:
    lines = bundled_items(task, Cache(root)).read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    return [json.loads(line) for line in lines]


def test_every_task_with_bundled_items_is_tested_here() -> None:
    assert set(BUNDLED) == set(KEYS)


@pytest.mark.parametrize("task", sorted(KEYS))
def test_every_item_has_the_fields_that_the_task_definition_reads(root: Path, task: str) -> None:
    assert all(set(item) >= KEYS[task] for item in items(root, task))


@pytest.mark.parametrize("task", sorted(COUNTS))
def test_no_item_is_lost(root: Path, task: str) -> None:
    assert len(items(root, task)) == COUNTS[task]


def test_every_answer_is_one_of_the_choices(root: Path) -> None:
    assert {item["label"] for item in items(root, "boolq")} == {0, 1}
    assert {item["label"] for item in items(root, "piqa")} == {0, 1}
    assert {item["label"] for item in items(root, "hellaswag")} == set("0123")
    assert {item["answer"] for item in items(root, "winogrande")} == set("12")
    for task in ("arc_easy", "arc_challenge", "openbookqa"):
        assert all(item["answerKey"] in item["choices"]["label"] for item in items(root, task))


def test_every_winogrande_sentence_has_its_gap(root: Path) -> None:
    assert all(item["sentence"].count("_") == 1 for item in items(root, "winogrande"))


def test_boolq_passages_begin_with_their_title_as_lm_eval_expects(root: Path) -> None:
    boolq = items(root, "boolq")
    assert all(" -- " in item["passage"] for item in boolq)
    assert all(0 < item["passage"].index(" -- ") < 120 for item in boolq)


def test_boolq_questions_are_questions_without_mark_and_prompt(root: Path) -> None:
    boolq = items(root, "boolq")
    assert len({item["idx"] for item in boolq}) == len(boolq)
    assert not [item for item in boolq if item["question"].endswith("?") or "Answer:" in item["question"]]
    share = sum(item["label"] for item in boolq) / len(boolq)
    assert share == pytest.approx(2033 / 3270)  # "yes" in the published validation set


def test_lambada_items_are_not_among_the_passages_that_models_are_trained_on(root: Path) -> None:
    training = set(half_of_passages(heldout=False))
    scored = {item["text"] for item in items(root, "lambada_openai")}
    assert training
    assert scored.isdisjoint(training)


@pytest.mark.parametrize("task", ["arc_challenge", "openbookqa"])
def test_the_order_is_the_same_when_the_file_is_written_again(root: Path, tmp_path: Path, task: str) -> None:
    first = bundled_items(task, Cache(root)).read_bytes()
    assert bundled_items(task, Cache(root)).read_bytes() == first
    assert bundled_items(task, Cache(tmp_path)).read_bytes() == first


def test_a_deleted_file_is_written_again(root: Path, tmp_path: Path) -> None:
    file = bundled_items("openbookqa", Cache(tmp_path))
    shutil.rmtree(file.parent)
    assert (
        bundled_items("openbookqa", Cache(tmp_path)).read_bytes()
        == bundled_items("openbookqa", Cache(root)).read_bytes()
    )


def test_the_first_items_are_a_fair_sample(root: Path) -> None:
    for task in ("boolq", "piqa"):
        labels = [item["label"] for item in items(root, task)]
        assert sum(labels[:200]) / 200 == pytest.approx(sum(labels) / len(labels), abs=0.12)
    sources = [item["source_id"].partition("~")[0] for item in items(root, "hellaswag")]
    assert sources[:200].count("activitynet") / 200 == pytest.approx(sources.count("activitynet") / 10042, abs=0.12)
