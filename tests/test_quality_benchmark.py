"""The table of what cuts cost: runs of one cell together, their mean and spread, and the time and memory of choosing."""

from __future__ import annotations

from statistics import fmean, stdev
from typing import Any

from benchmarks.quality import cells_of, choosing_seconds, table_of
from evaluation.result import RunResult


def result(ratio: float, importance: str, ppl: float, seconds: float = 10.0, **metrics: float) -> RunResult:
    measured = {
        "dense/ppl/wiki@128": 50.0,
        "pruned/ppl/wiki@128": ppl,
        "dense/zeroshot/mean": 0.5,
        "dense/zeroshot/mean_stderr": 0.02,
        "pruned/zeroshot/mean": 0.4,
        "pruned/zeroshot/mean_stderr": 0.03,
        "pruned/ratio_asked": ratio,
    }
    empty: dict[str, Any] = dict.fromkeys(("config", "events", "widths"), {})
    return RunResult(
        **{"key": "k", "name": "n", "study": "s"} | empty,
        choices={"importance": importance, "pruning": "mlp_only", "compensation": "none"},
        environment={"peak_process_bytes": 3 * 2**30},
        timings={"load": 5.0, "event 1: choose": seconds, "event 1: remove": 2.0},
        metrics=measured | metrics,
    )


def rows(results: list[RunResult]) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells for column in table_of(results).columns), strict=True)]


def test_draws_of_one_method_and_ratio_share_a_line() -> None:
    found = rows([result(0.2, "taylor", 80.0, 30.0), result(0.2, "taylor", 90.0, 4.0), result(0.2, "l2", 200.0)])
    assert found[0] == ["", "dense", "", "50.0", "0.500 ± 0.020", "", ""]
    assert found[1][1:] == ["l2, mlp_only, none", "1", "200.0", "0.400 ± 0.030", "10", "3.0"]
    expected = f"{fmean([80, 90]):.1f} ± {stdev([80, 90]):.1f}"
    assert found[2][1:] == ["taylor, mlp_only, none", "2", expected, "0.400 ± 0.030", "30 / 4", "3.0"]


def test_cells_stand_by_ratio() -> None:
    cells = cells_of([result(0.5, "l2", 1.0), result(0.1, "taylor", 1.0), result(0.1, "l2", 1.0)])
    assert [(cell.ratio, cell.method.split(",")[0]) for cell in cells] == [(0.1, "l2"), (0.1, "taylor"), (0.5, "l2")]


def test_what_one_draw_was_not_measured_on_is_a_dash() -> None:
    found = rows([result(0.2, "l2", 1.0, **{"pruned/ppl/books@128": 70.0}), result(0.2, "l2", 2.0)])
    assert found[1][3] == "-"


def test_only_choosing_is_timed() -> None:
    assert choosing_seconds({"load": 5.0, "event 1: choose": 3.0, "event 2: choose": 4.0, "event 2: recover": 9}) == 7
