from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from conf.help import description, help_text
from tests.conf.test_hints import ROOT, run

OPTIONS = sorted((ROOT / "conf").glob("**/*.yaml"))


def test_every_group_and_option_has_a_line_that_says_what_it_is() -> None:
    lines = help_text().splitlines()
    for path in OPTIONS:
        group = str(path.parent.relative_to(ROOT / "conf"))
        if group == ".":
            continue
        start = lines.index(group)
        block = lines[start : lines.index("", start)]
        (line,) = (line for line in block if line.lstrip("* ").split(" ")[0] == path.stem)
        first = description(path).split()[0]
        assert line.lstrip("* ").split()[1] == first
    assert all(len(line) <= 100 for line in lines)


def test_options_that_are_taken_by_default_are_marked() -> None:
    marked = {line.split()[1] for line in help_text().splitlines() if line.startswith("  * ")}
    assert {"smollm2_135m", "taylor", "block_wise", "one_shot", "quick"} <= marked
    assert not marked & {"tiny_llama", "l2", "quickstart"}


def test_keys_outside_the_groups_are_listed_with_their_comments() -> None:
    lines = [line.split(None, 1) for line in help_text().splitlines()]
    assert ["seed=0", "order of text, adapters' initial values, random scores"] in lines
    assert ["runs_dir=runs"] in lines
    assert "plan=false" in [line[0] for line in lines if line]


def test_help_is_quick_and_loads_nothing_heavy(tmp_path: Path) -> None:
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    found = run("--help", cwd=tmp_path, python=("-X", "importtime"))
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - used < 3  # seconds of processor time
    assert found.returncode == 0
    assert found.stdout == help_text() + "\n"
    loaded = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
    assert "conf.schema" in loaded
    assert not loaded & {"torch", "transformers", "wandb", "lm_eval", "datasets", "peft", "plotly", "scipy"}
    assert list(tmp_path.iterdir()) == []


def test_tab_completion_can_be_installed_in_bash(tmp_path: Path) -> None:
    script = run("-sc", "install=bash", cwd=tmp_path).stdout
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "COMP_LINE" in script


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("importance=", {"importance=taylor", "importance=l2", "importance=wanda"}),
        ("schedule=c", {"schedule=cubic"}),
        ("pruning.ra", {"pruning.ratio=", "pruning.ratio_of="}),
        ("hydra/sweeper=f", {"hydra/sweeper=fail_fast"}),
    ],
)
def test_tab_completes_groups_options_and_keys(line: str, offered: set[str], tmp_path: Path) -> None:
    typed = f"python run.py {line}"
    asked = {"COMP_LINE": typed, "COMP_POINT": str(len(typed))}
    found = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "-sc", "query=bash"],
        env=asked | {"PATH": "/usr/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert offered <= set(found.stdout.split())
    assert list(tmp_path.iterdir()) == []
