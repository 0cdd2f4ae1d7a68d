"""The W&B workspace and report of a study, built by code: `python -m evaluation.workspace runs/<study>`.

Prints both as JSON, for which no server is needed; `--save` saves them, over what an earlier call saved. Needs the extra
`pages`: `pip install -e '.[pages]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evaluation.result import finished_runs
from evaluation.workspace_panels import INSTABILITY, QUALITY, RATIO, Study, describe_study, sections
from pruning.files import write_json

SAVED = "wandb-pages.json"
"""Where a study's folder keeps how W&B names its saved workspace and report."""


def build_workspace(study: Study) -> Any:
    """Return the workspace of a study: its runs, coloured by estimator, and all sections."""
    from wandb_workspaces import expr
    from wandb_workspaces.workspaces import RunsetSettings, RunSettings, Section, Workspace

    return Workspace(
        entity=study.entity,
        project=study.project,
        name=f"Study {study.name}",
        sections=[Section(name=one.title, panels=one.panels, is_open=True) for one in sections(study)],
        runset_settings=RunsetSettings(
            filters=[expr.Metric("Group") == study.name],
            pinned_columns=[f"summary:{metric}" for metric in (RATIO, QUALITY, INSTABILITY)],
            run_settings={run: RunSettings(color=colour) for run, colour in study.colours.items()},
        ),
    )


def build_report(study: Study) -> Any:
    """Return the report of a study: a heading, an explanation and a grid of panels for every section."""
    from wandb_workspaces import expr
    from wandb_workspaces.reports.v2 import H2, P, PanelGrid, Report, Runset, RunSettings

    blocks: list[Any] = []
    for one in sections(study):
        colours = {run: RunSettings(color=colour) for run, colour in study.colours.items()}
        runs = Runset(name=study.name, filters=[expr.Metric("Group") == study.name], run_settings=colours)
        blocks += [H2(one.title), P(one.explanation), PanelGrid(runsets=[runs], panels=one.panels)]
    return Report(entity=study.entity, project=study.project, title=f"Study {study.name}", blocks=blocks)


def specification(page: Any) -> Any:
    """Return a page as W&B stores it, with the random names of panels and run sets numbered through."""
    names: dict[str, str] = {}

    def numbered(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: numbered(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [numbered(item) for item in value]
        return names.setdefault(value, str(len(names) + 1)) if key in ("__id__", "id") and value else value

    return numbered(json.loads(page._to_model().model_dump_json(by_alias=True, exclude_none=True)))


def save(study: Study, place: Path) -> list[str]:
    """Save both pages to W&B and return their addresses; `place` keeps how W&B names them, for the next time.

    Raises:
        ValueError: W&B does not take them.
    """
    import wandb

    try:
        study = study if study.entity else replace(study, entity=wandb.Api().default_entity or "")
        workspace, report = build_workspace(study), build_report(study)
        if place.exists():
            known = json.loads(place.read_text(encoding="utf-8"))
            workspace._internal_name, workspace._internal_id = known["workspace"]
            report.id = known["report"]
        workspace.save()
        report.save()
    except Exception as error:  # of wandb, its service, or the network
        raise ValueError(f"W&B did not save the pages ({error}); `wandb login` stores a key") from error
    write_json(place, {"workspace": [workspace._internal_name, workspace._internal_id], "report": report.id})
    return [workspace.url, report.url]


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the pages of the study that the command line names.

    Raises:
        ValueError: the study has no finished run, or wandb-workspaces is not installed.
    """
    parser = argparse.ArgumentParser("python -m evaluation.workspace", description="W&B pages of a study.")
    parser.add_argument("study", type=Path, help="folder of the study, runs/<study>")
    parser.add_argument("--save", action="store_true", help="save the pages to W&B instead of printing them")
    parser.add_argument("--project", help="W&B project; the runs' own if it is left out")
    parser.add_argument("--entity", help="W&B user or team")
    asked = parser.parse_args(arguments)
    os.environ.setdefault("WANDB_SILENT", "true")
    if not find_spec("wandb_workspaces"):
        raise ValueError("wandb-workspaces is not installed: pip install -e '.[pages]'")
    study = describe_study(finished_runs([asked.study]), asked.project, asked.entity)
    if asked.save:
        print(*save(study, asked.study / SAVED), sep="\n")
    else:
        pages = {"workspace": build_workspace(study), "report": build_report(study)}
        print(json.dumps({name: specification(page) for name, page in pages.items()}, indent=2))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
