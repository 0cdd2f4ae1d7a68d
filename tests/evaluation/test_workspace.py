from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.result import finished_runs
from evaluation.tracking import RUN_ID
from evaluation.workspace import SAVED, build_workspace, main
from evaluation.workspace_panels import PALETTE, describe_study, sections
from tests.evaluation.studies import small_study

pytest.importorskip("wandb_workspaces", reason="the extra `pages` is not installed")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Eleven finished runs of two estimators, each with a W&B run."""
    folder = tmp_path / "mystudy"
    for result in small_study(folder):
        place = folder / result.name / RUN_ID
        place.parent.mkdir()
        place.write_text(f"{result.key}-id\n", encoding="utf-8")
    return folder


@pytest.fixture
def pages(study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The printed specification; a server cannot be reached."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    main([str(study), "--entity", "me"])
    return json.loads(capsys.readouterr().out)


def panels(pages: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    sections = pages["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def grids(pages: dict[str, Any]) -> list[dict[str, Any]]:
    return [block["metadata"] for block in pages["report"]["spec"]["blocks"] if block["type"] == "panel-grid"]


def test_the_workspace_is_that_of_the_study(pages: dict[str, Any]) -> None:
    workspace = pages["workspace"]
    assert (workspace["entity"], workspace["project"]) == ("me", "secateur")
    assert workspace["displayName"] == "Study mystudy"
    assert list(panels(pages)) == [
        "Ratio and quality",
        "Stability and generalization",
        "Tasks",
        "All at once",
        "Events",
        "Cost",
    ]


def test_ratio_stands_against_quality_and_stability_against_generalization(pages: dict[str, Any]) -> None:
    axes = {
        (panel["config"]["xAxis"], panel["config"]["yAxis"])
        for part in panels(pages).values()
        for panel in part
        if panel["viewType"] == "Scatter Plot"
    }
    assert ("summary:pruned/ratio_reached", "summary:recovered/zeroshot/mean") in axes
    assert ("summary:pruned/ratio_reached", "summary:recovered/ppl/passages@128") in axes
    assert ("summary:stability/instability_mean/tok_acc", "summary:generalization/final/tok_acc") in axes
    assert ("summary:stability/instability_mean/tok_acc", "summary:generalization/gain/loss") in axes


def test_every_task_has_bars_by_estimator_of_its_main_metric(pages: dict[str, Any]) -> None:
    bars = panels(pages)["Tasks"]
    assert {panel["config"]["groupBy"] for panel in bars} == {"choices.value.importance"}
    names = ["boolq (acc)", "piqa (acc)", "hellaswag (acc_norm)", "arc_easy (acc)", "lambada_openai (acc)"]
    assert [panel["config"]["chartTitle"] for panel in bars] == names
    stages = [f"{stage}/zeroshot/hellaswag/acc_norm" for stage in ("dense", "pruned", "recovered")]
    assert bars[2]["config"]["metrics"] == stages


def test_events_are_saw_teeth_over_their_index(pages: dict[str, Any]) -> None:
    lines = {panel["config"]["chartTitle"]: panel["config"] for panel in panels(pages)["Events"]}
    assert lines["token accuracy"]["xAxis"] == "event/index"
    assert lines["token accuracy"]["metrics"] == [f"event/tok_acc/{when}" for when in ("pre", "post", "rec")]
    assert lines["recovery, loss"]["xAxis"] == "recovery/step"


def test_parallel_coordinates_go_from_options_to_quality(pages: dict[str, Any]) -> None:
    (panel,) = panels(pages)["All at once"]
    accessors = [column["accessor"] for column in panel["config"]["columns"]]
    assert accessors[0] == "config:choices.value.importance"
    assert accessors[-1] == "summary:recovered/zeroshot/mean"
    assert "config:seed.value" in accessors


def test_only_runs_of_the_study_are_shown_coloured_by_estimator(study: Path, pages: dict[str, Any]) -> None:
    section = pages["workspace"]["spec"]["section"]
    assert "mystudy" in json.dumps(section["runSets"][0]["filters"])
    by_estimator: dict[str, set[str]] = {}
    for _, run in finished_runs([study]):
        by_estimator.setdefault(run.choices["importance"], set()).add(section["customRunColors"][f"{run.key}-id"])
    assert by_estimator == {"l2": {PALETTE[0]}, "taylor": {PALETTE[1]}}


def test_the_report_has_the_same_panels_with_a_heading_each(pages: dict[str, Any]) -> None:
    text = json.dumps(pages["report"]["spec"]["blocks"])
    assert all(name in text for name in panels(pages))
    found = [grid["panelBankSectionConfig"]["panels"] for grid in grids(pages)]
    titles = [[panel["config"]["chartTitle"] for panel in part] for part in found]
    assert titles == [[panel["config"]["chartTitle"] for panel in part] for part in panels(pages).values()]
    assert all("mystudy" in json.dumps(grid["runSets"]) for grid in grids(pages))


def test_the_same_study_is_printed_the_same(
    study: Path, pages: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(study), "--entity", "me"])
    assert json.loads(capsys.readouterr().out) == pages


def test_the_library_reads_its_workspace_back(study: Path) -> None:
    from wandb_workspaces.workspaces import Workspace

    made = build_workspace(describe_study(finished_runs([study]), "mine", "me"))
    read = Workspace._from_model(made._to_model())
    assert [section.name for section in read.sections] == [section.name for section in made.sections]
    assert [len(section.panels) for section in read.sections] == [len(section.panels) for section in made.sections]
    assert read.project == "mine"


def test_a_study_without_tasks_has_no_empty_section(study: Path) -> None:
    runs = [(folder, replace(run, metrics={}, events=[])) for folder, run in finished_runs([study])]
    found = sections(describe_study(runs, None, None))
    assert "Tasks" not in [section.title for section in found]
    assert all(section.panels for section in found)


def test_saving_twice_saves_over_what_was_saved(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

    saved: list[tuple[str, str]] = []

    def save_workspace(self: Any) -> None:
        saved.append(("workspace", self._internal_id))
        self._internal_name, self._internal_id = "nw-name-v", "view-id"

    def save_report(self: Any) -> None:
        saved.append(("report", self.id))
        self.id = "report-id"

    monkeypatch.setattr(Workspace, "save", save_workspace)
    monkeypatch.setattr(Report, "save", save_report)
    for page in (Workspace, Report):
        monkeypatch.setattr(page, "url", f"https://wandb.example/{page.__name__}")
    for _ in range(2):
        main([str(study), "--entity", "me", "--save"])
    assert saved == [("workspace", ""), ("report", ""), ("workspace", "view-id"), ("report", "report-id")]
    assert (study / SAVED).exists()
    assert "https://wandb.example/Workspace\nhttps://wandb.example/Report" in capsys.readouterr().out


def test_saving_without_a_server_says_what_to_do(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb_workspaces.workspaces import Workspace

    def refuse(self: Any) -> None:
        raise ConnectionError("no way there")

    monkeypatch.setattr(Workspace, "save", refuse)
    with pytest.raises(ValueError, match="W&B did not save the pages .no way there.*wandb login"):
        main([str(study), "--entity", "me", "--save"])
    assert not (study / SAVED).exists()


def test_without_the_extra_it_is_named(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.workspace.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[pages\]'"):
        main([str(study)])
