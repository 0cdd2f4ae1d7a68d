from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conf.hints import asks_for_plan, asks_for_sweep, check_overrides

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
        ("recovery/objective=distilation", "distilation", "distillation"),
        ("recovery.objective.temprature=2", "temprature", "temperature"),
        ("evaluation.task=[piqa]", "task", "tasks"),
        ("prunig.ratio=0.1", "prunig", "pruning"),
        ("experimnt=quickstart", "experimnt", "experiment"),
        ("evaluation.cost.enbled=false", "enbled", "enabled"),
        ("pruning.ratio_of=totl", "totl", "total"),
        ("recovery.when=last,eech", "eech", "each"),
        ("pruning.structures=[kv_grup,hidden]", "kv_grup", "kv_group"),
        ("importance.order=choice(frist,second)", "frist", "first"),
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
        ["evaluation.texts.mine=a.txt", "importance.order=first,second", "pruning.structures=[layer]"],
        ["-sc", "install=bash"],
        ["-m", "seed=range(0,5)", "plan=true"],
        ["data.template='{a}={b}'", "data=local"],
        ["importance=l2,"],
        ["this is ] no override ="],
    ],
)
def test_what_is_right_or_only_hydra_understands_passes_untouched(arguments: list[str]) -> None:
    before = list(arguments)
    check_overrides(arguments)
    assert arguments == before


def test_an_option_whose_plugin_is_not_installed_is_told_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conf.hints.find_spec", lambda name: None)
    for option, extra in (("hydra/launcher=slurm", "launchers"), ("hydra/sweeper=pareto", "search")):
        with pytest.raises(ValueError, match=f"needs the extra '{extra}'.*pip install") as caught:
            check_overrides(["-m", "seed=1,2", option])
        assert str(caught.value).startswith(option)
    check_overrides(["hydra/launcher=basic"])


def test_a_plan_is_asked_for_by_its_key_alone() -> None:
    assert asks_for_plan(["-m", "seed=1,2", "plan=true"])
    assert asks_for_plan(["plan=True"])
    assert not asks_for_plan(["plan=false", "study=plan"])
    assert not asks_for_plan(["--cfg", "job"])


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


def test_a_preset_that_sweeps_takes_other_lists_of_values() -> None:
    assert asks_for_sweep(["experiment=stability_controller", "schedule=linear,cubic"])
    assert not asks_for_sweep(["experiment=quickstart"])
    assert not asks_for_sweep(["experiment=stability_controller", "hydra.mode=RUN"])
    assert not asks_for_sweep(["experiment=no_such"])
    assert not asks_for_sweep(["schedule=linear,cubic"])
