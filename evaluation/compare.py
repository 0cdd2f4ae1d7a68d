"""Finished runs side by side, the others against the first: `python -m evaluation.compare runs/a runs/b [--json file]`.

Shows the configuration that differs, every task and text of every stage with paired differences, and the other metrics that
differ.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.contamination import MARKS, mark
from evaluation.dashboard.runs import flat
from evaluation.paired import CONFIDENCE, RESAMPLES, Difference, compare_stage, read_outcomes
from evaluation.result import RunResult, finished_runs
from pruning.files import write_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

STAGES = ("dense", "pruned", "recovered")

NOTE = (
    f"B - A on the items that both runs have: {CONFIDENCE:.0%} paired bootstrap interval ({RESAMPLES:,} resamples, seed 0); "
    "p: exact McNemar test for tasks, sign test over windows for losses (nats per token). Not corrected for how many are read."
)


@dataclass(frozen=True)
class Comparison:
    """Two finished runs."""

    first: Path
    second: Path
    configuration: dict[str, tuple[Any, Any]]
    """Dotted key -> the two values, where they differ."""

    stages: dict[str, dict[str, Difference]]
    """Stage -> task or text -> the paired difference."""

    metrics: dict[str, tuple[float | None, float | None]]
    """The metrics that differ and have no paired difference; None where a run has none."""

    marks: dict[str, str]
    """Row of a stage's table -> what stands behind its name: that its text is known to the models."""


def compare(first: tuple[Path, RunResult], second: tuple[Path, RunResult]) -> Comparison:
    """Compare two finished runs."""
    outcomes = read_outcomes(first[0]), read_outcomes(second[0])
    stages = {
        stage: compare_stage(*(found[stage] for found in outcomes))
        for stage in STAGES
        if all(stage in found for found in outcomes)
    }
    metrics = differing(first[1].metrics, second[1].metrics)
    paired = {name for stage, table in stages.items() for label in table for name in metric_names(stage, label)}
    return Comparison(
        first=first[0],
        second=second[0],
        configuration=differing(flat(first[1].config), flat(second[1].config)),
        stages=stages,
        metrics={name: pair for name, pair in metrics.items() if not {name, name[: name.rfind("/") + 1]} & paired},
        marks={
            label: text_mark(label, first[1].metrics, second[1].metrics) for table in stages.values() for label in table
        },
    )


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ by more than rounding, with both values; None for a key that is missing."""
    names = [*first, *(name for name in second if name not in first)]
    pairs = {name: (first.get(name), second.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if not _equal(*pair)}


def metric_names(stage: str, label: str) -> list[str]:
    """Return the names of the metrics that a row of a stage's table stands for; all that begin so where one ends in `/`."""
    if label == "mean of seven":
        return [f"{stage}/zeroshot/mean{end}" for end in ("", "_stderr", "_tasks")]
    what, _, text = label.partition(", ")
    if text == "probe":
        return [f"{stage}/probe/{'loss' if what == 'loss' else 'tok_acc'}"]
    return [f"{stage}/ppl/{text}"] if text else [f"{stage}/zeroshot/{label.split(' ')[0]}/"]


def text_mark(label: str, first: Mapping[str, float | None], second: Mapping[str, float | None]) -> str:
    """Return what stands behind the name of a row, by the metrics of two runs; which of them is said where it is one."""
    _, found, text = label.partition(", ")
    if not found:  # a task
        return ""
    name = "probe" if text == "probe" else f"text/{text.rpartition('@')[0]}"
    marks = [mark(metrics, name) for metrics in (first, second)]
    if marks[0] == marks[1]:
        return marks[0]
    return "".join(words.replace(")", f" in {run})") for run, words in zip("AB", marks, strict=True))


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the tables of one comparison."""
    console.print(f"A  {comparison.first}\nB  {comparison.second}\n", highlight=False, soft_wrap=True)
    _print_pairs("configuration", comparison.configuration, console)
    for stage, differences in comparison.stages.items():
        if any(one.difference for one in differences.values()):
            console.print(stage_table(stage, differences, comparison.marks))
        else:
            console.print(f"[bold]{stage}[/]: the same on all items that both have\n", highlight=False)
        for note in item_notes(differences):
            console.print(f"{note}\n", style="yellow", highlight=False)
    for words, meaning in MARKS.items():
        if any(words in marked for marked in comparison.marks.values()):
            console.print(f"{words}: {meaning}\n", style="dim", highlight=False)
    console.print(f"{NOTE}\n" if comparison.stages else "Neither a task nor a text was measured in both runs.\n")
    both = {name: pair for name, pair in comparison.metrics.items() if None not in pair}
    _print_pairs("other metrics", both, console)
    if alone := len(comparison.metrics) - len(both):
        console.print(f"{alone} more metrics are in one of the runs only (--json lists them)")


def stage_table(stage: str, differences: Mapping[str, Difference], marks: Mapping[str, str]) -> Table:
    """Return the table of one stage, its rows named with their marks."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(stage)
    for column in ("A", "B", "B - A", "95% interval", "p", "items"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, one in differences.items():
        low, high = _figure(one.low, "+"), _figure(one.high, "+")
        figures = [_figure(one.first), _figure(one.second), _figure(one.difference, "+"), f"{low} .. {high}"]
        p_value = "" if one.p_value is None else f"{one.p_value:.3f}"
        table.add_row(f"{name}{marks.get(name, '')}", *figures, p_value, f"{one.shared:,}")
    return table


def item_notes(differences: Mapping[str, Difference]) -> list[str]:
    """Return a line for whatever the two runs did not measure on the same items."""
    names: dict[tuple[int, int, int], list[str]] = {}
    for name, one in differences.items():
        if one.p_value is not None or not one.shared:  # which the mean, whose tasks are named, has not
            names.setdefault((one.shared, one.only_first, one.only_second), []).append(name)
    return [
        f"{', '.join(alike)}: {shared:,} items are shared; {first:,} more are only in A, {second:,} only in B"
        for (shared, first, second), alike in names.items()
        if first or second
    ]


def _print_pairs(title: str, pairs: Mapping[str, tuple[Any, Any]], console: Console) -> None:
    from rich import box
    from rich.table import Table

    if not pairs:
        console.print(f"[bold]{title}[/]: the same\n", highlight=False)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(title, overflow="fold")
    for column in ("A", "B", "B - A"):
        table.add_column(column, justify="right", overflow="fold", max_width=24)
    for name, (first, second) in pairs.items():
        numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (first, second))
        change = f"{second - first:+,.4g}" if numbers else ""
        table.add_row(name, _shown(first), _shown(second), change)
    console.print(table)


def _figure(value: float, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{sign}.4f}"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, (bool, str)):
        return "-" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}" if isinstance(value, float) else str(value)


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-9)
    return bool(first == second)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the runs that the command line names.

    Raises:
        ValueError: a folder has no finished run, or there are fewer than two.
    """
    from rich.console import Console

    parser = argparse.ArgumentParser("python -m evaluation.compare", description="Finished runs side by side.")
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or a study for all its runs")
    parser.add_argument("--json", type=Path, help="file to write the comparison to")
    asked = parser.parse_args(arguments)
    first, *others = finished_runs(asked.folders)
    if not others:
        raise ValueError(f"{first[0]} is a single finished run; name another to compare it with")
    comparisons = [compare(first, other) for other in others]
    console = Console(width=None if Console().is_terminal else 100)
    for comparison in comparisons:
        print_comparison(comparison, console)
    if asked.json:
        found = [asdict(one) | {"first": str(one.first), "second": str(one.second)} for one in comparisons]
        write_json(asked.json, found)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
