"""A file that a configuration names and that changes is found out by its content, wherever in the configuration it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evaluation import inputs
from evaluation.inputs import changed_inputs, input_digests


def configuration(folder: Path) -> dict[str, Any]:
    (folder / "model").mkdir()
    files = {name: folder / name for name in ("books.txt", "test.txt", "model/weights", "big.txt")}
    for name, path in files.items():
        path.write_text(f"text of {name}")
    return {
        "model": {"path": str(folder / "model"), "name": str(files["test.txt"])},
        "data": {"parts": {"books": {"path": str(files["books.txt"]), "weight": 2}, "hub": {"path": "some/set"}}},
        "evaluation": {"texts": {"mine": str(files["test.txt"]), "big": str(files["big.txt"])}, "data_dir": None},
        "stability": {"text": "passages"},
    }


def test_what_is_named_and_there_has_a_digest(tmp_path: Path) -> None:
    found = input_digests(configuration(tmp_path))
    assert set(found) == {"model.path", "data.parts.books.path", "evaluation.texts.mine", "evaluation.texts.big"}
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("books.txt", "data.parts.books.path"),
        ("test.txt", "evaluation.texts.mine"),
        ("model/weights", "model.path"),
        ("model/more", "model.path"),
    ],
)
def test_another_content_is_a_change_and_another_time_is_none(tmp_path: Path, file: str, key: str) -> None:
    config = configuration(tmp_path)
    before = input_digests(config)
    (tmp_path / "books.txt").touch()
    assert changed_inputs(config, before) == []
    (tmp_path / file).write_text("another text")
    assert changed_inputs(config, before) == [key]
    assert changed_inputs(config, {}) == []  # results from before there were digests


@pytest.mark.parametrize("place", [0, -1])
def test_of_a_large_file_its_ends_and_size_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    monkeypatch.setattr(inputs, "WHOLE", 10)
    monkeypatch.setattr(inputs, "END", 2)
    config = configuration(tmp_path)
    text = bytearray(b"abcdefghijklmnop")
    (tmp_path / "big.txt").write_bytes(text)
    before = input_digests(config)
    text[8] = 0
    (tmp_path / "big.txt").write_bytes(text)
    assert changed_inputs(config, before) == []
    text[place] = 0
    (tmp_path / "big.txt").write_bytes(text)
    assert changed_inputs(config, before) == ["evaluation.texts.big"]
    (tmp_path / "big.txt").write_bytes(b"ab" + bytes(4) + b"op")
    assert changed_inputs(config, before) == ["evaluation.texts.big"]
