"""The rights of what is written: those that the process gives to any file or folder that it makes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pruning.files import whole_folder, write_text


@pytest.fixture(params=[0o022, 0o027, 0o002, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def rights(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_file_gets_the_usual_rights_also_in_place_of_another(umask: int, tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    for text in ("first", "second"):
        write_text(path, text)
        assert path.read_text() == text
        assert rights(path) == 0o666 & ~umask
        path.chmod(0o600)
    assert rights(path.parent) == 0o777 & ~umask


def test_a_folder_and_what_is_in_it_get_the_usual_rights_whoever_wrote_it(umask: int, tmp_path: Path) -> None:
    with whole_folder(tmp_path / "entry") as folder:
        (folder / "inner").mkdir()
        save_file({"weight": torch.zeros(2)}, folder / "inner" / "model.safetensors")
        (folder / "program").touch(0o700)
    entry = tmp_path / "entry"
    assert rights(entry) == rights(entry / "inner") == 0o777 & ~umask
    assert rights(entry / "inner" / "model.safetensors") == 0o666 & ~umask
    assert rights(entry / "program") == 0o700 | (0o666 & ~umask)
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]
