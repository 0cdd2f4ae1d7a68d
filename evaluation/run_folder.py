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

from evaluation.result import RunResult
from pruning.files import json_text, whole_folder, write_json, write_text

log = logging.getLogger(__name__)


class RunFolder:
    """Paths and state of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.timings: dict[str, float] = {}
        self._stage: str | None = None
        self._events: list[dict[str, float]] = []
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

    def begin(self) -> None:
        """Clear what an unfinished or forced run left that could be taken for this one's."""
        for name in ("result.json", "events.jsonl"):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / "zeroshot", ignore_errors=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Say in `status.json` and in the log that a stage runs, and time it."""
        log.info("%s ...", name)
        self._status("running", name)
        start = time.perf_counter()
        yield
        self.timings[name] = round(time.perf_counter() - start, 3)
        log.info("%s: %.1f s", name, self.timings[name])

    def add_event(self, metrics: dict[str, float]) -> None:
        """Append one pruning event to `events.jsonl`."""
        self._events.append(metrics)
        write_text(self.path / "events.jsonl", "".join(json_text(event) + "\n" for event in self._events))

    def keep_outcomes(self, stage: str, scores: dict[str, dict[str, Any]]) -> None:
        """Write the outcome of every item to `zeroshot/<task>.json`, beside those of other stages."""
        for task, score in scores.items():
            path = self.path / "zeroshot" / f"{task}.json"
            try:
                stages = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                stages = {}
            write_json(path, stages | {stage: score})

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
        with (self.path / "run.log").open("a", encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)))
        self._status("failed", None, f"{type(error).__name__}: {error}")

    def _status(self, state: str, stage: str | None, error: str | None = None) -> None:
        self._stage = stage or self._stage
        found = {
            "state": state,
            "stage": self._stage,
            "error": error,
            "process": os.getpid(),
            "started": self._started,
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(self.path / "status.json", found)
