"""Sends finished runs to W&B: at their end, and again from their folders.

    WANDB_MODE=online python -m evaluation.publish runs/<study> ...

A run is sent from its `result.json`: summary, events, trajectory, tables, files. What W&B has of it is replaced. The curve of
the training loss is only sent while a run is being made.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.generations import generations_table
from evaluation.report import per_task_table
from evaluation.result import RunResult, finished_runs
from evaluation.tracking import RUN_ID, RunIdentity, Tracker, TrackingConfig, WandbTracking, single_run

log = logging.getLogger(__name__)


def publish(result: RunResult, folder: Path, tracker: Tracker) -> None:
    """Send what a finished run's folder has: summary, tables, the result file, and the model if asked for."""
    tracker.summary(result.metrics)
    for name, (columns, rows) in {
        "zeroshot_per_task": per_task_table(result.metrics),
        "events": events_table(result.events),
        "generations": generations_table(folder),
    }.items():
        if rows:
            tracker.table(name, columns, rows)
    tracker.artifact(f"result-{result.key}", "result", folder / "result.json")
    if (folder / "model").exists():
        tracker.artifact(f"model-{result.key}", "model", folder / "model")


def events_table(events: Sequence[dict[str, float]]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows with one line for every event."""
    names = list(dict.fromkeys(name for event in events for name in event))
    return [name.removeprefix("event/") for name in names], [[event.get(name) for name in names] for event in events]


def republish(result: RunResult, folder: Path, tracking: TrackingConfig) -> None:
    """Open the W&B run of a finished run, or begin one, and send everything that the folder has."""
    known = (folder / RUN_ID).exists()  # then W&B has the curves
    with tracking.start(identity_of(result, folder)) as tracker:
        for event in [] if known else result.events:
            tracker.log(event)
        for point in [] if known else result.trajectory:
            tracker.log({f"recovery/{name}": value for name, value in point.items()})
        publish(result, folder, tracker)


def identity_of(result: RunResult, folder: Path) -> RunIdentity:
    """Return how a finished run was named and filed."""
    import yaml

    launched = yaml.safe_load((folder / ".hydra" / "hydra.yaml").read_text(encoding="utf-8"))["hydra"]
    return RunIdentity(
        key=result.key,
        name=result.name,
        study=result.study,
        choices=result.choices,
        config=result.config,
        folder=folder.absolute(),
        overrides=single_run(launched["overrides"]["task"], launched["mode"]),
    )


def tracking_of(result: RunResult, project: str | None, entity: str | None) -> WandbTracking:
    """Return the W&B options of a finished run, and the defaults for one that was not tracked."""
    options = result.config["tracking"] if result.choices["tracking"] == "wandb" else {}
    given = {"project": project, "entity": entity, "mode": os.environ.get("WANDB_MODE", "auto")}
    return WandbTracking(**options | {name: value for name, value in given.items() if value is not None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Send the finished runs that the command line names."""
    parser = argparse.ArgumentParser("python -m evaluation.publish", description="Send finished runs to W&B again.")
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders of a study")
    parser.add_argument("--project", help="W&B project; the run's own if it is left out")
    parser.add_argument("--entity", help="W&B user or team")
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for folder, result in finished_runs(asked.folders):
        log.info("%s", folder)
        republish(result, folder, tracking_of(result, asked.project, asked.entity))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
