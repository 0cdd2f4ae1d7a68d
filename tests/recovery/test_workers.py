"""Several processes do one piece of work: what they hand on, how it ends, and that none is left behind."""

from __future__ import annotations

import logging
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from recovery.full import FullFineTuning
from recovery.lora import Lora
from recovery.processes import processes_on
from recovery.workers import carry_out, save_work
from tests.recovery import works
from tests.recovery.trainings import SMALL
from tests.zoo import build


def carried_out(work: Any, folder: Path, log: Any) -> None:
    save_work(work, folder / "work.pt")
    try:
        carry_out(folder / "work.pt", 2, "cpu", log)
    finally:
        assert not (folder / "work.pt").exists()
        assert not multiprocessing.active_children()


def test_they_work_together_and_one_of_them_reports(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logged: list[tuple[int, float]] = []
    with caplog.at_level(logging.INFO, "recovery"):
        carried_out(works.sums, tmp_path, lambda *step: logged.append(step))
    assert logged == [(1, 1.0)]
    assert [record.getMessage() for record in caplog.records] == ["said by 0"]


def test_the_error_of_one_is_the_error_of_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^recovery\.data: nobody can read this$"):
        carried_out(works.fails, tmp_path, print)


def test_a_process_that_is_killed_ends_the_work(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"process 1 terminated with signal SIGKILL|Connection closed by peer"):
        carried_out(works.dies, tmp_path, print)


def test_an_interruption_ends_the_processes(tmp_path: Path) -> None:
    def interrupted(step: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carried_out(works.lasts, tmp_path, interrupted)


@pytest.mark.parametrize("kind", [Lora, FullFineTuning])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processes": 0}, r"recovery\.processes=0: must be at least 1, or auto"),
        ({"processes": "all"}, r"recovery\.processes=all: must be a number, or auto"),
        ({"processes": 4}, r"recovery\.processes=4: recovery\.batch_size=4 must be a multiple of"),
    ],
)
def test_numbers_that_cannot_be_are_refused(kind: type, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**SMALL | options)


def test_each_process_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert processes_on("cuda", Lora(**SMALL, processes="auto")) == 2
    assert processes_on("cuda", Lora(**SMALL)) == 1
    options = SMALL | {"batch_size": 6}
    with pytest.raises(ValueError, match=r"recovery\.processes=3: each needs a GPU of its own, and 2 can be seen"):
        processes_on("cuda", Lora(**options, processes=3))
    with pytest.raises(ValueError, match=r"recovery\.processes=2: recovery\.batch_size=6 must be a multiple"):
        processes_on("cuda", Lora(**options, processes="auto"))
    with pytest.raises(ValueError, match=r"recovery\.processes=2: several work on device=cuda or cpu, not on mps"):
        processes_on("mps", Lora(**SMALL, processes=2))


def test_on_a_cpu_there_may_be_several_but_not_by_themselves() -> None:
    assert processes_on("cpu", Lora(**SMALL, processes=2)) == 2
    automatic = Lora(**SMALL, processes="auto")
    assert processes_on("cpu", automatic) == 1
    automatic.check_model(build("llama_gqa_tied"))


def test_the_check_of_a_model_counts_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(LlamaForCausalLM, "device", type("Device", (), {"type": "cuda"}))
    with pytest.raises(
        ValueError, match=r"recovery\.processes=2: each needs a GPU of its own, and 1 can be seen; use at most 1"
    ):
        Lora(**SMALL, processes=2).check_model(build("llama_gqa_tied"))
