from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evaluation.result import RunResult
from evaluation.run_folder import RunFolder
from evaluation.tracking import NoTracking, RunIdentity, WandbTracking, publish

CHOICES = {
    "model": "tiny_llama",
    "data": "bundled",
    "importance": "l2",
    "pruning": "block_wise",
    "schedule": "linear",
    "recovery": "lora",
}
CONFIG = {"seed": 3, "pruning": {"ratio": 0.2}, "model": {"name": "tiny_llama"}}


@pytest.fixture(autouse=True)
def wandb_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("wandb")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_RUN_GROUP", "WANDB_TAGS", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def identity(folder: Path, name: str = "tiny-run") -> RunIdentity:
    return RunIdentity("0123abcd", name, "mystudy", "prune", CHOICES, CONFIG, folder)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))


def inspect(file: Path, *options: str) -> str:
    """Read a run file with the vendor's own reader, directly where its program takes these flags."""
    import wandb.util

    fast = [wandb.util.get_core_path(), "leet", "inspect", f"--run-file={file}", "--json", "--no-observability"]
    slow = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    for command in ([*fast, *options], [*slow, *options, str(file)]):
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if found.returncode == 0 and found.stdout.strip():
            return found.stdout
    raise AssertionError(f"wandb cannot read its own file: {found.stderr}")


def summary(file: Path) -> dict[str, Any]:
    return json.loads(inspect(file, "--summary"))


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in inspect(file).splitlines() if line.strip()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp("wandb")))
        metrics = {"recovered/zeroshot/mean": 0.5, "dense/zeroshot/piqa/acc": 0.6, "dense/zeroshot/piqa/n": 40}
        result = RunResult("0123abcd", "tiny-run", "mystudy", CONFIG, CHOICES, metrics, [], [], {}, {})
        run = RunFolder(folder)
        run.model.mkdir()
        (run.model / "weights").write_text("many", encoding="utf-8")
        with WandbTracking(tags=["mine"]).start(identity(folder)) as tracker:
            for index in range(3):
                tracker.log({"event/index": index, "event/instability/tok_acc": 0.1 * index})
            for step in (1, 5):
                tracker.log({"recovery/step": step, "recovery/train_loss": 2.0 / step})
            run.done(result)
            publish(result, run, tracker)
    return files(folder)[0]


def test_a_run_is_filed_under_study_job_type_and_name(finished: Path) -> None:
    header = next(record["run"] for record in records(finished) if record["type"] == "run")
    assert header["run_group"] == "mystudy"
    assert header["job_type"] == "prune"
    assert header["display_name"] == "tiny-run"
    assert header["project"] == "secateur"
    assert header["run_id"].startswith("0123abcd-")


def test_a_run_is_tagged_with_what_was_chosen_and_the_users_tags(finished: Path) -> None:
    assert sorted(summary(finished)["tags"]) == ["block_wise", "l2", "linear", "lora", "mine", "tiny_llama"]


def test_a_run_holds_its_configuration_and_choices(finished: Path) -> None:
    config = summary(finished)["config"]
    assert {name: config[name] for name in CONFIG} == CONFIG
    assert config["choices"] == CHOICES


def test_a_run_holds_its_final_figures(finished: Path) -> None:
    found = summary(finished)["summary"]
    assert found["recovered/zeroshot/mean"] == 0.5
    assert found["dense/zeroshot/piqa/acc"] == 0.6


def test_a_run_without_error_is_finished(finished: Path) -> None:
    found = summary(finished)
    assert "finished" in json.dumps(found["state"])
    assert found["exit_code"] == 0


def history(file: Path) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in records(file) if record["type"] == "history"]


def test_every_event_and_recovery_step_is_a_point_with_its_step(finished: Path) -> None:
    rows = history(finished)
    events = [(row["event/index"], row["event/instability/tok_acc"]) for row in rows if "event/index" in row]
    assert events == [(0, 0.0), (1, 0.1), (2, 0.2)]
    steps = [(row["recovery/step"], row["recovery/train_loss"]) for row in rows if "recovery/step" in row]
    assert steps == [(1, 2.0), (5, 0.4)]


def test_events_and_recovery_are_drawn_over_their_own_steps(finished: Path) -> None:
    metrics = [record["metric"] for record in records(finished) if record["type"] == "metric"]
    steps = {metric.get("glob_name"): metric.get("step_metric") for metric in metrics}
    assert steps["event/*"] == "event/index"
    assert steps["recovery/*"] == "recovery/step"


def test_the_table_and_the_result_file_are_logged_but_no_model_unless_asked(finished: Path) -> None:
    text = inspect(finished)
    assert "zeroshot_per_task" in text
    assert "result-0123abcd" in text
    assert "model-0123abcd" not in text


def test_an_error_inside_makes_the_run_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"), WandbTracking().start(identity(tmp_path)):
        raise RuntimeError("broken")
    found = summary(files(tmp_path)[0])
    assert "failed" in json.dumps(found["state"])
    assert found["exit_code"] == 1


def test_two_runs_in_one_process_are_two_runs(tmp_path: Path) -> None:
    for name, value in (("one", 1.0), ("two", 2.0)):
        with WandbTracking().start(identity(tmp_path / name, name)) as tracker:
            tracker.summary({"figure": value})
    for name, value in (("one", 1.0), ("two", 2.0)):
        (file,) = files(tmp_path / name)
        assert summary(file)["summary"]["figure"] == value


def test_a_run_done_again_has_another_id(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with WandbTracking().start(identity(tmp_path)) as tracker:
            tracker.summary({"figure": value})
    found = files(tmp_path)
    assert len({file.stem for file in found}) == 2
    assert sorted(summary(file)["summary"]["figure"] for file in found) == [1.0, 2.0]


def test_the_model_is_logged_when_asked(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("many", encoding="utf-8")
    with WandbTracking(log_model=True).start(identity(tmp_path)) as tracker:
        tracker.artifact("model-0123abcd", "model", tmp_path / "model")
    assert "model-0123abcd" in inspect(files(tmp_path)[0])


def test_no_tracking_takes_everything_and_writes_nothing(tmp_path: Path) -> None:
    with NoTracking().start(identity(tmp_path)) as tracker:
        tracker.log({"event/index": 0})
        tracker.summary({"figure": 1.0})
        tracker.table("table", ["a"], [[1]])
        tracker.artifact("result", "result", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_tracking_lets_errors_through(tmp_path: Path) -> None:
    with pytest.raises(KeyError), NoTracking().start(identity(tmp_path)):
        raise KeyError("lost")


def test_tracking_nothing_never_loads_wandb() -> None:
    code = "import sys, evaluation.tracking as t; t.NoTracking().start(None).__enter__(); print('wandb' in sys.modules)"
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=os.environ.copy(), capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "False"
