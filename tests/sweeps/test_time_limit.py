from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.time_limit import TimeLimitExceeded, time_limit

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_other_alarm() -> Iterator[None]:
    """The tests' own time limit uses the same clock."""
    before = signal.setitimer(signal.ITIMER_REAL, 0)
    yield
    signal.setitimer(signal.ITIMER_REAL, *before)


def remaining() -> float:
    return signal.getitimer(signal.ITIMER_REAL)[0]


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    with time_limit(None, tmp_path / "log"):
        assert remaining() == 0
    assert not (tmp_path / "log").exists()


def test_a_block_that_takes_too_long_is_ended_and_the_clocks_are_stopped(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGALRM)
    start = time.monotonic()
    with (
        pytest.raises(TimeLimitExceeded, match="time_limit=0.002: the run took longer"),
        time_limit(0.002, tmp_path / "l"),
    ):
        time.sleep(20)
    assert time.monotonic() - start < 10
    assert remaining() == 0
    assert signal.getsignal(signal.SIGALRM) is before


def test_a_block_in_time_is_left_alone_and_an_alarm_that_was_set_before_is_set_again(tmp_path: Path) -> None:
    signal.setitimer(signal.ITIMER_REAL, 500)
    with time_limit(1, tmp_path / "log"):
        assert 0 < remaining() <= 60
    assert 0 < remaining() <= 500
    assert (tmp_path / "log").read_text() == ""


def test_code_that_swallows_the_alarm_gets_it_again(tmp_path: Path) -> None:
    swallowed = 0
    with pytest.raises(TimeLimitExceeded), time_limit(0.002, tmp_path / "log"):  # noqa: PT012
        for _ in range(2):
            try:
                time.sleep(20)
            except TimeLimitExceeded:
                swallowed += 1
        time.sleep(20)
    assert swallowed == 2


def test_an_import_is_not_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(1)\nready = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TimeLimitExceeded), time_limit(0.002, tmp_path / "log"):  # noqa: PT012
        import slow_to_import

        time.sleep(20)
    assert slow_to_import.ready


STUCK = """
import sys
from pathlib import Path
from sweeps.time_limit import time_limit

def hang():
    with time_limit(0.01, Path(sys.argv[1]), grace=0.5):
        sum(range(10**12))  # one call of hours, in which no alarm is heard

hang()
"""


def test_code_that_never_comes_back_is_ended_with_a_trace_of_where_it_hangs(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", STUCK, str(tmp_path / "log")], cwd=ROOT, timeout=40, check=False)
    assert done.returncode == 1
    assert "hang" in (tmp_path / "log").read_text()


def test_in_a_thread_there_is_no_alarm(tmp_path: Path) -> None:
    seen = []

    def work() -> None:
        with time_limit(1, tmp_path / "log"):
            seen.append(remaining())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]
