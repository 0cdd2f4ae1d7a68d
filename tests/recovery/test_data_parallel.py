"""A training that several processes share is the one that one process does, up to rounding."""

from __future__ import annotations

import copy
import logging
import math
import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.cache import Cache
from pruning.checkpoint import load_checkpoint, save_checkpoint
from pruning.model import RandomLlamaSource
from pruning.packing import Example, to_rows
from recovery.full import FullFineTuning
from recovery.lora import Lora
from recovery.objectives import Distillation, Objective
from recovery.task import RecoveryReport, RecoveryTask
from recovery.trained import TrainedRecovery
from recovery.trainer import last_checkpoint
from tests.pruning.test_checkpoint import cut_unevenly
from tests.pruning.test_noise import zero
from tests.recovery.trainings import SMALL, recover, text

Outcome = tuple[PreTrainedModel, RecoveryReport, list[dict[str, float]]]


def assert_same(one: Outcome, other: Outcome) -> None:
    """Weights, report and losses are equal up to rounding."""
    for (name, weight), value in zip(one[0].named_parameters(), other[0].parameters(), strict=True):
        torch.testing.assert_close(weight, value, rtol=1e-4, atol=1e-5, msg=lambda said, name=name: f"{name}: {said}")
    first, second = one[1], other[1]
    assert (first.tokens, first.trained_parameters) == (second.tokens, second.trained_parameters)
    assert (first.diverged, first.taken_step) == (second.diverged, second.taken_step)
    assert first.train_loss == pytest.approx(second.train_loss, rel=1e-5)
    for points in zip(first.trajectory, second.trajectory, strict=True):
        assert points[0] == pytest.approx(points[1], rel=2e-5)
    for rows in zip(one[2], other[2], strict=True):
        assert rows[0] == pytest.approx(rows[1], rel=1e-5)


def shared_out(
    kind: Callable[..., TrainedRecovery], model: PreTrainedModel, folder: Path, options: Callable[..., dict[str, Any]]
) -> tuple[Outcome, Outcome]:
    """Train copies of a model in one process and in two; `options` makes what a copy is recovered with besides."""
    outcomes = []
    for processes in (1, 2):
        own = copy.deepcopy(model)
        outcomes.append((own, *recover(own, kind(processes=processes), Cache(folder / str(processes)), **options(own))))
    return outcomes[0], outcomes[1]


def test_lora_with_dropout_ends_early_at_the_same_best_state(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    cut_unevenly(llama)
    save_checkpoint(llama, tokenizer, tmp_path / "model", "# card\n")
    pruned = load_checkpoint(tmp_path / "model", torch.float32)
    assert type(pruned) is not type(llama)
    settings = {"batch_size": 8, "learning_rate": 3e-2, "scheduler": "constant_with_warmup", "watch_every": 2}
    unlike = {"validation": torch.randint(2, 258, (6, 16), generator=torch.Generator().manual_seed(1))}

    def kind(processes: int) -> Lora:
        return Lora(**SMALL | settings, dropout=0.2, patience=2, processes=processes)

    one, two = shared_out(kind, pruned, tmp_path, lambda _: {"watched": unlike})
    assert one[1].taken_step < 8
    assert len(one[2]) < 12
    assert_same(one, two)


@pytest.mark.slow
def test_distillation_of_examples_of_unequal_length_under_noise(llama: PreTrainedModel, tmp_path: Path) -> None:
    """Each process has its own number of learnt tokens: a mean of means would weigh short examples more."""
    sizes = [2, 13, 4, 9, 3, 12, 11, 2] * 4
    examples = [Example([5, 6], [7 + i, *range(30, 30 + size)]) for i, size in enumerate(sizes)]
    rows = to_rows([[example] for example in examples], 16, 1)
    dense = copy.deepcopy(llama)
    with torch.no_grad():
        llama.model.layers[1].mlp.down_proj.weight.zero_()
    settings = {"batch_size": 8, "steps": 4, "gradient_checkpointing": True}
    objective = Distillation(weight=0.5, hidden_weight=0.1, store_gb=0.0)  # the dense model runs along

    def kind(processes: int) -> FullFineTuning:
        return FullFineTuning(**SMALL | settings, objective=objective, processes=processes)

    def options(model: PreTrainedModel) -> dict[str, Any]:
        return {"blocks": rows, "noise": zero(model), "teacher": lambda: dense}

    assert_same(*shared_out(kind, llama, tmp_path, options))


@dataclass
class BreaksAt(Objective):
    """Language modelling whose loss is NaN for the batch that begins with one of the rows."""

    row: int = 0

    def batch_loss(self, model, blocks, teacher, cache, computing):
        self.inner = super().batch_loss(model, blocks, teacher, cache, computing)
        return self.loss

    def loss(self, model, batch, items):
        return self.inner(model, batch, items) * (math.nan if int(batch["index"][0]) == self.row else 1)


@pytest.mark.slow
def test_all_processes_stop_when_the_loss_of_one_is_no_number(llama: PreTrainedModel, cache: Cache) -> None:
    options = SMALL | {"scheduler": "constant_with_warmup"}
    twin = copy.deepcopy(llama)
    broken = Lora(**options, objective=BreaksAt(row=7 * 4 + 2), processes=2)  # the second process's part of step 8
    report, logged = recover(llama, broken, cache)
    assert report.diverged
    assert report.taken_step == 6
    assert len(logged) == 8
    good, losses = recover(twin, Lora(**options), cache, steps=range(6))
    assert logged[:6] == [pytest.approx(row, rel=1e-5) for row in losses]
    torch.testing.assert_close(dict(llama.named_parameters()), dict(twin.named_parameters()), rtol=1e-4, atol=1e-5)


def train(folder: Path, processes: int, killed_at: int | None = None) -> Outcome:
    """Distil with kept states for 60 steps; note the processes, and kill this one, at a step."""
    dense, _ = RandomLlamaSource(name="tiny", layers=2).load(Cache(folder), "cpu")
    model, logged = copy.deepcopy(dense), []
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()

    def log(row: dict[str, float]) -> None:
        logged.append(row)
        if row["recovery/step"] == killed_at:
            pids = [str(process.pid) for process in multiprocessing.active_children()]
            (folder / "processes").write_text(" ".join(pids))
            signal.raise_signal(signal.SIGKILL)

    options = {"steps": 60, "save_every": 5, "watch_every": 30, "dropout": 0.1, "objective": Distillation()}
    recovery = Lora(**SMALL | options, processes=processes)
    watched = {"validation": text(recovery)[:5].flip(1)}
    task = RecoveryTask(text(recovery), range(60), 0, teacher=lambda: dense, watched=watched)
    report = recovery.recover(model, task, Cache(folder), log)
    assert [row["recovery/step"] for row in logged] == list(range(1, 61))
    return model, report, logged


def runs(pid: str) -> bool:
    """Say whether a process is there and not a dead one that nobody has asked for its end."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] not in "ZX"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux, to see processes")
def test_after_a_kill_nobody_is_left_and_any_number_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    killed, again = tmp_path / "killed", tmp_path / "again"
    command = (
        f"from pathlib import Path; from tests.recovery.test_data_parallel import train; "
        f"train(Path({str(killed)!r}), 2, killed_at=7)"
    )
    process = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    processes = (killed / "processes").read_text().split()
    assert len(processes) == 2
    end = time.monotonic() + 30
    while any(map(runs, processes)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(runs, processes))
    (unfinished,) = killed.glob("*/*.unfinished")
    assert last_checkpoint(unfinished) is not None
    subprocess.run(["cp", "-r", killed, again], check=True)
    whole = train(tmp_path / "whole", 1)
    for folder, number in ((killed, 1), (again, 2)):
        with caplog.at_level(logging.INFO, "recovery"):
            assert_same(train(folder, number), whole)
        assert "going on from checkpoint-" in caplog.text
        caplog.clear()
        assert not list(folder.glob("*/*.unfinished"))
