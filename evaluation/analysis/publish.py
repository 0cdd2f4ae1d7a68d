"""Sends an analysis to W&B, as a run of its own of type `analysis` in the group of its study."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evaluation.analysis.association import Association
from evaluation.analysis.resampling import NO_INTERVAL
from evaluation.analysis.study_analysis import StudyAnalysis
from evaluation.publish import tracking_of
from evaluation.result import RunResult
from evaluation.tracking import RunIdentity, Tracker

INTERVALS = ("normal", "bca", "arms")


@dataclass(frozen=True)
class AnalysisIdentity(RunIdentity):
    """How an analysis is named and filed. `overrides` are the arguments of its command."""

    @property
    def job_type(self) -> str:
        """Return analysis."""
        return "analysis"

    @property
    def labels(self) -> list[str]:
        """Return nothing: an analysis is over many choices."""
        return []

    @property
    def command(self) -> str:
        """The command that makes this analysis."""
        return shlex.join(["python", "-m", "evaluation.analyse", *self.overrides])


def send_analysis(analysis: StudyAnalysis, folder: Path, arguments: Sequence[str]) -> None:
    """Open the W&B run of the analysis in `folder`, or begin one, and send estimates, tables, figures and analysis.json.

    Project, entity and mode are those of the study's last run.

    Raises:
        ValueError: W&B cannot begin a run, or the result of the study's last run has gone.
    """
    last = Path(analysis.study.runs[-1].folder) / "result.json"
    result = RunResult.read(last)
    if result is None:
        raise ValueError(f"{last}: is not there any more; W&B's project and group are read from it")
    identity = AnalysisIdentity(
        key="analysis",
        name=f"{result.study}-analysis",
        study=result.study,
        choices={},
        config={"settings": asdict(analysis.settings), "runs": len(analysis.study.runs)},
        folder=folder.absolute(),
        overrides=list(arguments),
    )
    with tracking_of(result, None, None).start(identity) as tracker:
        _send(analysis, folder, tracker)


def _send(analysis: StudyAnalysis, folder: Path, tracker: Tracker) -> None:
    tested = [one for one in analysis.tested() if not one.trouble]
    tracker.summary({name: value for one in tested for name, value in summary(one).items()})
    columns = ["x", "y", "runs", "arms", "statistic", "value", "stderr", "p", "p_holm"]
    columns += [f"{kind}_{end}" for kind in INTERVALS for end in ("low", "high")]
    tracker.table("correlations", columns, [row for one in tested for row in rows(one)])
    for figure in sorted((folder / "figures").glob("*.png")):
        tracker.image(f"figures/{figure.stem}", figure)
    tracker.artifact(f"analysis-{analysis.study.runs[-1].study}", "analysis", folder / "analysis.json")


def summary(one: Association) -> dict[str, float]:
    """Return the finite estimates of a pair under `analysis/<y> on <x>/<statistic>`, and n."""
    pair = f"analysis/{one.y} on {one.x}"
    found = {f"{pair}/{kind}": estimate.value for kind, estimate in one.estimates.items()}
    return {name: value for name, value in found.items() if math.isfinite(value)} | {f"{pair}/n": one.runs}


def rows(one: Association) -> list[list[Any]]:
    """Return a row of the W&B table for every estimate of a pair; what does not exist is None."""
    found = []
    for kind, estimate in one.estimates.items():
        ends = [end for name in INTERVALS for end in estimate.intervals.get(name, NO_INTERVAL)]
        figures = [estimate.value, estimate.stderr, estimate.p, estimate.p_holm, *ends]
        known = [value if math.isfinite(value) else None for value in figures]
        found.append([one.x, one.y, one.runs, one.arms, kind, *known])
    return found
