"""What the analysis of a study writes and prints: JSON, figures, tables, errors."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.analyse import analyse, main
from evaluation.analysis import figures
from evaluation.analysis.estimate import Settings
from evaluation.analysis.observations import Study, read_study
from evaluation.analysis.study_analysis import FINAL, Choice, analyse_study
from evaluation.result import RunResult
from tests.evaluation.studies import make_study
from tests.evaluation.tradeoff_study import make_unfinished_tradeoff, part

QUICK = Settings(resamples=300, given=("recovery/tail_steps",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_unfinished_tradeoff(tmp_path_factory.mktemp("runs") / "tradeoff")


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return read_study([folder])


def test_the_json_has_everything_and_nothing_that_is_not_json(folder: Path, tmp_path: Path) -> None:
    analysis, out = analyse([folder], Choice(settings=QUICK), tmp_path / "out")
    found = json.loads((out / "analysis.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert [one["y"] for one in found["pairs"]] == [one.y for one in analysis.pairs]
    pearson = found["pairs"][0]["estimates"]["pearson"]
    assert pearson["value"] == analysis.pairs[0].estimates["pearson"].value
    assert set(pearson["intervals"]) == {"normal", "bca", "arms"}
    assert found["left_out"] == {"failed": 1, "pending": 1}
    assert [row["percent_per_event"] for row in found["by_rate"][FINAL]] == [5, 10, 20]
    assert len(found["runs"]) == 27
    names = [
        "saw_tooth",
        "stability_generalization",
        "correlation_by_rate",
        "flatness_stability",
        "recovered_fraction",
        "correlations",
    ]
    assert found["figures"] == names
    for name in names:
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (out / "figures" / f"{name}.svg").read_text(encoding="utf-8")


def test_figures_are_the_same_files_again_and_old_ones_go(study: Study, tmp_path: Path) -> None:
    few = part(study, lambda arm, _: arm == study.arms[0])
    analysis = analyse_study(few, Choice(settings=QUICK))
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old.png").touch()
    names = figures.write_figures(analysis, tmp_path / "figures")
    assert names == ["saw_tooth", "stability_generalization", "flatness_stability", "recovered_fraction"]
    assert not (tmp_path / "figures" / "old.png").exists()
    before = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    figures.write_figures(analysis, tmp_path / "figures")
    assert {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()} == before


def test_runs_without_events_or_measures_make_an_empty_analysis(tmp_path: Path) -> None:
    make_study(tmp_path / "dense", [0.0], ["l2"], [0])
    file = next(tmp_path.rglob("result.json"))
    result = RunResult.read(file)
    assert result
    dataclasses.replace(result, metrics={"dense/params": 5.0}).write(file)
    analysis, out = analyse([tmp_path / "dense"], Choice(settings=Settings(resamples=100)))
    assert (analysis.pairs, analysis.curves, analysis.by_rate) == ([], {}, {})
    assert out == tmp_path / "dense" / "analysis"
    assert json.loads((out / "analysis.json").read_text())["figures"] == []


def test_the_command_prints_tables_that_fit(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "write_figures", lambda analysis, place: [])  # which take long, and are tested above
    assert main([str(folder), "--out", str(tmp_path), "--resamples", "200", "--y", FINAL, "generalization/gap/*"]) == 0
    printed = capsys.readouterr().out
    assert "27 finished runs in 9 arms; left out: 1 failed, 1 pending" in printed
    assert f"{FINAL} by rate" in printed
    assert max(map(len, printed.splitlines()[:-1])) <= 100


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--y", "accuracy"], "--y accuracy: no finished run has such a metric"),
        (["--given", "nothing"], "--given nothing"),
        (["--confidence", "1"], "--confidence 1.0: must be in (0, 1)"),
        (["--resamples", "3"], "--resamples 3: must be at least 100"),
        (["--points", "0"], "--points 0.0: must be above 0"),
        (["--quality", "recovered/probe/loss"], "must be an accuracy"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main([str(folder), "--out", str(tmp_path / "out"), *options]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_does_not_wait_for_the_libraries() -> None:
    slow = "{'numpy', 'scipy', 'torch', 'matplotlib', 'rich'}"
    check = f"import sys, evaluation.analyse as a; a.parse(['x']); print({slow} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
