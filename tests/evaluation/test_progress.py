from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from evaluation import progress
from evaluation.progress import RunDisplay, clock, expected_seconds
from tests.evaluation.wandb_files import result
from tests.terminal import ROOT, frames, in_a_terminal, screen

RUN = """
import logging, sys, time, warnings
from pathlib import Path
from evaluation.progress import run_display
from pruning.progress import loop, track
folder = Path(sys.argv[1]) / "a-run"
folder.mkdir()
console, file = logging.StreamHandler(sys.stdout), logging.FileHandler(folder / "run.log")
logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[console, file])
log = logging.getLogger("test")
with run_display(folder, alone=sys.argv[2] == "alone"):
    for stage in ("dense", "pruned"):
        log.info("%s ...", stage)
        with loop(stage, 1):
            with loop("zero-shot", 2) as step:
                for task in ("piqa", "boolq"):
                    step(0, now=task)
                    for _ in track(range(20), "requests"):
                        time.sleep(0.01)
                    log.info("  %s: acc 0.5", task)
                    step()
            log.warning("mind %s", stage)
            print("printed in", stage)
            warnings.warn("a library warns")
        log.info("%s: 0.5 s", stage)
log.info("run folder")
"""


def shown(folder: Path, alone: str = "alone") -> str:
    """Run the program above in a terminal; return all that it sent there."""
    return in_a_terminal([sys.executable, "-c", RUN, str(folder), alone])


def without_places(lines: list[str]) -> list[str]:
    """Leave out where a warning was raised and how long a stage took."""
    return [
        re.sub(r" \d+:\d\d$", "", line) for line in lines if "warnings.warn" not in line and "UserWarning" not in line
    ]


def test_a_terminal_shows_finished_stages_warnings_and_prints_and_nothing_garbled(tmp_path: Path) -> None:
    sent = shown(tmp_path)
    assert without_places(screen(sent)) == [
        "mind dense",
        "printed in dense",
        "  ✓ dense",
        "mind pruned",
        "printed in pruned",
        "  ✓ pruned",
        "run folder",
    ]
    assert sent.count("a library warns") == 1


def test_a_terminal_shows_run_stage_and_loops_while_they_run(tmp_path: Path) -> None:
    lines = frames(shown(tmp_path))
    for words in (
        r"^a-run +0:\d\d",
        r"^  dense +0:\d\d",
        r"^    zero-shot: piqa .* 0/2 ",
        r"^      requests .* \d+/20 +0:",
    ):
        assert [line for line in lines if re.search(words, line)], words
    assert max(map(len, lines)) <= 100


def test_the_log_file_has_every_line_whatever_the_terminal_shows(tmp_path: Path) -> None:
    shown(tmp_path)
    lines = (tmp_path / "a-run" / "run.log").read_text(encoding="utf-8").splitlines()
    one = ["dense ...", "  piqa: acc 0.5", "  boolq: acc 0.5", "mind dense", "dense: 0.5 s"]
    assert lines == [*one, *(line.replace("dense", "pruned") for line in one), "run folder"]


def test_a_terminal_that_runs_share_gets_plain_lines(tmp_path: Path) -> None:
    sent = shown(tmp_path, alone="shared")
    assert "\x1b" not in sent
    assert sent.splitlines()[:2] == ["dense ...", "  piqa: acc 0.5"]


def test_a_pipe_gets_plain_lines_and_nothing_else(tmp_path: Path) -> None:
    call = [sys.executable, "-c", RUN, str(tmp_path), "alone"]
    found = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "\x1b" not in found.stdout + found.stderr
    assert "\r" not in found.stdout + found.stderr
    one = ["dense ...", "  piqa: acc 0.5", "  boolq: acc 0.5", "mind dense", "printed in dense", "dense: 0.5 s"]
    assert found.stdout.splitlines() == [*one, *(line.replace("dense", "pruned") for line in one), "run folder"]


def drawn(display: RunDisplay) -> list[str]:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(display)
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_time_left_is_what_the_stages_took_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    display = RunDisplay("a-run", {"load": 10.0, "dense": 60.0, "recovered": 30.0}, Console(file=io.StringIO()))
    assert drawn(display)[0].split() == ["a-run", "0:00", "1:40", "left"]
    with display.loop("load", 1):
        now = 1004.0
        assert drawn(display)[0].split() == ["a-run", "0:04", "1:36", "left"]
        now = 1050.0  # it takes longer than before
        assert drawn(display)[0].split() == ["a-run", "0:50", "1:30", "left"]
        with display.loop("requests", 10) as step:
            now = 1054.0
            step(2)  # at two seconds each, eight are left
            assert drawn(display)[0].split() == ["a-run", "0:54", "1:46", "left"]
            assert drawn(display)[1].split()[-2:] == ["0:16", "left"]
    with display.loop("something new", 1):
        assert drawn(display)[0].split() == ["a-run", "0:54", "1:30", "left"]
        assert drawn(display)[1].split() == ["something", "new", "0:00"]


def test_the_time_left_of_a_loop_follows_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    display = RunDisplay("a-run", {}, Console(file=io.StringIO()))
    with display.loop("dense", 1), display.loop("requests", 10) as step:
        assert drawn(display)[2].split()[-2:] == ["0/10", "0:00"]
        now = 6.0
        step(4)
        assert drawn(display)[2].split()[-4:] == ["4/10", "0:06", "0:09", "left"]
    assert drawn(display) == [drawn(display)[0]]
    assert "left" not in drawn(display)[0]


def test_a_long_name_is_cut_and_the_display_stays_in_its_columns() -> None:
    display = RunDisplay("x" * 150, {"dense": 4000.0}, Console(file=io.StringIO()))
    line = drawn(display)[0]
    assert len(line) <= 100
    assert line.endswith("1:06:40 left")
    assert "…" in line


def test_the_newest_finished_run_of_the_study_says_how_long_stages_take(tmp_path: Path) -> None:
    assert expected_seconds(tmp_path / "mine") == {}
    for age, (name, seconds) in enumerate((("newest", 1.0), ("older", 2.0))):
        path = tmp_path / name / "result.json"
        result().write(path)
        found = path.read_text(encoding="utf-8").replace('"timings": {}', f'"timings": {{"dense": {seconds}}}')
        path.write_text(found, encoding="utf-8")
        os.utime(path, (1e9 - age, 1e9 - age))
    assert expected_seconds(tmp_path / "mine") == {"dense": 1.0}


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (600, "10:00"), (3723, "1:02:03")])
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown
