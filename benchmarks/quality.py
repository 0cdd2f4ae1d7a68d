"""Prints from a finished study what a cut costs before any recovery, by ratio and method, and what choosing it takes.

``python run.py experiment=quality`` and then ``python benchmarks/quality.py runs/quality``.

Runs of one ratio and one method are draws of calibration text: their mean, and their standard deviation where there are two or
more. The error of a zero-shot mean is that of its items instead, which all draws share. Seconds are those of scoring, moments,
choosing and compensating: the most that a run of the cell took, and the least, which is that of a run that found scores and
moments in the cache. Memory is the most that a whole process held.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from evaluation.result import RunResult

METHOD = ("importance", "pruning", "compensation")
"""Groups whose options name a method."""


@dataclass(frozen=True)
class Cell:
    """The runs of one ratio and one method."""

    ratio: float
    method: str
    runs: Sequence[RunResult]

    def figure(self, name: str, form: str) -> str:
        """Return mean and standard deviation over the runs of a metric; a dash where a run lacks it."""
        values = [result.metrics.get(name) for result in self.runs]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return "-"
        spread = f" ± {form.format(stdev(known))}" if len(known) > 1 else ""
        return form.format(fmean(known)) + spread

    def accuracy(self, name: str) -> str:
        """Return the mean over the runs of a zero-shot mean, and the mean of its standard errors."""
        errors = [result.metrics.get(f"{name}_stderr") for result in self.runs]
        known = [error for error in errors if error is not None]
        if len(known) < len(errors):
            return "-"
        mean = fmean(result.metrics[name] for result in self.runs)
        return f"{mean:.3f} ± {fmean(known):.3f}"

    def seconds(self) -> str:
        """Return the most and the least that choosing took."""
        found = [choosing_seconds(result.timings) for result in self.runs]
        return f"{max(found):.0f}" if len(found) == 1 else f"{max(found):.0f} / {min(found):.0f}"

    def memory(self) -> str:
        """Return the largest peak of a process, in GiB."""
        return f"{max(result.environment['peak_process_bytes'] for result in self.runs) / 2**30:.1f}"


def choosing_seconds(timings: Mapping[str, float]) -> float:
    """Return what choosing units and their compensation took over all events, in seconds."""
    return sum(seconds for stage, seconds in timings.items() if stage.endswith(": choose"))


def cells_of(results: Sequence[RunResult]) -> list[Cell]:
    """Return the cells of the table, by ratio and then by method."""
    found: dict[tuple[float, str], list[RunResult]] = {}
    for result in results:
        method = ", ".join(result.choices[group] for group in METHOD)
        found.setdefault((result.metrics["pruned/ratio_asked"], method), []).append(result)
    return [Cell(*place, runs) for place, runs in sorted(found.items(), key=lambda item: item[0])]


def table_of(results: Sequence[RunResult]) -> Table:
    """Return the table, the dense model first."""
    texts = sorted({name.split("/", 1)[1] for result in results for name in result.metrics if "/ppl/" in name})
    means = ("zeroshot/mean", "zeroshot/mean_above_chance")
    accuracies = [name for name in means if any(f"dense/{name}" in result.metrics for result in results)]
    table = Table(title="Quality of the cut, before any recovery")
    for name in ("ratio", "method", "draws"):
        table.add_column(name)
    for name in (*(text.removeprefix("ppl/") for text in texts), *(name.split("/")[1] for name in accuracies)):
        table.add_column(name, justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("GiB", justify="right")
    lines = [(("", "dense", ""), Cell(0.0, "dense", results[:1]), "dense")]
    lines += [((f"{cell.ratio:.2f}", cell.method, str(len(cell.runs))), cell, "pruned") for cell in cells_of(results)]
    for place, cell, stage in lines:
        perplexities = [cell.figure(f"{stage}/{text}", "{:.1f}") for text in texts]
        scores = [cell.accuracy(f"{stage}/{name}") for name in accuracies]
        cost = (cell.seconds(), cell.memory()) if stage == "pruned" else ()
        table.add_row(*place, *perplexities, *scores, *cost)
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, nargs="+", help="folders of studies, e.g. runs/quality runs/llm_pruner")
    args = parser.parse_args()
    found = [RunResult.read(path) for study in args.study for path in sorted(study.glob("*/result.json"))]
    results = [result for result in found if result is not None and "pruned/ratio_asked" in result.metrics]
    if not results:
        parser.error(f"{', '.join(map(str, args.study))}: there is no finished run with a cut in it")
    Console(width=None if sys.stdout.isatty() else 200).print(table_of(results))


if __name__ == "__main__":
    main()
