"""Two finished runs on the same items: differences item by item, with intervals and tests.

Runs keep the outcome of every item (`zeroshot/<task>.json`) and the loss of every window (`texts/<name>.json`). What both
runs share is compared pairwise, which is far sharper than comparing two means; what only one of them has is counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.statistics import percentile_interval, resampled_means, sign_test
from evaluation.zeroshot import SEVEN, main_metric

CONFIDENCE = 0.95
RESAMPLES = 2_000

Outcomes = Mapping[tuple[Any, ...], float]
"""Item -> its outcome: right (1) or wrong (0) for a task; nats per token, or the fraction of right tokens, for a window."""


@dataclass(frozen=True)
class Difference:
    """The second run minus the first, over the items that both have."""

    first: float
    second: float
    """Means over the shared items; NaN where there are none."""

    difference: float
    low: float
    high: float
    """Paired bootstrap interval of the difference."""

    p_value: float | None
    """Of the sign test (McNemar's exact test for right and wrong); None for a mean over tasks."""

    shared: int
    only_first: int
    only_second: int


def read_outcomes(run: Path) -> dict[str, dict[str, Outcomes]]:
    """Return stage -> `<task> (<metric>)`, `loss, <text>` or `token accuracy, probe` -> what the run folder keeps of it."""
    found: dict[str, dict[str, Outcomes]] = {}
    files = sorted(run.glob("zeroshot/*.json"), key=_in_order) + sorted(run.glob("texts/*.json"))
    for file in files:
        for stage, kept in json.loads(file.read_text(encoding="utf-8")).items():
            if file.parent.name == "texts":
                found.setdefault(stage, {})[f"loss, {file.stem}"] = _windows(kept, "loss_sums")
                if file.stem == "probe":
                    found[stage]["token accuracy, probe"] = _windows(kept, "correct")
            else:
                metric = main_metric(file.stem, kept["metrics"])
                found.setdefault(stage, {})[f"{file.stem} ({metric})"] = _items(kept["outcomes"], metric)
    return found


def compare_stage(first: Mapping[str, Outcomes], second: Mapping[str, Outcomes]) -> dict[str, Difference]:
    """Return the difference of everything that both runs measured at a stage, and of the mean of LLM-Pruner's seven tasks."""
    found = {name: paired_difference(first[name], second[name]) for name in first if name in second}
    tasks = {name: one for name, one in found.items() if name.endswith(")")}
    seven = [name for name, one in tasks.items() if name.split(" ")[0] in SEVEN and one.shared]
    if len(seven) > 1:
        tasks["mean of seven"] = mean_difference([(first[name], second[name]) for name in seven])
    return tasks | found


def paired_difference(first: Outcomes, second: Outcomes) -> Difference:
    """Compare two runs on the items of one task, or the windows of one text."""
    items = [item for item in first if item in second]
    differences = [second[item] - first[item] for item in items]
    return _difference([(first, second)], sign_test(differences) if items else None)


def mean_difference(tasks: Sequence[tuple[Outcomes, Outcomes]]) -> Difference:
    """Compare two runs on the unweighted mean over tasks; the items of every task are resampled on their own."""
    return _difference(tasks, None)


def _difference(tasks: Sequence[tuple[Outcomes, Outcomes]], p_value: float | None) -> Difference:
    shared = [[item for item in first if item in second] for first, second in tasks]
    differences = [
        [second[item] - first[item] for item in items] for items, (first, second) in zip(shared, tasks, strict=True)
    ]
    low, high = math.nan, math.nan
    if all(differences):
        low, high = percentile_interval(resampled_means([differences], RESAMPLES)[0], CONFIDENCE)
    means = [
        _mean([_mean([task[run][item] for item in items]) for items, task in zip(shared, tasks, strict=True)])
        for run in (0, 1)
    ]
    return Difference(
        first=means[0],
        second=means[1],
        difference=_mean([_mean(task) for task in differences]),
        low=low,
        high=high,
        p_value=p_value,
        shared=sum(map(len, shared)),
        only_first=sum(len(first) for first, _ in tasks) - sum(map(len, shared)),
        only_second=sum(len(second) for _, second in tasks) - sum(map(len, shared)),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _items(outcomes: Sequence[Mapping[str, Any]], metric: str) -> Outcomes:
    return {(one["doc_id"], one["target"], *one["choices"]): one[metric] for one in outcomes}


def _windows(score: Mapping[str, Any], sums: str) -> Outcomes:
    """Return the mean over the tokens of every window; windows are the same where all tokens that were read are."""
    return {(score["blocks"], index): total / score["tokens_per_block"] for index, total in enumerate(score[sums])}


def _in_order(file: Path) -> tuple[int, str]:
    return (SEVEN.index(file.stem) if file.stem in SEVEN else len(SEVEN), file.stem)
