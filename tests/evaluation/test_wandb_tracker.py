from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evaluation.publish import publish
from evaluation.tracking import WandbTracking
from evaluation.wandb_tracker import tags
from tests.evaluation.wandb_files import (
    CHOICES,
    CONFIG,
    EVENTS,
    METRICS,
    files,
    history,
    identity,
    inspect,
    records,
    result,
    summary,
)

SECRET = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file of a whole run, made in a git checkout whose remote holds a password, with keys in the environment."""
    folder = tmp_path_factory.mktemp("finished")
    for command in ("init -q", f"remote add origin https://me:{SECRET}@example.com/repository.git"):
        subprocess.run(["git", "-C", str(folder), *command.split()], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", SECRET)
        patch.setenv("HF_TOKEN", SECRET)
        patch.chdir(folder)
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text("many", encoding="utf-8")
        with WandbTracking(tags=["mine", "l2"]).start(identity(folder)) as tracker:
            for event in EVENTS:
                tracker.log(event)
            for step in (1, 5):
                tracker.log({"recovery/step": step, "recovery/train_loss": 2.0 / step})
            result().write(folder / "result.json")
            publish(result(), folder, tracker)
        yield files(folder)[0]


def test_a_run_is_filed_under_study_job_type_and_name(finished: Path) -> None:
    header = next(record["run"] for record in records(finished) if record["type"] == "run")
    assert header["run_group"] == "mystudy"
    assert header["job_type"] == "prune"
    assert header["display_name"] == "tiny-run"
    assert header["project"] == "secateur"
    assert header["run_id"].startswith("0123abcd-")


def test_a_run_is_tagged_once_with_model_options_and_the_users_tags(finished: Path) -> None:
    assert sorted(summary(finished)["tags"]) == ["block_wise", "l2", "linear", "lora", "mine", "tiny_llama"]


def test_its_notes_are_the_command_that_makes_it(finished: Path) -> None:
    assert summary(finished)["notes"] == "python run.py seed=3 'data.path=my text'"


def test_a_long_name_is_cut_to_what_a_tag_may_have(tmp_path: Path) -> None:
    who = identity(tmp_path, config=CONFIG | {"model": {"name": "m" * 100}})
    assert tags(who, WandbTracking())[0] == "m" * 64


def test_a_run_holds_its_configuration_and_choices(finished: Path) -> None:
    config = summary(finished)["config"]
    assert {name: config[name] for name in CONFIG} == CONFIG
    assert config["choices"] == CHOICES


def test_the_summary_is_flat_but_for_the_tables(finished: Path) -> None:
    found = summary(finished)["summary"]
    assert {name for name, value in found.items() if isinstance(value, dict)} == {"zeroshot_per_task", "events"}
    known = {name: value for name, value in METRICS.items() if value == value}
    assert {name: value for name, value in found.items() if name in METRICS} == known
    assert found["error"] == ""


def test_a_run_without_error_is_finished(finished: Path) -> None:
    found = summary(finished)
    assert "finished" in json.dumps(found["state"])
    assert found["exit_code"] == 0


def test_every_event_and_recovery_step_is_a_point_with_its_step(finished: Path) -> None:
    rows = history(finished)
    assert [row["event/index"] for row in rows if "event/index" in row] == [0, 1, 2]
    assert [row["event/instability/tok_acc"] for row in rows if "event/index" in row] == pytest.approx([0, 0.1, 0.2])
    steps = [(row["recovery/step"], row["recovery/train_loss"]) for row in rows if "recovery/step" in row]
    assert steps == [(1, 2.0), (5, 0.4)]


def test_events_and_recovery_are_drawn_over_their_own_steps(finished: Path) -> None:
    metrics = [record["metric"] for record in records(finished) if record["type"] == "metric"]
    steps = {metric.get("glob_name"): metric.get("step_metric") for metric in metrics}
    assert steps["event/*"] == "event/index"
    assert steps["recovery/*"] == "recovery/step"


def test_the_tables_and_the_result_file_are_logged_but_no_model_unless_asked(finished: Path) -> None:
    text = inspect(finished)
    assert "result-0123abcd" in text
    assert "model-0123abcd" not in text
    (table,) = finished.parent.glob("files/media/table/events_*.json")
    found = json.loads(table.read_text(encoding="utf-8"))
    assert found["columns"] == ["index", "instability/tok_acc"]
    assert [row[0] for row in found["data"]] == [0, 1, 2]


def test_no_key_or_password_is_written(finished: Path) -> None:
    assert "example.com/repository" in inspect(finished)  # the remote is known, so the password could have been there
    written = [path for path in finished.parent.parent.rglob("*") if path.is_file()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


def test_the_model_is_logged_when_asked(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("many", encoding="utf-8")
    with WandbTracking(log_model=True).start(identity(tmp_path)) as tracker:
        tracker.artifact("model-0123abcd", "model", tmp_path / "model")
    assert "model-0123abcd" in inspect(files(tmp_path)[0])


@pytest.mark.parametrize(("kind", "state", "code"), [(RuntimeError, "failed", 1), (KeyboardInterrupt, "", 255)])
def test_an_error_inside_makes_the_run_failed(tmp_path: Path, kind: type[BaseException], state: str, code: int) -> None:
    with pytest.raises(kind, match="broken"), WandbTracking().start(identity(tmp_path)):
        raise kind("broken")
    found = summary(files(tmp_path)[0])
    assert state in json.dumps(found["state"])
    assert found["exit_code"] == code
    assert found["summary"]["error"] == f"{kind.__name__}: broken"


def test_two_runs_in_one_process_are_two_runs(tmp_path: Path) -> None:
    for name, value in (("one", 1.0), ("two", 2.0)):
        with WandbTracking().start(identity(tmp_path / name, name)) as tracker:
            tracker.summary({"figure": value})
    for name, value in (("one", 1.0), ("two", 2.0)):
        (file,) = files(tmp_path / name)
        assert summary(file)["summary"]["figure"] == value


def alone(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` over a folder in a process with a W&B service of its own."""
    given = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"} | environment
    with (folder / "output.txt").open("w+", encoding="utf-8") as output:  # a pipe would stay open in the service
        call = [sys.executable, "-c", PREAMBLE + code, str(folder)]
        ended = subprocess.run(call, cwd=ROOT, env=given, stdout=output, stderr=output, timeout=300, check=False)
    ended.stdout = (folder / "output.txt").read_text(encoding="utf-8")
    return ended


ROOT = Path(__file__).parents[2]
PREAMBLE = """
import os, signal, sys, time
from pathlib import Path
from evaluation.publish import publish
from evaluation.tracking import WandbTracking
from tests.evaluation.wandb_files import EVENTS, identity, result
folder = Path(sys.argv[1])
"""


def test_a_killed_run_that_is_started_again_is_one_run_with_every_point_once(tmp_path: Path) -> None:
    code = """
tracker = WandbTracking().start(identity(folder)).__enter__()
tracker.log(EVENTS[0])
time.sleep(3)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = alone(code, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    (before,) = files(tmp_path)
    assert [row["event/index"] for row in history(before)] == [0]  # so `wandb sync` can send it too
    with WandbTracking().start(identity(tmp_path)) as tracker:
        for event in EVENTS:
            tracker.log(event)
    (after,) = files(tmp_path)
    assert after.name == before.name
    assert after != before
    assert [row["event/index"] for row in history(after)] == [0, 1, 2]


def test_a_forced_run_is_another_run_and_leaves_the_first_alone(tmp_path: Path) -> None:
    for force, value in ((False, 1.0), (True, 2.0)):
        with WandbTracking().start(identity(tmp_path, config=CONFIG | {"force": force})) as tracker:
            tracker.summary({"figure": value})
    found = files(tmp_path)
    assert len({file.stem for file in found}) == 2
    assert sorted(summary(file)["summary"]["figure"] for file in found) == [1.0, 2.0]


def test_an_agent_names_its_run_itself(tmp_path: Path) -> None:
    code = """
with WandbTracking(mode="offline").start(identity(folder)) as tracker:
    tracker.summary({"figure": 1.0})
"""
    found = alone(code, tmp_path, WANDB_SWEEP_ID="sweep01", WANDB_RUN_ID="agents0wn")
    assert found.returncode == 0, found.stdout
    assert [file.name for file in files(tmp_path)] == ["run-agents0wn.wandb"]


class Recorder:
    """Stands in for a W&B run that was resumed, and for one whose service is gone."""

    resumed, url, settings = True, "https://wandb.example/run", None

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.points, self.ended = fails, [], None
        self.summary: dict[str, Any] = {"event/index": 1, "recovery/step": 7}

    def define_metric(self, *_: Any, **__: Any) -> None:
        pass

    def log(self, metrics: dict[str, Any]) -> None:
        if self.fails:
            raise BrokenPipeError("the service is gone")
        self.points.append(metrics)

    def log_artifact(self, *_: Any) -> None:
        raise BrokenPipeError("the service is gone")

    def finish(self, exit_code: int) -> None:
        self.ended = exit_code
        if self.fails:
            raise BrokenPipeError("the service is gone")


def test_points_that_a_resumed_run_has_are_not_added_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr("wandb.init", lambda **_: recorder)
    with WandbTracking(mode="online").start(identity(tmp_path)) as tracker:
        for event in EVENTS:
            tracker.log(event)
        for step in (6, 7, 8):
            tracker.log({"recovery/step": step, "recovery/train_loss": 1.0})
    assert recorder.points == [EVENTS[2], {"recovery/step": 8, "recovery/train_loss": 1.0}]


def test_wandb_breaking_down_is_said_once_and_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(fails=True)
    monkeypatch.setattr("wandb.init", lambda **_: recorder)
    result().write(tmp_path / "result.json")
    with caplog.at_level(logging.INFO), WandbTracking(mode="online").start(identity(tmp_path)) as tracker:
        publish(result(), tmp_path, tracker)
    assert recorder.ended == 0
    assert caplog.text.count("the service is gone") == 1
    assert f"python -m evaluation.publish {tmp_path}" in caplog.text


def test_the_service_of_wandb_dying_fails_nothing(tmp_path: Path) -> None:
    code = """
import psutil
with WandbTracking().start(identity(folder)) as tracker:
    (service,) = psutil.Process().children()
    service.kill()
    service.wait()
    for event in EVENTS:
        tracker.log(event)
    publish(result(), folder, tracker)
print("still alive")
"""
    found = alone(code, tmp_path)
    assert found.returncode == 0, found.stdout
    assert "still alive" in found.stdout
    assert "python -m evaluation.publish" in found.stdout


def test_a_start_that_wandb_refuses_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("no way there")

    monkeypatch.setattr("wandb.init", refuse)
    with (
        pytest.raises(ValueError, match="tracking.mode=online: W&B could not begin a run .no way there.*wandb login"),
        WandbTracking(mode="online").start(identity(tmp_path)),
    ):
        pass
