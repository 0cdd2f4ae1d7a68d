"""The table of what recoveries win back: fractions against slow ones, dashes where there is nothing to win, and its order."""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks.recovery import LEAST_RISE, line_of, table_of, won_back
from evaluation.result import RunResult


def result(ratio: float, learning_rate: float, recovered: float, **metrics: float) -> RunResult:
    measured = {
        "dense/ppl/wiki@128": math.exp(3.0),
        "pruned/ppl/wiki@128": math.exp(3.8),
        "recovered/ppl/wiki@128": math.exp(recovered),
        "dense/zeroshot/mean": 0.5,
        "dense/zeroshot/mean_stderr": 0.02,
        "pruned/zeroshot/mean": 0.4,
        "recovered/zeroshot/mean": 0.425,
        "recovery/seconds": 120.0,
        "recovery/tokens": 1000.0,
        "recovery/steps": 5.0,
        "pruned/ratio_asked": ratio,
    }
    empty: dict[str, Any] = dict.fromkeys(("events", "widths", "environment", "timings"), {})
    config = {"recovery": {"learning_rate": learning_rate, "r": 8, "data": {}}}
    return RunResult(
        **{"key": "k", "name": "n", "study": "s", "choices": {"recovery": "lora"}, "config": config} | empty,
        metrics=measured | {name.replace("__", "/"): value for name, value in metrics.items()},
    )


def cells(results: list[RunResult]) -> list[list[str]]:
    table = table_of([line_of(one) for one in results])
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_what_is_won_back_is_a_part_of_the_rise() -> None:
    line = line_of(result(0.2, 1e-4, 3.3))
    assert line.won_back == pytest.approx({"wiki@128": (3.8 - 3.3) / (3.8 - 3.0), "zeroshot": 0.25})
    assert line.minutes == 2


def test_where_pruning_cost_nothing_there_is_a_dash() -> None:
    assert won_back(3.0, 3.0 + LEAST_RISE / 2, 2.0, LEAST_RISE) is None
    assert won_back(3.0, 2.9, 2.0, LEAST_RISE) is None
    assert won_back(3.0, math.nan, 2.0, LEAST_RISE) is None
    line = line_of(result(0.2, 1e-4, 3.3, pruned__zeroshot__mean=0.49))
    assert line.won_back["zeroshot"] is None


def test_the_best_of_each_ratio_comes_first_with_what_differs_and_its_rate() -> None:
    rows = cells([result(0.5, 1e-4, 3.7), result(0.2, 1e-4, 3.7), result(0.2, 1e-3, 3.0), result(0.2, 1e-2, 9.9)])
    assert [row[:2] for row in rows] == [["0.20", "0.001"], ["0.20", "0.0001"], ["0.20", "0.01"], ["0.50", "0.0001"]]
    assert rows[0][2:] == ["1,000", "2.0", "1.000", "0.250", "0.500"]
