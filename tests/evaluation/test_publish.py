from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from evaluation.publish import events_table, finished_runs, identity_of, main, tracking_of
from evaluation.tracking import WandbTracking
from tests.evaluation.wandb_files import EVENTS, files, history, identity, records, result, summary


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study with one finished run and one that failed."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = tmp_path / "tiny-run"
    (run / ".hydra").mkdir(parents=True)
    (tmp_path / "failed-run").mkdir()
    launched = {"hydra": {"mode": "MULTIRUN", "overrides": {"task": ["seed=3"]}}}
    (run / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(launched), encoding="utf-8")
    trajectory = [{"step": step, "probe/loss": 3.0 - step} for step in range(2)]
    replace(result(), trajectory=trajectory).write(run / "result.json")
    return tmp_path


def test_a_run_that_was_not_tracked_is_sent_whole(study: Path) -> None:
    main([str(study)])
    (file,) = files(study / "tiny-run")
    found = summary(file)
    assert found["summary"]["recovered/zeroshot/mean"] == 0.5
    assert found["notes"] == "python run.py seed=3 hydra.mode=RUN"
    assert found["project"] == "mine"
    assert [row["event/index"] for row in history(file) if "event/index" in row] == [0, 1, 2]
    assert [row["recovery/probe/loss"] for row in history(file) if "recovery/step" in row] == [3.0, 2.0]


def test_a_run_that_wandb_knows_is_opened_again_without_adding_its_points_twice(study: Path) -> None:
    run = study / "tiny-run"
    with WandbTracking().start(identity(run)) as tracker:
        for event in EVENTS:
            tracker.log(event)
    main([str(run), "--project", "another"])
    first, second = files(run)
    assert first.name == second.name
    assert not [row for row in history(second) if "event/index" in row]
    assert summary(second)["summary"]["recovered/zeroshot/mean"] == 0.5
    header = next(record["run"] for record in records(second) if record["type"] == "run")
    assert header["project"] == "another"


def test_only_finished_runs_are_found(study: Path) -> None:
    assert [folder for folder, _ in finished_runs([study])] == [study / "tiny-run"]
    assert [folder for folder, _ in finished_runs([study / "tiny-run"])] == [study / "tiny-run"]


@pytest.mark.parametrize("name", ["failed-run", "nowhere"])
def test_a_place_without_a_finished_run_is_refused(study: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: no finished run there"):
        finished_runs([study, study / name])


def test_a_finished_run_is_named_as_it_was_when_it_ran(study: Path) -> None:
    run = study / "tiny-run"
    read = identity_of(finished_runs([run])[0][1], run)
    assert read == identity(run, overrides=["seed=3", "hydra.mode=RUN"])


def test_the_options_are_the_runs_own_and_the_command_line_goes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    assert tracking_of(result(), None, None) == WandbTracking(project="mine", mode="online")
    assert tracking_of(result(), "other", "team") == WandbTracking(project="other", entity="team", mode="online")


def test_events_with_different_figures_make_one_table() -> None:
    events = [{"event/index": 0, "event/a": 1.0}, {"event/index": 1, "event/b": 2.0}]
    assert events_table(events) == (["index", "a", "b"], [[0, 1.0, None], [1, None, 2.0]])
