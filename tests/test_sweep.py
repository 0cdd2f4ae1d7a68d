"""Sweeps as their users launch them: what is done is skipped, what fails is told, what is left is planned."""

from __future__ import annotations

import json
import resource
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from tests.evaluation.studies import write_status
from tests.sweeps.fabricate import finish, jobs_of
from tests.test_run import command, folders, launch, result_of

HEAVY = {"torch", "transformers", "peft", "lm_eval", "wandb", "datasets", "scipy"}


def launch_watched(runs: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run the command; return what became of it and the modules that it imported."""
    python, *rest = command(runs, *arguments)
    call = [python, "-X", "importtime", *rest]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300, cwd=runs.parent, check=False)
    return done, {
        line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")
    }


def snapshot(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.slow
def test_a_hundred_finished_runs_are_skipped_soon_and_without_loading_torch(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for job in jobs_of(runs, *([f"seed={seed}"] for seed in range(100))):
        finish(job)
    before = {path: path.stat().st_mtime_ns for path in runs.glob("test/*/result.json")}
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done, loaded = launch_watched(runs, "-m", "seed=range(0,100)")
    assert done.returncode == 0
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - used < 20  # seconds of processor time
    assert done.stdout.count("done before") == 100
    assert "100 runs: 100 done" in done.stdout
    assert not loaded & HEAVY
    assert {path: path.stat().st_mtime_ns for path in runs.glob("test/*/result.json")} == before


def test_a_plan_tells_every_state_and_the_time_left_and_writes_nothing(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    jobs = jobs_of(runs, *([f"seed={seed}"] for seed in range(5)))
    finish(jobs[0], 100)
    write_status(jobs[1].folder, "failed", error="OutOfMemoryError: too large")
    for job in jobs[2:4]:
        write_status(job.folder, "running", stage="recovered")
    with FileLock(jobs[2].folder / ".lock"):
        before = snapshot(tmp_path)
        done, loaded = launch_watched(runs, "-m", "seed=range(0,5)", "plan=true")
        assert snapshot(tmp_path) == before
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    states = {line.split()[1]: line.split()[0] for line in lines if " seed=" in line and ":" not in line}
    expected = ["done", "failed", "running", "stopped", "pending"]
    assert states == {f"seed={seed}": state for seed, state in enumerate(expected)}
    assert "failed: seed=1: OutOfMemoryError: too large" in lines
    assert "5 runs: 1 done, 1 failed, 1 pending, 1 running, 1 stopped. About 5 min 00 s left" in done.stdout
    assert all(len(line) <= 100 for line in lines if "/" not in line)
    assert not loaded & HEAVY


def test_a_single_run_is_planned_too(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    done = launch(runs, "plan=true")
    assert "1 run: 1 pending. No finished run in the study tells how long" in " ".join(done.stdout.split())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A sweep of three runs that were done before and one that fails."""
    runs = tmp_path_factory.mktemp("ended") / "runs"
    for job in jobs_of(runs, *([f"pruning.ratio={ratio}"] for ratio in (0.1, 0.2, 0.3))):
        finish(job)
    return runs, launch(runs, "-m", "pruning.ratio=0.1,1.5,0.2,0.3", "tracking=none", check=False)


def test_a_sweep_ends_with_a_table_of_its_runs_although_one_failed(
    ended: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    done = ended[1]
    assert done.returncode == 1
    lines = done.stdout[done.stdout.index("state ") :].splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["done", "ratio=0.1"],
        ["failed", "ratio=1.5"],
        ["done", "ratio=0.2"],
        ["done", "ratio=0.3"],
    ]
    assert "4 runs: 3 done, 1 failed" in lines
    (why,) = (line for line in lines if line.startswith("failed: "))
    assert "pruning.ratio=1.5: must be in [0, 1)" in why
    assert all(len(line) <= 100 for line in lines if "/" not in line)


def test_a_sweep_ends_with_the_dashboard_although_one_failed(
    ended: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    page = ended[0] / "test" / "dashboard.html"
    assert f"dashboard: {page}" in ended[1].stdout
    assert "must be in [0, 1)" in page.read_text()


def test_runs_of_other_sweeps_of_the_study_are_not_in_the_table(
    ended: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    done = launch(ended[0], "-m", "pruning.ratio=0.1,0.3", "tracking=none")
    assert "2 runs: 2 done" in done.stdout
    assert "1.5" not in done.stdout


def test_what_failed_before_is_tried_again_after_what_is_new(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (job,) = jobs_of(runs, ["pruning.ratio=1.5"])
    write_status(job.folder, "failed", error="killed")
    done = launch(runs, "-m", "pruning.ratio=1.5,1.6", "tracking=none", check=False)
    launched = [line for line in done.stdout.splitlines() if "#" in line]
    assert ["pruning.ratio=1.6" in line for line in launched] == [True, False]
    errors = {name: json.loads((path / "status.json").read_text())["error"] for name, path in folders(runs).items()}
    assert len(errors) == 2
    assert all("must be in [0, 1)" in error for error in errors.values())


def test_fail_fast_ends_with_the_first_failure(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    options = ["-m", "pruning.ratio=1.5,1.6", "tracking=none", "hydra/sweeper=fail_fast"]
    done = launch(runs, *options, check=False)
    assert done.returncode == 1
    assert "1 run: 1 failed" in done.stdout
    assert len(folders(runs)) == 1


def test_objectives_that_a_finished_run_does_not_have_are_named(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (job,) = jobs_of(runs, ["seed=0"])
    finish(job)
    done = launch(runs, "-m", "seed=0", "objectives=[recovered/zeroshot/men]", check=False)
    assert done.returncode == 1
    assert "no figure 'recovered/zeroshot/men'" in done.stderr
    assert "recovered/zeroshot/mean" in done.stderr


@pytest.mark.slow
def test_a_run_that_takes_too_long_fails_and_the_sweep_goes_on(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    done = launch(runs, "-m", "time_limit=0.005,null", "tracking=none", "save_model=false", check=False)
    assert done.returncode == 1
    assert "time_limit=0.005: the run took longer than 0.005 minutes" in done.stderr
    (folder,) = folders(runs).values()  # the limit does not change what a run finds
    assert "TimeLimitExceeded" in (folder / "run.log").read_text()
    assert result_of(folder)["status"] == "done"


@pytest.mark.slow
def test_a_run_without_enough_memory_fails_and_the_sweep_goes_on(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    sizes = "model.intermediate_size=100000000000,128"
    done = launch(runs, "-m", sizes, "tracking=none", "save_model=false", check=False)
    assert done.returncode == 1
    states = {json.loads((path / "status.json").read_text())["state"] for path in folders(runs).values()}
    assert states == {"failed", "done"}
    assert "2 runs: 1 done, 1 failed" in done.stdout


@pytest.mark.slow
def test_two_sweeps_of_one_study_at_once_do_every_run_once(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    options = ["-m", "pruning.ratio=0.05,0.1", "importance=l1,l2", "tracking=none", "save_model=false"]
    call = command(runs, *options)
    both = [
        subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=500)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert all("4 runs: 4 done" in output for output in outputs)
    assert sum(output.count(" dense ...") for output in outputs) == 4
    results = [result_of(path) for path in folders(runs).values()]
    assert len(results) == 4
    for measure in ("dense", "control"):
        assert len({result["metrics"][f"{measure}/probe/loss"] for result in results}) == 1
