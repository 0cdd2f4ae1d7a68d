"""A training that is killed goes on from its last checkpoint, to the same result, to the last bit."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from pruning.cache import Cache
from pruning.model import RandomLlamaSource, fingerprint
from recovery.full import FullFineTuning
from recovery.lora import Lora
from recovery.task import RecoveryTask
from recovery.trained import TrainedRecovery
from recovery.trainer import KEPT, TRAINED, last_checkpoint
from tests.recovery.trainings import SMALL, text

RECOVERIES: dict[str, TrainedRecovery] = {
    "lora": Lora(**SMALL, save_every=3, watch_every=4, dropout=0.1),
    "full": FullFineTuning(**SMALL, save_every=3, watch_every=4),
    "early_end": Lora(
        **SMALL | {"learning_rate": 0.1}, r=8, alpha=16, dropout=0.05, save_every=5, watch_every=1, patience=2
    ),
}
KILLED_AT = {"lora": 8, "full": 8, "early_end": 6}
TAKEN = {"lora": 12, "full": 12, "early_end": 4}
"""For an early end a state from before the checkpoint."""


class Outcome(NamedTuple):
    fingerprint: str
    trajectory: list[dict[str, float]]
    taken_step: int
    logged: list[dict[str, float]]


def train(name: str, folder: Path, *, killed: bool = False) -> Outcome:
    recovery, done = RECOVERIES[name], []
    model, _ = RandomLlamaSource(name="tiny", layers=2).load(Cache(folder), "cpu")

    def log(row: dict[str, float]) -> None:
        done.append(row)
        if killed and row["recovery/step"] == KILLED_AT[name]:
            signal.raise_signal(signal.SIGKILL)

    watched = {"validation": text(recovery)[:5].flip(1)}
    task = RecoveryTask(text(recovery), range(recovery.steps), 0, teacher=lambda: model, watched=watched)
    report = recovery.recover(model, task, Cache(folder), log)
    assert [row["recovery/step"] for row in done] == list(range(1, len(done) + 1))
    return Outcome(fingerprint(model), report.trajectory, report.taken_step, done)


@pytest.mark.parametrize("name", RECOVERIES)
def test_after_a_kill_the_result_is_the_same(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    killed = tmp_path / "killed"
    command = (
        f"from pathlib import Path; from tests.recovery.test_interruption import train; "
        f"train({name!r}, Path({str(killed)!r}), killed=True)"
    )
    process = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    (unfinished,) = killed.glob("*/*.unfinished")
    last = KILLED_AT[name] // RECOVERIES[name].save_every * RECOVERIES[name].save_every
    assert last_checkpoint(unfinished) == unfinished / f"checkpoint-{last}"
    with caplog.at_level(logging.INFO, "recovery.trainer"):
        resumed = train(name, killed)
    assert f"going on from checkpoint-{last}" in caplog.text
    assert resumed.taken_step == TAKEN[name]
    assert not list(killed.glob("*/*.unfinished"))
    assert resumed == train(name, tmp_path / "whole")


def test_a_checkpoint_that_was_not_finished_is_passed_over(tmp_path: Path) -> None:
    for step in (3, 12, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / TRAINED).touch()
    assert last_checkpoint(tmp_path) is None
    for step in (3, 6):
        (tmp_path / f"checkpoint-{step}" / KEPT).touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-6"


def test_the_seconds_of_a_training_are_those_of_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes 10 seconds; what was done after the last checkpoint before the end is done, and counted, once."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("recovery.kept_state.time", clock)
    recovery, cache = RECOVERIES["lora"], Cache(tmp_path)

    def trained(first: int, ended_after: int | None) -> float:
        model, _ = RandomLlamaSource(name="tiny", layers=2).load(cache, "cpu")

        def log(row: dict[str, float]) -> None:
            clock.now += 10 * (row["recovery/step"] >= first)
            if row["recovery/step"] == ended_after:
                raise KeyboardInterrupt

        task = RecoveryTask(text(recovery), range(recovery.steps), 0, teacher=lambda: model)
        return recovery.recover(model, task, cache, log).seconds

    with pytest.raises(KeyboardInterrupt):
        trained(first=1, ended_after=8)  # the last checkpoint is that of step 6
    clock.now += 1000  # until somebody starts it again
    assert trained(first=7, ended_after=None) == 120
