from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.tracking import NoTracking, Tracker, WandbTracking, single_run
from tests.evaluation.wandb_files import CONFIG, identity


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


def test_wandb_disabled_is_no_tracking(tmp_path: Path) -> None:
    assert type(WandbTracking(mode="disabled").start(identity(tmp_path))) is Tracker


@pytest.mark.parametrize("options", ["NoTracking()", "WandbTracking(mode='disabled')"])
def test_tracking_nothing_never_loads_wandb(options: str) -> None:
    code = f"import sys; from evaluation.tracking import *; {options}.start(None).__enter__(); print('wandb' in sys.modules)"
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=os.environ.copy(), capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "False"


def test_auto_is_offline_and_online_under_an_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert WandbTracking().mode == "offline"
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    assert WandbTracking().mode == "online"
    assert WandbTracking(mode="offline").mode == "offline"


def test_an_unknown_mode_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match="tracking.mode=on: must be one of auto, online, offline"):
        WandbTracking(mode="on")


@pytest.mark.parametrize("tag", ["", "x" * 65])
def test_a_tag_that_wandb_does_not_take_is_refused(tag: str) -> None:
    with pytest.raises(ValueError, match="tracking.tags: .* W&B takes 1 to 64"):
        WandbTracking(tags=["good", tag])


def test_a_run_that_cuts_nothing_is_a_baseline(tmp_path: Path) -> None:
    assert identity(tmp_path).job_type == "prune"
    assert identity(tmp_path, config=CONFIG | {"pruning": {"ratio": 0}}).job_type == "baseline"


def test_the_command_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    command = identity(tmp_path).command
    assert shlex.split(command) == ["python", "run.py", "seed=3", "data.path=my text"]


def test_a_run_of_a_sweep_is_made_alone_by_its_command() -> None:
    assert single_run(["a=1"], "RunMode.MULTIRUN") == ["a=1", "hydra.mode=RUN"]
    assert single_run(["a=1"], "MULTIRUN") == ["a=1", "hydra.mode=RUN"]
    assert single_run(["a=1"], "RUN") == ["a=1"]
