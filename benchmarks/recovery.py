"""Prints from a finished study how much of what pruning cost each recovery won back, and how much of that a minute of training.

``python run.py experiment=recovery_comparison`` and then ``python benchmarks/recovery.py runs/recovery_comparison``.

Won back is (pruned - recovered) / (pruned - dense): 0 where recovery changed nothing, 1 where the loss is the dense model's
again, below 0 where it did harm. The loss is in nats per token, of each text by its own name; for the zero-shot mean the
same fraction of the drop. Minutes are of training alone, when it was done, with what the objective needs of the dense model.

The surprise: what is won back is no figure where pruning cost next to nothing, so below 0.01 nats, or below one standard
error of the zero-shot mean, there is a dash.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from evaluation.result import RunResult

LEAST_RISE = 0.01
"""Nats per token."""

ARM = ("recovery", "recovery/objective", "recovery/data")
"""Groups whose options tell arms apart, beside what else differs in the recovery's configuration."""


@dataclass(frozen=True)
class Line:
    """One run's line of the table."""

    ratio: float
    arm: dict[str, str]
    tokens: float
    minutes: float
    won_back: dict[str, float | None]
    """Text, or `zeroshot` -> the fraction won back."""


def line_of(result: RunResult) -> Line:
    """Return what a finished run's recovery won back."""
    metrics = result.metrics
    texts = [name.removeprefix("dense/ppl/") for name in metrics if name.startswith("dense/ppl/")]
    won = {text: won_back(*(log_of(metrics, f"{stage}/ppl/{text}") for stage in STAGES), LEAST_RISE) for text in texts}
    if "dense/zeroshot/mean" in metrics:
        scores = [-metrics.get(f"{stage}/zeroshot/mean", math.nan) for stage in STAGES]
        won["zeroshot"] = won_back(*scores, metrics.get("dense/zeroshot/mean_stderr", 0.0))
    minutes = metrics["recovery/seconds"] / 60
    return Line(metrics["pruned/ratio_asked"], arm_of(result), metrics["recovery/tokens"], minutes, won)


STAGES = ("dense", "pruned", "recovered")


def won_back(dense: float, pruned: float, recovered: float, least: float) -> float | None:
    """Return the fraction of the rise from `dense` to `pruned` that was undone; None where the rise is below `least`."""
    rise = pruned - dense
    return (pruned - recovered) / rise if rise >= max(least, 1e-12) else None


def log_of(metrics: Mapping[str, float], name: str) -> float:
    """Return a loss in nats per token from a perplexity."""
    value = metrics.get(name)
    return math.log(value) if value else math.nan


def arm_of(result: RunResult) -> dict[str, str]:
    """Return the options and values of a run's recovery."""
    chosen = {group: result.choices[group] for group in ARM if group in result.choices}
    values = {name: str(value) for name, value in result.config["recovery"].items() if not isinstance(value, dict)}
    return chosen | values


def table_of(lines: Sequence[Line]) -> Table:
    """Return the table, the runs of each ratio together and the best in the first text first."""
    differing = [key for key in lines[0].arm if len({line.arm.get(key) for line in lines}) > 1]
    texts = list(dict.fromkeys(text for line in lines for text in line.won_back))
    table = Table(title="Part of the rise in loss that was won back, and of it per minute of training")
    for name in ("ratio", *differing, "tokens", "minutes", *texts, "per minute"):
        table.add_column(name, justify="right")

    def place(line: Line) -> tuple[float, float]:
        first = line.won_back.get(texts[0]) if texts else None
        return line.ratio, -first if first is not None else math.inf

    for line in sorted(lines, key=place):
        found = [line.won_back.get(text) for text in texts]
        rate = found[0] / line.minutes if found and found[0] is not None and line.minutes else None
        cells = [f"{value:.3f}" if value is not None and math.isfinite(value) else "-" for value in (*found, rate)]
        own = [line.arm.get(key, "-") for key in differing]
        table.add_row(f"{line.ratio:.2f}", *own, f"{line.tokens:,.0f}", f"{line.minutes:.1f}", *cells)
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="folder of the study, e.g. runs/recovery_comparison")
    args = parser.parse_args()
    found = [RunResult.read(path) for path in sorted(args.study.glob("*/result.json"))]
    lines = [line_of(result) for result in found if result is not None and result.metrics.get("recovery/steps")]
    if not lines:
        parser.error(f"{args.study}: there is no finished run with a recovery in it")
    Console(width=None if sys.stdout.isatty() else 200).print(table_of(lines))


if __name__ == "__main__":
    main()
