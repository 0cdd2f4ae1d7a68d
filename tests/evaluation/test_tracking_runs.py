"""What W&B gets of whole runs, launched as users and W&B's agents launch them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.wandb_files import files, history, summary
from tests.test_run import FAST, ROOT


def launch(runs: Path, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, str(ROOT / "run.py"), *FAST, f"runs_dir={runs}", "study=tracked", *overrides]
    given = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"} | environment
    return subprocess.run(call, capture_output=True, text=True, timeout=300, cwd=runs.parent, env=given, check=False)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a sweep by ratio: one run that is done, one whose ratio is out of range."""
    runs = tmp_path_factory.mktemp("sweep") / "runs"
    launched = launch(runs, "hydra.mode=MULTIRUN", "pruning.ratio=0.1,1.5", "schedule=linear", "schedule.events=2")
    assert launched.returncode == 1, launched.stdout + launched.stderr
    folders = {folder.name.split("-r")[1][:4]: folder for folder in (runs / "tracked").glob("tiny_llama*")}
    assert set(folders) == {"0.10", "1.50"}
    return folders


def test_a_run_has_its_figures_events_and_command(sweep: dict[str, Path]) -> None:
    (file,) = files(sweep["0.10"])
    found = summary(file)
    result = json.loads((sweep["0.10"] / "result.json").read_text(encoding="utf-8"))
    flat = {name: value for name, value in found["summary"].items() if not isinstance(value, dict)}
    assert {name: flat[name] for name, value in result["metrics"].items() if value is not None} == pytest.approx(
        {name: value for name, value in result["metrics"].items() if value is not None}
    )
    assert [row["event/index"] for row in history(file) if "event/index" in row] == [0, 1]
    assert "pruning.ratio=0.1" in found["notes"]
    assert found["notes"].endswith("hydra.mode=RUN")
    assert (found["state"], found["exit_code"]) == ("finished", 0)
    assert found["config"]["choices"]["schedule"] == "linear"


def test_a_value_out_of_range_is_a_failed_run_of_the_sweep(sweep: dict[str, Path]) -> None:
    (file,) = files(sweep["1.50"])
    found = summary(file)
    assert (found["state"], found["exit_code"]) == ("failed", 1)
    assert "pruning.ratio=1.5: must be in [0, 1)" in found["summary"]["error"]


def test_an_agent_gets_the_figures_of_a_run_that_was_done_before(sweep: dict[str, Path]) -> None:
    runs = sweep["0.10"].parents[1]
    options = ["schedule=linear", "schedule.events=2"]
    agent = {"WANDB_SWEEP_ID": "sweep01", "WANDB_RUN_ID": "agents01", "WANDB_MODE": "offline"}
    launched = launch(runs, *options, **agent)
    assert "done before" in launched.stdout, launched.stdout + launched.stderr
    (file,) = sweep["0.10"].glob("wandb/offline-run-*/run-agents01.wandb")
    result = json.loads((sweep["0.10"] / "result.json").read_text(encoding="utf-8"))
    found = summary(file)["summary"]
    assert found["recovered/probe/loss"] == pytest.approx(result["metrics"]["recovered/probe/loss"])


def test_a_run_that_was_done_before_is_not_sent_again_without_an_agent(sweep: dict[str, Path]) -> None:
    before = sorted(sweep["0.10"].glob("wandb/*"))
    launched = launch(sweep["0.10"].parents[1], "schedule=linear", "schedule.events=2")
    assert "done before" in launched.stdout
    assert sorted(sweep["0.10"].glob("wandb/*")) == before
