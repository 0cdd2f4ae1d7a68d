"""Every launcher and sweeper with small jobs of which one fails; what they have in common is `tests/test_sweep.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests import slurm
from tests.test_run import ROOT, command, folders, result_of

GRID = ["pruning.ratio=0.05,1.5,0.1,0.15", "importance=l2", "tracking=none", "save_model=false"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}


def sweep(runs: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(runs, "-m", *arguments),
        env=ENVIRONMENT | environment,
        cwd=runs.parent,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def needs(plugin: str) -> pytest.MarkDecorator:
    found = find_spec(f"hydra_plugins.{plugin}")
    return pytest.mark.skipif(found is None, reason=f"{plugin} is not installed: pip install '.[launchers,search]'")


def check_three_of_four(done: subprocess.CompletedProcess[str], runs: Path) -> list[dict]:
    """Check that the others went on when one failed, and that everybody is told. Return the three results."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "4 runs: 3 done, 1 failed" in done.stdout, done.stdout + done.stderr
    assert "ratio=1.5: ValueError: pruning.ratio=1.5: must be in [0, 1)" in done.stdout
    assert (runs / "test" / "dashboard.html").exists()
    assert len([name for name in folders(runs) if not name.startswith(".")]) == 4
    return [result_of(path) for path in folders(runs).values() if (path / "result.json").exists()]


@pytest.mark.slow
def test_basic_runs_one_after_the_other(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert len(check_three_of_four(sweep(runs, *GRID), runs)) == 3


@pytest.mark.slow
def test_processes_share_the_cores_and_skip_what_is_done(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    options = [*GRID, "hydra/launcher=processes"]
    results = check_three_of_four(sweep(runs, *options), runs)
    cores = len(os.sched_getaffinity(0))
    assert {result["environment"]["threads"] for result in results} == {max(1, cores // 2)}
    again = sweep(runs, *options)
    assert again.stdout.count("done before") == 3
    assert "launching 1 jobs" in again.stdout
    check_three_of_four(again, runs)


@pytest.mark.slow
@needs("hydra_submitit_launcher")
def test_submitit_runs_jobs_on_this_machine(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    done = sweep(runs, *GRID, "hydra/launcher=submitit_local", OMP_NUM_THREADS="1")
    check_three_of_four(done, runs)


@pytest.mark.slow
@needs("hydra_submitit_launcher")
def test_slurm_gets_one_job_array_with_what_every_run_needs(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    programs = tmp_path / "bin"
    programs.mkdir()
    log = slurm.install(programs)
    options = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=90"]
    done = sweep(runs, *GRID, *options, PATH=f"{programs}:{os.environ['PATH']}")
    check_three_of_four(done, runs)
    submitted = log.read_text().splitlines()
    for line in (
        "--array=0-3%4",
        "--partition=gpu",
        "--time=90",
        "--gpus-per-node=1",
        "--cpus-per-task=8",
        "--mem=48GB",
    ):
        assert f"#SBATCH {line}" in submitted


@pytest.mark.slow
@needs("hydra_ray_launcher")
def test_ray_starts_a_cluster_and_stops_it(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    done = sweep(runs, *GRID, "hydra/launcher=ray_local", "hydra.launcher.ray.init.num_cpus=2")
    check_three_of_four(done, runs)


@pytest.mark.slow
@needs("hydra_optuna_sweeper")
def test_a_search_keeps_the_pareto_front_and_goes_on_where_it_was(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    objectives = ["pruned/ratio_reached", "recovered/probe/tok_acc"]
    options = [
        "hydra/sweeper=pareto",
        "hydra.sweeper.n_trials=6",
        f"objectives=[{','.join(objectives)}]",
        "pruning.min_units=choice(1,0)",
        "importance=choice(l1,l2,random)",
        *GRID[2:],
    ]
    done = sweep(runs, *options)
    assert done.returncode == 1, done.stdout + done.stderr  # a point of the space cannot be run
    results = [result_of(path) for path in folders(runs).values() if (path / "result.json").exists()]
    points = {tuple(result["metrics"][name] for name in objectives) for result in results}
    dominated = {a for a in points for b in points - {a} if all(y >= x for x, y in zip(a, b, strict=True))}
    front = yaml.safe_load((runs / "test" / "optimization_results.yaml").read_text())["solutions"]
    assert 0 < len(results) < len(folders(runs))
    assert {tuple(solution["values"]) for solution in front} == points - dominated
    assert "Number of Pareto solutions" in done.stdout
    again = sweep(runs, *options)
    assert (runs / "test" / "search.db").exists()
    assert again.stdout.count("Launching 1 jobs") + again.stdout.count("done before") == 6
    assert again.stdout.count("done before") >= 1


@pytest.mark.slow
def test_values_that_belong_together_are_paired(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    pairs = "+hydra.sweeper.list_params={seed:[0,1]}"
    done = sweep(runs, "hydra/sweeper=paired", pairs, "pruning.ratio=0.05,1.5", *GRID[1:])
    assert done.returncode == 1, done.stdout + done.stderr
    assert "4 runs: 2 done, 2 failed" in done.stdout


def test_a_search_cannot_be_planned(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = sweep(tmp_path / "runs", "hydra/sweeper=search", "seed=range(0,5)", "plan=true")
    assert done.returncode == 1
    assert "plan=true: a search chooses its runs as it goes" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_agent_of_wandb_starts_ordinary_runs(tmp_path: Path) -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    sweep_config = yaml.safe_load((ROOT / "conf" / "wandb_sweep.yaml").read_text())
    chosen = {name: {"value": values["values"][-1]} for name, values in sweep_config["parameters"].items()}
    expanded = create_sweep_command_args({"args": chosen})["args_no_hyphens"]
    words = {"${env}": [], "${interpreter}": [sys.executable], "${program}": [str(ROOT / sweep_config["program"])]}
    words["${args_no_hyphens}"] = expanded
    call = [part for word in sweep_config["command"] for part in words.get(word, [word])]
    assert expanded == ["pruning.ratio=0.5", "importance=wanda", "schedule=cubic"]
    done = subprocess.run([*call, "plan=true"], capture_output=True, text=True, cwd=tmp_path, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "smollm2_135m-wanda-r0.50-cubic-lora-s0-" in "".join(done.stdout.split())
