"""An analysis in W&B's offline files, read back with the vendor's own reader."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from evaluation.analyse import main
from evaluation.analysis.estimate import Settings
from evaluation.analysis.observations import read_study
from evaluation.analysis.publish import send_analysis
from evaluation.analysis.study_analysis import GAP, INSTABILITY, Choice, analyse_study
from evaluation.result import RunResult
from tests.evaluation.tradeoff_study import make_tradeoff
from tests.evaluation.wandb_files import files, history, records, summary


def test_an_analysis_is_a_wandb_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    study = tmp_path / "tradeoff"
    results = make_tradeoff(study, rates=(1,))
    for result in results:
        tracked = {"config": result.config | {"tracking": {"project": "mine", "mode": "offline"}}}
        RunResult.write(
            dataclasses.replace(result, **tracked, choices=result.choices | {"tracking": "wandb"}),
            study / result.name / "result.json",
        )
    arguments = [str(study), "--resamples", "100", "--y", GAP, "--wandb"]
    assert main(arguments) == 0
    again = analyse_study(read_study([study]), Choice(y=[GAP], settings=Settings(resamples=100)))
    send_analysis(again, study / "analysis", arguments)  # the same W&B run, not another
    [file] = files(study / "analysis")
    header = next(record["run"] for record in records(file) if record["type"] == "run")
    assert header["job_type"] == "analysis"
    assert header["run_group"] == "tradeoff"
    assert header["project"] == "mine"
    assert "evaluation.analyse" in header["notes"]
    found = summary(file)["summary"]
    assert found[f"analysis/{GAP} on {INSTABILITY}/n"] == 9
    assert -1 <= found[f"analysis/{GAP} on {INSTABILITY}/pearson"] < 0
    logged = {name for row in history(file) for name in row}
    assert {"correlations._type", "figures/stability_generalization._type"} <= logged
