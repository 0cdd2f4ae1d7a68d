"""A made-up study like the paper's main experiment: directions x numbers of events x seeds at one final ratio."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path

from evaluation.analysis.observations import Study
from evaluation.dashboard.runs import RunRecord
from evaluation.result import RunResult
from tests.evaluation.studies import make_result, make_unfinished, write_status

DIRECTIONS = {"smallest": 0.5, "random": 1.0, "largest": 1.6}
"""Direction -> how much harm its cuts do."""

RATIO, STEPS = 0.2, 40
DENSE = 0.28
"""Token accuracy of the dense model."""


def make_tradeoff(
    folder: Path, rates: tuple[int, ...] = (1, 2, 4), seeds: int = 3, benefit: float = 0.05
) -> list[RunResult]:
    """Write the finished runs; final accuracy rises by `benefit` per unit of mean instability, beside noise."""
    results = [tradeoff_run(folder.name, *one, benefit) for one in product(DIRECTIONS, rates, range(seeds))]
    for result in results:
        result.write(folder / result.name / "result.json")
        write_status(folder / result.name, "done")
    return results


def tradeoff_run(study: str, direction: str, events: int, seed: int, benefit: float) -> RunResult:
    """Return one run."""
    noise = random.Random(f"{direction} {events} {seed}")
    made = make_result(study, RATIO, "l2", seed, schedule="linear")
    rows, level = [], DENSE
    for index, (before, after) in enumerate(pairwise(RATIO * k / events for k in range(events + 1))):
        drop = level * (after - before) * DIRECTIONS[direction] * noise.uniform(0.8, 1.2) * 2
        rec = level - drop * noise.uniform(0.2, 0.4)
        rows.append(event(index, after, level, level - drop, rec))
        level = rec
    instability = sum(row["event/instability/tok_acc"] for row in rows) / events
    final = 0.2 + benefit * instability + noise.gauss(0, 0.002)
    metrics = {
        "stability/instability_mean/tok_acc": instability,
        "stability/recovered_frac/tok_acc": rows[-1]["event/recovered_frac/tok_acc"],
        "generalization/final/tok_acc": final,
        "generalization/gain/tok_acc": final - 0.24,
        "generalization/gap/loss": 0.1 - 0.2 * instability + noise.gauss(0, 0.01),
        "generalization/gap/loss_stderr": 0.02,
        "flatness/recovered/trC_relative": 40 * (1 - instability) + noise.gauss(0, 2),
        "flatness/recovered/trC_stderr": 1.0,
        "recovery/steps": float(STEPS),
        "dense/probe/tok_acc": DENSE,
        "recovered/probe/tok_acc": final,
    }
    config = made.config | {
        "pruning": {"ratio": RATIO, "direction": direction},
        "schedule": {"events": events},
        "recovery": {"steps": STEPS, "when": "each", "tail": 0.25},
    }
    name = f"tiny-l2-{direction}-{events}-s{seed}"
    kept = {key: value for key, value in made.metrics.items() if not key.startswith(("stability/", "generalization/"))}
    return dataclasses.replace(made, name=name, config=config, events=rows, metrics=kept | metrics)


def event(index: int, ratio: float, pre: float, post: float, rec: float) -> dict[str, float]:
    """Return the row of one event."""
    return {
        "event/index": index,
        "event/ratio_asked": ratio,
        "event/ratio_reached": ratio,
        "event/tok_acc/pre": pre,
        "event/tok_acc/post": post,
        "event/tok_acc/rec": rec,
        "event/instability/tok_acc": (pre - post) / pre,
        "event/recovered_frac/tok_acc": (rec - post) / (pre - post),
    }


def changed(study: Study, change: Callable[[int, RunRecord], dict[str, float | None]]) -> Study:
    """The study with other metrics in its runs."""
    runs = [dataclasses.replace(run, metrics=run.metrics | change(index, run)) for index, run in enumerate(study.runs)]
    return dataclasses.replace(study, runs=tuple(runs))


def part(study: Study, kept: Callable[[str, RunRecord], bool]) -> Study:
    """The study with only the runs that `kept` takes, by arm and record."""
    chosen = [row for row in zip(study.runs, study.curves, study.arms, strict=True) if kept(row[2], row[0])]
    return Study(study.title, *map(tuple, zip(*chosen, strict=True)), {})


def make_unfinished_tradeoff(study: Path) -> Path:
    """Write 27 runs of 9 arms, a failed and a pending one into a folder, and return it."""
    first, *_ = make_tradeoff(study)
    for state, seed in (("failed", 8), (None, 9)):
        make_unfinished(study, dataclasses.replace(first, name=f"run-{seed}"), state)
    return study
