"""The command itself, as its users launch it: one run, a sweep, a second time, a kill, a failure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent

FAST = [
    "model=tiny_llama",
    "pruning.ratio=0.1",
    "model.layers=6",
    "pruning.protect_first=1",
    "pruning.protect_last=1",
    "data.calibration_samples=4",
    "compensation.samples=4",
    "recovery.steps=2",
    "evaluation=none",
    "stability.blocks=4",
    "stability.length=32",
]


def command(runs: Path, *arguments: str) -> list[str]:
    flags = [argument for argument in arguments if argument.startswith("-")]
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    return [sys.executable, str(ROOT / "run.py"), *flags, *FAST, f"runs_dir={runs}", "study=test", *overrides]


def launch(runs: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(runs, *arguments), capture_output=True, text=True, timeout=300, cwd=runs.parent)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def folders(runs: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted((runs / "test").iterdir()) if path.is_dir()}


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One finished run with W&B, and what it printed."""
    runs = tmp_path_factory.mktemp("one") / "runs"
    return runs, launch(runs).stdout


def test_a_run_leaves_everything_in_its_folder(finished: tuple[Path, str]) -> None:
    (folder,) = folders(finished[0]).values()
    names = {path.name for path in folder.iterdir()}
    assert {".hydra", "run.log", "status.json", "events.jsonl", "adapter", "model", "wandb", "result.json"} <= names
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    result = result_of(folder)
    assert folder.name.endswith(result["key"])
    assert result["choices"]["importance"] == "taylor"
    assert result["metrics"]["pruned/ratio_reached"] == pytest.approx(0.1, abs=0.005)
    assert result["metrics"]["stability/pct_mean/tok_acc"] is not None
    assert result["metrics"]["generalization/gain/loss"] is not None
    assert len(result["events"]) == 1
    agreement = result["metrics"]["pruned/scores/rank_agreement"]
    assert -1 <= agreement <= 1
    assert result["events"][0]["event/scores/rank_agreement"] == agreement
    assert {"load", "dense", "recovered", "control", "save"} <= set(result["timings"])


def test_the_metrics_follow_the_formulas(finished: tuple[Path, str]) -> None:
    (folder,) = folders(finished[0]).values()
    metrics = result_of(folder)["metrics"]
    event = json.loads((folder / "events.jsonl").read_text())
    pre, post, rec = (event[f"event/tok_acc/{when}"] for when in ("pre", "post", "rec"))
    assert event["event/instability/tok_acc"] == pytest.approx((pre - post) / pre)
    assert metrics["dense/probe/tok_acc"] == pre
    assert metrics["pruned/probe/tok_acc"] == post
    assert metrics["recovered/probe/tok_acc"] == rec == metrics["generalization/final/tok_acc"]
    gain = metrics["control/probe/loss"] - metrics["recovered/probe/loss"]
    assert metrics["generalization/gain/loss"] == pytest.approx(gain)


def test_the_table_is_printed(finished: tuple[Path, str]) -> None:
    for words in ("dense", "pruned", "recovered", "control", "removed, reached", "stability, token accuracy"):
        assert words in finished[1]
    assert all(len(line) <= 100 for line in finished[1].splitlines() if "/" not in line)


def test_the_same_command_again_does_nothing_and_prints_the_same_table(finished: tuple[Path, str]) -> None:
    runs, before = finished
    (folder,) = folders(runs).values()
    stamp = (folder / "result.json").stat().st_mtime_ns
    again = launch(runs).stdout
    assert "done before" in again
    assert (folder / "result.json").stat().st_mtime_ns == stamp
    assert again[again.index("asked") :].split("\n")[0] == before[before.index("asked") :].split("\n")[0]


def test_the_saved_model_is_pruned_further_by_the_same_command(finished: tuple[Path, str], tmp_path: Path) -> None:
    (folder,) = folders(finished[0]).values()
    runs = tmp_path / "runs"
    options = [option for option in FAST if not option.startswith(("model", "recovery"))]
    options += ["model=pretrained", f"model.path={folder / 'model'}", "recovery=none", "tracking=none"]
    call = [sys.executable, str(ROOT / "run.py"), *options, f"runs_dir={runs}", "study=test"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (again,) = folders(runs).values()
    channels = [sum(layer["mlp_channels"] for layer in result_of(place)["widths"]) for place in (again, folder)]
    assert channels[0] < channels[1]


SWEEP = ["-m", "pruning.ratio=0.05,0.1", "importance=taylor,l2", "tracking=none", "save_model=false"]


def test_a_sweep_is_killed_and_the_same_command_finishes_it(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = subprocess.Popen(
        command(runs, *SWEEP),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while not list(runs.glob("test/*/result.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    while len(list(runs.glob("test/*/events.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in runs.glob("test/*/result.json")}
    assert 1 <= len(finished) < 4
    launch(runs, *SWEEP)
    assert len(list(runs.glob("test/*/result.json"))) == 4
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in finished.items())
    stamps = {path: path.stat().st_mtime_ns for path in runs.glob("test/*/result.json")}
    assert launch(runs, *SWEEP).stdout.count("done before") == 4
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    for measure in ("dense", "control"):
        assert len({result_of(path.parent)["metrics"][f"{measure}/probe/loss"] for path in stamps}) == 1


def test_a_failing_job_does_not_stop_the_others(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    done = launch(runs, "-m", "pruning.ratio=0.05,0.9,0.1", check=False)
    assert done.returncode != 0
    states = {name: json.loads((path / "status.json").read_text()) for name, path in folders(runs).items()}
    assert sorted(state["state"] for state in states.values()) == ["done", "done", "failed"]
    (failed,) = (name for name, state in states.items() if state["state"] == "failed")
    assert "cannot be reached" in states[failed]["error"]
    assert "Traceback" in (folders(runs)[failed] / "run.log").read_text()
    assert not (folders(runs)[failed] / "result.json").exists()


def test_bad_input_is_one_clear_line(tmp_path: Path) -> None:
    done = launch(tmp_path / "runs", "pruning.ratio=1.5", check=False)
    assert done.returncode != 0
    assert "pruning.ratio=1.5: must be in [0, 1)" in done.stderr
    assert "Traceback" not in done.stderr


def test_iterative_pruning_recovers_between_events_and_stays_cumulative(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    launch(runs, "schedule=linear", "schedule.events=3", "recovery.when=each", "recovery.steps=3", "tracking=none")
    (folder,) = folders(runs).values()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [event["event/ratio_asked"] for event in events] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])
    for before, after in zip(events, events[1:], strict=False):
        assert after["event/tok_acc/pre"] == before["event/tok_acc/rec"]
        assert after["event/ratio_reached"] > before["event/ratio_reached"]


def test_ratio_zero_is_the_baseline(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    launch(runs, "pruning.ratio=0", "tracking=none", "save_model=false")
    (folder,) = folders(runs).values()
    metrics = result_of(folder)["metrics"]
    assert metrics["recovered/probe/loss"] == metrics["control/probe/loss"]
    assert metrics["generalization/gain/loss"] == 0
    assert result_of(folder)["events"] == []


def test_the_checkpoint_has_the_weights_that_were_measured(finished: tuple[Path, str]) -> None:
    from evaluation.perplexity import score_text
    from pruning.blocks import evenly_spaced_windows
    from pruning.checkpoint import load_checkpoint
    from pruning.documents import read_corpus
    from pruning.model import byte_tokenizer

    (folder,) = folders(finished[0]).values()
    model = load_checkpoint(folder / "model", torch.float32)
    blocks = evenly_spaced_windows(read_corpus("passages", "x"), byte_tokenizer(), 32, 4, purpose="x")
    assert score_text(model, blocks).loss == pytest.approx(
        result_of(folder)["metrics"]["recovered/probe/loss"], abs=1e-5
    )


def test_an_estimator_that_cannot_score_what_is_to_be_cut_ends_before_any_work(tmp_path: Path) -> None:
    done = launch(tmp_path / "runs", "pruning=channel_wise", "importance=wanda", check=False)
    assert done.returncode == 1
    assert "importance=wanda: cannot score hidden" in done.stderr
    assert "Traceback" not in done.stderr
    (folder,) = folders(tmp_path / "runs").values()
    assert json.loads((folder / "status.json").read_text())["stage"] == "load"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pruning", "importance"),
    [
        ("heads", "unit_mask"),
        ("block_wise", "wanda"),
        ("block_wise", "flap"),
        ("block_wise", "reconstruction"),
        ("block_wise", "llm_pruner"),
        ("mlp_only", "random"),
        ("channel_wise", "taylor"),
        ("layer_wise", "l1"),
        ("depth", "taylor"),
        ("equal_widths", "l2"),
    ],
)
def test_every_structure_and_estimator_goes_through_a_run_of_two_events(
    tmp_path: Path, pruning: str, importance: str
) -> None:
    ratio = {"layer_wise": 0.4, "depth": 0.3, "equal_widths": 0.5}.get(pruning, 0.1)
    options = ["schedule=linear", "schedule.events=2", "recovery.when=each", f"pruning.ratio={ratio}", "model.layers=8"]
    options += ["pruning.round_to=16"] if pruning == "equal_widths" else []
    launch(tmp_path / "runs", f"pruning={pruning}", f"importance={importance}", "tracking=none", *options)
    (folder,) = folders(tmp_path / "runs").values()
    metrics = result_of(folder)["metrics"]
    assert metrics["pruned/ratio_reached"] == pytest.approx(ratio, abs=0.06)
    assert metrics["recovered/probe/loss"] > 0
