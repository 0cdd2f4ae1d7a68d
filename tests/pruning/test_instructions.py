"""Instruction records: their two forms, what of them is learnt, and what is said of files that are wrong."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.cache import Cache
from pruning.documents import Documents, TooLong
from pruning.instructions import Form, Instructions, read_hub
from pruning.mixture import Mixture, MixturePart, PartSource, part_documents
from pruning.model import byte_tokenizer
from pruning.packing import NOT_LEARNT
from pruning.run_texts import RunTexts, draw_texts
from tests.zoo import build

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def record(index: int) -> dict[str, str]:
    return {"instruction": f"Name {index}.", "input": "In words." if index % 2 else "", "output": f"It is {index}."}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(json.dumps(record(index)) for index in range(60)) + "\n\n")
    return path


def read(source: Instructions, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> Documents:
    (found,) = source.documents(model or build("llama_gqa_tied"), tokenizer, Cache(Path("unused")), 0)
    return found


def learnt(row: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What is learnt of each example of a row (3, T)."""
    ids, labels, segments = row
    found = [ids[(segments == number) & (labels != NOT_LEARNT)] for number in range(1, int(segments.max()) + 1)]
    return [tokenizer.decode(part) for part in found]


def rows_of(path: Path, tokenizer: PreTrainedTokenizerBase, count: int, length: int, **options: Any) -> RunTexts:
    documents = read(Instructions(path=str(path), heldout_fraction=0.2, **options), tokenizer)
    sizes = {"calibration": (2, 16), "compensation": (0, 0), "recovery": (count, length)}
    return draw_texts([documents], sizes, tokenizer, 0)


def test_alpacas_form_is_the_one_that_is_known(file: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = read(Instructions(path=str(file)), tokenizer).train
    assert texts[0] == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nName 0.\n\n### Response:\nIt is 0.</s>"
    )
    assert "further context. Write" in texts[1]
    assert texts[1].endswith("### Instruction:\nName 1.\n\n### Input:\nIn words.\n\n### Response:\nIt is 1.</s>")


def test_the_chat_form_is_the_models_own(file: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    found = read(Instructions(path=str(file), form=Form.chat), tokenizer)
    assert found.train[1] == "<|user|>Name 1.\n\nIn words.</s><|assistant|>It is 1.</s>"
    assert found.prompts.texts[found.train[1]] == "<|user|>Name 1.\n\nIn words.</s><|assistant|>"


@pytest.mark.parametrize("pack", [True, False])
def test_only_responses_are_learnt_and_no_example_twice_in_a_pass(
    file: Path, tokenizer: PreTrainedTokenizerBase, pack: bool
) -> None:
    rows = rows_of(file, tokenizer, 60, 600, pack=pack).recovery
    distinct = rows.unique(dim=0)
    found = [text for row in distinct for text in learnt(row, tokenizer)]
    wanted = [f"It is {index}.</s>" for index in range(60) if index % 5 != 4]
    assert sorted(found) == sorted(wanted)
    assert rows.shape == (60, 3, 600)
    assert (int(rows[:, 2].max()) > 1) == pack


def test_the_slices_of_the_gap_are_plain_text_of_both_halves(file: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = rows_of(file, tokenizer, 8, 256)
    train, heldout = (tokenizer.decode(blocks.flatten()) for blocks in (texts.train_slice, texts.heldout))
    assert "It is 4." not in train
    assert "It is 4." in heldout
    assert texts.train_slice.shape[1] == texts.heldout.shape[1] == 256


@pytest.mark.parametrize(
    ("too_long", "said"), [(TooLong.cut, "cut \\(48\\)"), (TooLong.drop, "none of 48 examples fits")]
)
def test_examples_longer_than_a_row_are_cut_or_left_out_and_said(
    file: Path, tokenizer: PreTrainedTokenizerBase, too_long: TooLong, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [json.dumps(record(2 * index) | {"output": "long " * 100}) for index in range(60)]
    file.write_text("\n".join(lines))
    caplog.set_level(logging.INFO)
    if too_long is TooLong.drop:
        with pytest.raises(ValueError, match=rf"recovery\.length=256, from data: {said}"):
            rows_of(file, tokenizer, 60, 256, too_long=too_long)
    else:
        rows = rows_of(file, tokenizer, 60, 256, too_long=too_long).recovery
        assert learnt(rows[0], tokenizer)[0].startswith("long long")
        assert any("of 48 examples longer ones were cut (48)" in message for message in caplog.messages)


def test_instructions_mix_with_text(file: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(f"Once upon a time number {index} there was much to tell." for index in range(200)))
    parts = {
        "chat": MixturePart(PartSource.instructions, path=str(file), heldout_fraction=0.2),
        "book": MixturePart(PartSource.local, weight=3, path=str(book)),
    }
    Mixture(parts=parts)
    documents = part_documents(parts, "recovery.data", build("llama_gqa_tied"), tokenizer, Cache(tmp_path / "cache"), 0)
    assert [part.key for part in documents] == ["recovery.data.book", "recovery.data.chat"]
    other = read(Instructions(path=str(file)), tokenizer)
    sizes = {"calibration": (4, 16), "compensation": (0, 0), "recovery": (16, 256)}
    texts = draw_texts([other], sizes, tokenizer, 0, documents)
    written = [tokenizer.decode(row[0]) for row in texts.recovery]
    assert ["Once upon" in text for text in written].count(True) == 12
    assert "instructio" in tokenizer.decode(texts.calibration.flatten())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.jsonl",
            '{"instruction": "x", "output": "y"}\n\n{"instruction": "x"}',
            r"a\.jsonl, line 3: no text under 'output'",
        ),
        ("a.jsonl", '{"instruction": 1, "response": "y"}', r"line 1: no text under 'instruction' and 'output'; it has"),
        ("a.jsonl", '{"instruction": "x", "output": " "}', r"line 1: its 'output' is empty"),
        ("a.jsonl", '["x"]', r"line 1: no text under .* it has list"),
        ("a.jsonl", "{", r"line 1: no JSON"),
        ("a.jsonl", "\n", r"a\.jsonl: there is no record in it"),
        ("a.json", '[{"instruction": "x", "output": "y"}, {}]', r"a\.json, record 2: no text"),
        ("a.json", '{"instruction": "x"}', r"a\.json: must hold a list of records"),
        ("a.txt", "x", r"a\.txt: must be a \.jsonl or \.json file"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_the_line(
    name: str, text: str, message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"data\.path=.*{message}"):
        read(Instructions(path=str(tmp_path / name)), tokenizer)


def test_a_folder_in_the_hubs_formats_is_read_and_its_records_are_named(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    lines = [json.dumps(record(index)) for index in range(3)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    assert [row["output"] for row in read_hub(str(tmp_path), "train")] == ["It is 0.", "It is 1.", "It is 2."]
    with pytest.raises(ValueError, match=r"data\.path=.* with split=validation cannot be read: .*train"):
        list(read_hub(str(tmp_path), "validation"))
    (tmp_path / "train.jsonl").write_text("\n".join([*lines[:2], '{"instruction": "x", "answer": "y"}']))
    with pytest.raises(ValueError, match=r"data\.path=.*, record 3: no text under 'output'; it has"):
        list(read_hub(str(tmp_path), "train"))


def test_a_missing_file_a_missing_template_and_an_unfit_model_are_refused(
    file: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ValueError, match=r"data\.path=missing\.jsonl: must be"):
        read(Instructions(path="missing.jsonl"), tokenizer)
    with pytest.raises(ValueError, match=r"data\.form=chat: .*no chat template"):
        read(Instructions(path=str(file), form=Form.chat), tokenizer)
    with pytest.raises(ValueError, match=r"data\.pack=true: in BloomForCausalLM"):
        read(Instructions(path=str(file)), tokenizer, build("bloom"))
