"""The cache when a process is killed or the disk is full while an entry is made."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pruning.cache import Cache

ROOT = Path(__file__).parents[2]
INPUTS = {"model": "x"}


def entries(cache: Cache) -> set[str]:
    return {path.name for path in (cache.root / "scores").iterdir() if not path.name.endswith(".lock")}


def half(folder: Path) -> None:
    (folder / "weights").write_text("half of ")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def whole(folder: Path) -> None:
    (folder / "weights").write_text("all of it")


def test_a_disk_that_is_full_while_an_entry_is_built_leaves_nothing_and_it_is_built_again(cache: Cache) -> None:
    with pytest.raises(OSError, match="No space left"):
        cache.folder("scores", INPUTS, half)
    assert entries(cache) == set()
    assert (cache.folder("scores", INPUTS, whole) / "weights").read_text() == "all of it"


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_disk_that_is_full_while_an_entry_is_written_leaves_nothing(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(call, full)
        with pytest.raises(OSError, match="No space left"):
            cache.json("scores", INPUTS, lambda: 1)
        with pytest.raises(OSError, match="No space left"):
            cache.folder("scores", INPUTS, whole)
    assert entries(cache) == set()
    assert cache.json("scores", INPUTS, lambda: 2) == 2


KILLED = """
import os, signal, sys
from pathlib import Path
from pruning.cache import Cache

def build(folder):
    (folder / "weights").write_text("half of ")
    os.kill(os.getpid(), signal.SIGKILL)

Cache(Path(sys.argv[1])).folder("scores", {"model": "x"}, build)
"""


def test_what_a_killed_process_left_is_not_believed_and_removed(cache: Cache) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(cache.root)], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert len(entries(cache)) == 1
    (cache.root / "scores" / ".other.x1").mkdir()
    built = cache.folder("scores", INPUTS, whole)
    assert (built / "weights").read_text() == "all of it"
    assert entries(cache) == {built.name, ".other.x1"}
