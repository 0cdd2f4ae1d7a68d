"""The folder of a run when things go wrong: a full disk, too little memory, a kill."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

import pytest

from evaluation import run_folder
from evaluation.run_folder import RunFolder


def status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


@pytest.mark.parametrize(
    "error", [MemoryError("too large"), OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()]
)
def test_whatever_ends_a_run_is_written_down_and_raised(tmp_path: Path, error: BaseException) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(type(error)), run.attempt(), run.stage("recovered"):
        raise error
    found = status(tmp_path)
    assert (found["state"], found["stage"]) == ("failed", "recovered")
    assert type(error).__name__ in found["error"]
    assert "Traceback" in (tmp_path / "run.log").read_text()


def test_a_disk_too_full_for_the_error_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = RunFolder(tmp_path)
    with pytest.raises(ValueError, match="the first"), caplog.at_level(logging.ERROR), run.attempt():  # noqa: PT012
        monkeypatch.setattr(run_folder, "write_json", full)
        raise ValueError("the first")
    assert "cannot write that the run failed" in caplog.text


def test_what_a_killed_process_left_is_cleared_before_the_next_attempt(tmp_path: Path) -> None:
    (tmp_path / ".model.k3j2").mkdir()
    (tmp_path / ".model.k3j2" / "half.safetensors").write_text("half")
    (tmp_path / ".status.json.x1").write_text("{")
    (tmp_path / "zeroshot").mkdir()
    (tmp_path / "events.jsonl").write_text("{}")
    for kept in (".hydra", "wandb"):
        (tmp_path / kept).mkdir()
    (tmp_path / ".lock").write_text("")
    with RunFolder(tmp_path).attempt():
        assert {path.name for path in tmp_path.iterdir()} == {".hydra", "wandb", ".lock"}


def test_notes_stand_in_the_status_to_the_end(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with run.stage("recover"):
        run.note("a training diverged")
    with run.stage("recovered"):
        assert status(tmp_path)["notes"] == ["a training diverged"]
