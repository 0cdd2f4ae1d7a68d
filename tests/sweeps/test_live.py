"""The live table of a sweep, drawn in a pseudo-terminal while a stand-in for a launcher runs the jobs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.dashboard.runs import RunRecord
from sweeps.live import window
from sweeps.tables import Row
from tests.terminal import ROOT, frames, in_a_terminal, screen

SWEEP = """
import subprocess, sys, time
from pathlib import Path
from filelock import FileLock
from evaluation.progress import run_display
from evaluation.report import print_report
from evaluation.result import RunResult
from pruning.progress import loop
from sweeps import live
from sweeps.live import sweep_display
from tests.evaluation.studies import write_status
from tests.sweeps.fabricate import finish, jobs_of
live.SECONDS = 0.1
drawn, look, looks = sys.stdout.isatty(), live.SweepDisplay._look, []
live.SweepDisplay._look = lambda self: looks.append(1) or look(self)
def until_drawn():
    enough, too_long = len(looks) + 3, time.monotonic() + (60 if drawn else 0)
    while len(looks) < enough and time.monotonic() < too_long:
        time.sleep(0.1)
jobs = jobs_of(Path(sys.argv[1]), *([f"pruning.ratio={r}", f"seed={s}"] for r in (0.1, 0.3) for s in (0, 1)))
here = sys.argv[2] == "here"
finish(jobs[0])
with sweep_display(jobs, here):
    for job in jobs[1:]:
        job.folder.mkdir(parents=True)
        with FileLock(job.folder / ".lock"), run_display(job.folder, here):
            write_status(job.folder, "running", stage="dense", started=None)
            with loop("dense", 1):
                until_drawn()
            print("printed by", job.config.seed, flush=True)
            if not here:
                subprocess.run([sys.executable, "-c", "print('a child printed')"])
            if job is jobs[2]:
                write_status(job.folder, "failed", error="ValueError: no")
            else:
                finish(job)
    if here:
        print_report(RunResult.read(jobs[0].folder / "result.json"))
    until_drawn()
print("the end")
"""


@pytest.mark.slow  # a terminal is drawn too seldom on a machine under load
def test_a_line_for_every_job_follows_it_in_the_terminal(tmp_path: Path) -> None:
    sent = in_a_terminal([sys.executable, "-c", SWEEP, str(tmp_path / "runs"), "here"])
    lines = frames(sent)
    for words in (
        r"^state +run +ratio +estimator +zero-shot mean +perplexity +time$",
        r"^done +seed=0 +0\.1 +taylor +0\.\d{3} > 0\.\d{3} +\d+\.\d > \d+\.\d +1 min 00 s$",
        r"^running +seed=1 · dense +0\.1 +taylor +1 min 00 s left$",
        r"^pending +seed=1 +0\.3 +taylor +about 1 min 00 s$",
        r"^failed +seed=0 +0\.3 +taylor$",
        r"^4 runs: 1 done, 2 pending, 1 running\. About 3 min 00 s left\.",
        r"^4 runs: 3 done, 1 failed\.",
        r"^  dense +0:\d\d",  # the run's own display
    ):
        assert [line for line in lines if re.search(words, line.rstrip())], words
    assert max(map(len, lines)) <= 100
    stays = [re.sub(r" 0:\d\d$", "", line) for line in screen(sent)]
    each = [["  ✓ dense", f"printed by {seed}"] for seed in (1, 0, 1)]
    assert stays[:6] == sum(each, [])
    assert stays[6].startswith("tiny_llama-taylor-r0.10-")  # the report of a run, which is printed past no display
    assert len([line for line in stays if line.startswith((" removed, asked", " removed, reached"))]) == 2
    assert stays[-1] == "the end"
    assert not [line for line in stays if line.startswith(("state ", "done ", "running "))]


@pytest.mark.slow  # a terminal is drawn too seldom on a machine under load
def test_what_other_processes_print_goes_to_a_file_and_leaves_the_table_whole(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    sent = in_a_terminal([sys.executable, "-c", SWEEP, str(runs), "elsewhere"])
    lines = frames(sent)
    assert [line for line in lines if re.search(r"^running +seed=1 · dense +0\.1 +taylor", line)]
    log = runs / "test" / "sweep.log"
    assert "".join(screen(sent)) == f"what the jobs printed: {log}the end"
    assert log.read_text().count("a child printed") == log.read_text().count("printed by") == 3
    assert "printed by" not in sent


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_without_a_terminal_there_is_no_table(where: str, tmp_path: Path) -> None:
    call = [sys.executable, "-c", SWEEP.replace("2.5", "0").replace("1.5", "0"), str(tmp_path / "runs"), where]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
    assert "\x1b" not in done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith(("printed", "the"))] == [
        *(f"printed by {seed}" for seed in (1, 0, 1)),
        "the end",
    ]
    assert not (tmp_path / "runs" / "test" / "sweep.log").exists()


@pytest.mark.parametrize(
    ("running", "room", "shown"),
    [(None, 10, "0123456"), (None, 3, "012"), (5, 3, "456"), (3, 3, "234"), (6, 3, "456"), (0, 3, "012")],
)
def test_what_does_not_fit_is_left_out_around_the_job_that_runs(running: int | None, room: int, shown: str) -> None:
    states = ["running" if index == running else "pending" for index in range(7)]
    rows = [
        Row(str(index), RunRecord(folder="f", name="n", study="s", state=state), None)
        for index, state in enumerate(states)
    ]
    assert "".join(row.label for row in window(rows, room)) == shown
