"""The folder of one run: its stage, its events, its items, and in the end its result.

`result.json` is written last and whole: its presence means the run is done. A lock keeps two processes that meet on one
run apart; the system releases it when a process dies, however it dies.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evaluation.memory import release
from evaluation.result import RunResult
from pruning.files import json_text, remove, whole_folder, write_json, write_text
from pruning.progress import loop

log = logging.getLogger(__name__)


class RunFolder:
    """Paths and state of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.timings: dict[str, float] = {}
        self._stage: str | None = None
        self.events: list[dict[str, float]] = []
        """Of this attempt, one row each, in order."""

        self._notes: list[str] = []
        self._started = datetime.now(UTC).isoformat(timespec="seconds")

    @property
    def model(self) -> Path:
        """Folder of the recovered model."""
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        """Folder of the last adapter, in peft's own format."""
        return self.path / "adapter"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock; wait while another process works on the same run."""
        from filelock import FileLock, Timeout

        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("another process works on this run: waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def result(self) -> RunResult | None:
        """Return the result of a finished run, or None."""
        return RunResult.read(self.path / "result.json")

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Begin the run. A failure in the block is logged and raised; nothing that the block held stays in memory."""
        failure = None
        self.begin()
        try:
            yield
        except BaseException as error:
            failure = error
            self.failed(error)
            raise
        finally:
            release(failure)

    def begin(self) -> None:
        """Clear what an unfinished or forced run left that could be taken for this one's."""
        for name in ("result.json", "events.jsonl", "generations.json"):
            (self.path / name).unlink(missing_ok=True)
        unfinished = self.path.glob(".*.*")  # files of a process that was killed
        for leftover in (self.path / "zeroshot", self.path / "texts", *unfinished):
            remove(leftover)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Say in `status.json` and in the log that a stage runs, and time it."""
        log.info("%s ...", name)
        self._status("running", name)
        start = time.perf_counter()
        with loop(name, 1):
            yield
        self.timings[name] = round(time.perf_counter() - start, 3)
        log.info("%s: %.1f s", name, self.timings[name])

    def note(self, text: str) -> None:
        """Say in `status.json`, from the next stage on, what a reader of the figures must know."""
        self._notes.append(text)

    def add_event(self, metrics: dict[str, float]) -> None:
        """Append one pruning event to `events.jsonl`."""
        self.events.append(metrics)
        write_text(self.path / "events.jsonl", "".join(json_text(event) + "\n" for event in self.events))

    def keep_outcomes(self, stage: str, outcomes: dict[str, dict[str, Any]]) -> None:
        """Write what was found item by item to `zeroshot/<task>.json` and so on, beside other stages'."""
        for name, found in outcomes.items():
            path = self.path / f"{name}.json"
            try:
                stages = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                stages = {}
            write_json(path, stages | {stage: found})

    def keep_adapter(self, source: Path) -> None:
        """Copy a trained adapter, in peft's own format, to `adapter/`."""
        with whole_folder(self.adapter) as folder:
            shutil.copytree(
                source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json", "trainer")
            )

    def done(self, result: RunResult) -> None:
        """Write the result; from now on the run is done."""
        self._status("done", "done")
        result.write(self.path / "result.json")

    def failed(self, error: BaseException) -> None:
        """Write the error to `status.json`, and with its traceback to the run's log."""
        try:
            with (self.path / "run.log").open("a", encoding="utf-8") as file:
                file.write("".join(traceback.format_exception(error)))
            if self.result() is None:  # else it ended while its figures were being sent: the run is done
                self._status("failed", None, f"{type(error).__name__}: {error}")
        except OSError as trouble:  # a full disk, which may be the error itself
            log.error("%s: cannot write that the run failed: %s", self.path, trouble)

    def _status(self, state: str, stage: str | None, error: str | None = None) -> None:
        self._stage = stage or self._stage
        found = {
            "state": state,
            "stage": self._stage,
            "error": error,
            "notes": self._notes,
            "process": os.getpid(),
            "started": self._started,
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(self.path / "status.json", found)
