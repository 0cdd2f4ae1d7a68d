from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conf.hints import check_overrides

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("override", "wrong", "near"),
    [
        ("importance=tailor", "tailor", "taylor"),
        ("model=smolm2_135m", "smolm2_135m", "smollm2_135m"),
        ("experiment=quick_start", "quick_start", "quickstart"),
        ("importance=taylor,l3", "l3", "l2"),
        ("importnce=l2", "importnce", "importance"),
        ("sed=1", "sed", "seed"),
        ("pruning.rato=0.1", "rato", "ratio"),
        ("recovery.learnig_rate=0.1", "learnig_rate", "learning_rate"),
        ("evaluation.task=[piqa]", "task", "tasks"),
        ("prunig.ratio=0.1", "prunig", "pruning"),
        ("experimnt=quickstart", "experimnt", "experiment"),
    ],
)
def test_a_mistyped_override_is_told_the_nearest_name(override: str, wrong: str, near: str) -> None:
    with pytest.raises(ValueError, match="there is no") as caught:
        check_overrides(["seed=1", override])
    message = str(caught.value)
    assert repr(wrong) in message
    assert f"Did you mean {near!r}?" in message
    assert near in message.partition("Allowed: ")[2]


def test_a_name_like_no_other_is_told_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="Allowed: flap, l1, l2, llm_pruner, random, reconstruction, taylor") as caught:
        check_overrides(["importance=xyzzy"])
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["importance=l2", "seed=3", "pruning.ratio=0.1"],
        ["-m", "importance=taylor,l2", "pruning.ratio=0.1,0.2"],
        ["-m", "importance=choice(taylor,l2)", "seed=range(0,5)"],
        ["-m", "importance=glob(*)"],
        ["-m", "importance=glob([l*,t*],exclude=l1)"],
        ["-m", "seed=interval(0,1)"],
        ["experiment=null"],
        ["experiment=quickstart", "evaluation.cost.enabled=false"],
        ["+seeed=1"],
        ["+importance=mine"],
        ["++seed=1"],
        ["~tracking"],
        ["~recovery.steps"],
        ["~recovery.steps=200"],
        ["hydra.mode=MULTIRUN", "hydra/launcher=joblib", "hydra.sweeper.params.x=1"],
        ["--config-dir=elsewhere", "importance=mine"],
        ["--config-dir", "elsewhere", "importance=mine"],
        ["--cfg", "job", "recovery=none"],
        ["evaluation.texts={mine: a=b.txt}"],
        ["data.template='{a}={b}'", "data=local"],
        ["importance=l2,"],
        ["this is ] no override ="],
    ],
)
def test_what_is_right_or_only_hydra_understands_passes_untouched(arguments: list[str]) -> None:
    before = list(arguments)
    check_overrides(arguments)
    assert arguments == before


def run(*arguments: str, cwd: Path, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *python, str(ROOT / "run.py"), *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_lists_every_group_soon_and_without_loading_torch(tmp_path: Path) -> None:
    start = time.perf_counter()
    found = run("--help", cwd=tmp_path, python=("-X", "importtime"))
    seconds = time.perf_counter() - start
    assert found.returncode == 0
    lines = found.stdout.splitlines()
    for group in (path for path in (ROOT / "conf").iterdir() if path.is_dir() and any(path.glob("*.yaml"))):
        assert f"{group.name}: {', '.join(sorted(path.stem for path in group.glob('*.yaml')))}" in lines
    loaded = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
    assert "conf.schema" in loaded
    assert not loaded & {"torch", "transformers", "wandb", "lm_eval", "datasets", "peft"}
    assert seconds < 10
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_option_ends_the_program_with_the_nearest_name_and_leaves_no_folder(tmp_path: Path) -> None:
    found = run("importance=tailor", cwd=tmp_path)
    assert found.returncode == 1
    assert "Did you mean 'taylor'?" in found.stderr
    assert "Traceback" not in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_mandatory_value_is_named_without_a_traceback(tmp_path: Path) -> None:
    found = run("model=pretrained", f"runs_dir={tmp_path / 'runs'}", cwd=tmp_path)
    assert found.returncode != 0
    assert "model.path" in found.stderr + found.stdout
    assert "Traceback" not in found.stderr
