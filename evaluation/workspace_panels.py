"""What the W&B pages of a study show: its figures, and the panels that show them under titles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from evaluation.publish import tracking_of
from evaluation.report import per_task_table
from evaluation.result import RunResult
from evaluation.tracking import RUN_ID

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#999999")
"""Okabe and Ito's colours, which colour-blind readers can tell apart."""

RATIO, QUALITY = "pruned/ratio_reached", "recovered/zeroshot/mean"
INSTABILITY = "stability/instability_mean/tok_acc"
FINAL = "generalization/final/tok_acc"


@dataclass(frozen=True)
class Study:
    """What the pages of a study show."""

    name: str
    project: str
    entity: str
    tasks: list[str]
    """`<task>/<metric>`, LLM-Pruner's seven first."""

    texts: list[str]
    """`<corpus>@<window>`."""

    decode_speeds: list[str]
    """`decode_tok_s@<batch size>`."""

    colours: dict[str, str]
    """Id of a W&B run -> the colour of its estimator."""


def describe_study(runs: Sequence[tuple[Path, RunResult]], project: str | None, entity: str | None) -> Study:
    """Return what is known of a study by its finished runs."""
    newest = runs[-1][1]
    tracking = tracking_of(newest, project, entity)
    rows = [row for _, run in runs for row in per_task_table(run.metrics)[1]]
    estimators = sorted({run.choices["importance"] for _, run in runs})
    colours = dict(zip(estimators, cycle(PALETTE), strict=False))
    return Study(
        name=newest.study,
        project=tracking.project,
        entity=tracking.entity or "",
        tasks=list(dict.fromkeys(f"{task}/{metric}" for _, task, metric, _, stderr, _ in rows if stderr is not None)),
        texts=sorted({name.split("/ppl/")[1] for _, run in runs for name in run.metrics if "/ppl/" in name}),
        decode_speeds=sorted(name[10:] for name in newest.metrics if name.startswith("recovered/decode_tok_s@")),
        colours={
            (folder / RUN_ID).read_text(encoding="utf-8").strip(): colours[run.choices["importance"]]
            for folder, run in runs
            if (folder / RUN_ID).exists()
        },
    )


@dataclass(frozen=True)
class Section:
    """Panels under a title."""

    title: str
    explanation: str
    panels: list[Any]


def sections(study: Study) -> list[Section]:
    """Return what both pages show; a section without panels is left out."""
    found = [
        Section(
            "Ratio and quality",
            "Every run by the ratio it reached, coloured by estimator.",
            [
                _scatter("zero-shot mean", RATIO, QUALITY),
                _scatter("mean where dense beats chance", RATIO, "recovered/zeroshot/mean_above_chance"),
                *(_scatter(f"perplexity, {text}", RATIO, f"recovered/ppl/{text}", log_y=True) for text in study.texts),
            ],
        ),
        Section(
            "Stability and generalization",
            "How far a model drops at the cut, against how well it does in the end (Bartoldson et al., NeurIPS 2020). "
            "A line through fewer than eight runs says little.",
            [
                _scatter("final token accuracy", INSTABILITY, FINAL, regression=True),
                _scatter("gain over the control, loss", INSTABILITY, "generalization/gain/loss", regression=True),
                _scatter("generalization gap, loss", INSTABILITY, "generalization/gap/loss", regression=True),
            ],
        ),
        Section("Tasks", "Means over the runs of each estimator, with standard deviations.", _task_bars(study)),
        Section("All at once", "One line a run: drag along an axis to choose runs.", [_parallel_coordinates()]),
        Section("Events", "Before each cut, directly after it, and after the recovery that follows.", _curves()),
        Section(
            "Cost",
            "What the recovered model costs, against how good it is.",
            [
                _scatter("zero-shot mean by parameters", "recovered/params", QUALITY),
                *(
                    _scatter(
                        f"zero-shot mean by decoding speed, batch of {name.split('@')[1]}", f"recovered/{name}", QUALITY
                    )
                    for name in study.decode_speeds
                ),
            ],
        ),
    ]
    return [section for section in found if section.panels]


def _task_bars(study: Study) -> list[Any]:
    from wandb_workspaces.reports.v2 import BarPlot, Config

    return [
        BarPlot(
            title=f"{task.replace('/', ' (')})",
            metrics=[f"{stage}/zeroshot/{task}" for stage in ("dense", "pruned", "recovered")],
            groupby=Config("choices.importance"),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
        )
        for task in study.tasks
    ]


def _curves() -> list[Any]:
    from wandb_workspaces.reports.v2 import LinePlot

    measures = {"tok_acc": "token accuracy", "loss": "loss, nats per token", "zeroshot": "zero-shot mean"}
    saw_teeth = [
        LinePlot(title=what, x="event/index", y=[f"event/{measure}/{when}" for when in ("pre", "post", "rec")])
        for measure, what in measures.items()
    ]
    return [*saw_teeth, LinePlot(title="recovery, loss", x="recovery/step", y=["recovery/loss"])]


def _scatter(title: str, x: str, y: str, **options: Any) -> Any:
    from wandb_workspaces.reports.v2 import ScatterPlot, SummaryMetric

    legend = "${run:displayName}"
    return ScatterPlot(title=title, x=SummaryMetric(x), y=SummaryMetric(y), legend_template=legend, **options)


def _parallel_coordinates() -> Any:
    from wandb_workspaces.reports.v2 import (
        Config,
        ParallelCoordinatesPlot,
        ParallelCoordinatesPlotColumn,
        SummaryMetric,
    )

    axes: dict[str, Config | SummaryMetric] = {
        "estimator": Config("choices.importance"),
        "schedule": Config("choices.schedule"),
        "recovery": Config("choices.recovery"),
        "seed": Config("seed"),
        "ratio reached": SummaryMetric(RATIO),
        "instability": SummaryMetric(INSTABILITY),
        "gain, loss": SummaryMetric("generalization/gain/loss"),
        "zero-shot mean": SummaryMetric(QUALITY),
    }
    columns = [ParallelCoordinatesPlotColumn(metric, display_name=name) for name, metric in axes.items()]
    return ParallelCoordinatesPlot(title="ratio, estimator, schedule, stability, quality", columns=columns)
