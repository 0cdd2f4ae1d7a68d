"""The table at the end of a run, and the model card of its checkpoint, made of the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.contamination import mark_notes
from evaluation.report_rows import STAGES, fact_rows, main_name, ordered_tasks, report_rows
from evaluation.result import RunResult


def print_report(result: RunResult) -> None:
    """Print the tables of a finished run: stages side by side, then ratio, stability and generalization."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 100)
    console.begin_capture()  # a display may stand for stdout, which consoles would write past
    parts = [part for part in report_rows(result.metrics) if part]
    stages = [stage for stage in STAGES if any(stage in row.cells for part in parts for row in part)]
    table = Table(title=result.name, box=box.SIMPLE_HEAD, title_justify="left", collapse_padding=True, pad_edge=False)
    table.add_column("")
    for stage in stages:
        table.add_column(stage, justify="right")
    for part in parts:
        for row in part:
            table.add_row(row.label, *(row.cells.get(stage, "") for stage in stages), end_section=row is part[-1])
    console.print(table)
    for note in mark_notes(result.metrics):
        console.print(f" {note}", style="dim")
    facts = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    facts.add_column("")
    facts.add_column("", justify="right")
    facts.add_column("", style="dim")
    for label, value, note in fact_rows(result.metrics):
        facts.add_row(label, value, note)
    console.print(facts)
    print(console.end_capture(), end="")


def model_card(result: RunResult) -> str:
    """Return the README.md of the checkpoint: what it is, how it was made, its figures."""
    parts = [row for part in report_rows(result.metrics) for row in part]
    stages = [stage for stage in ("dense", "pruned", "recovered") if any(stage in row.cells for row in parts)]
    lines = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [pruned, secateur]\n---\n",
        f"# {result.name}\n",
        f"{result.config['model']['name']} with {result.metrics.get('pruned/ratio_of_total') or 0:.1%} of its parameters "
        f"removed by structural pruning (importance: {result.choices['importance']}, schedule: "
        f"{result.choices['schedule']}, recovery: {result.choices['recovery']}).\n",
        "| | " + " | ".join(stages) + " |",
        "|---" * (len(stages) + 1) + "|",
        *(f"| {row.label} | " + " | ".join(row.cells.get(stage, "") for stage in stages) + " |" for row in parts),
        "",
        *(f"- {note}" for note in mark_notes(result.metrics)),
    ]
    return "\n".join(lines)


def per_task_table(metrics: Mapping[str, float | None]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows with one line for every stage, task and metric."""
    rows: list[list[Any]] = []
    for stage in STAGES:
        for task in ordered_tasks(metrics):
            prefix = f"{stage}/zeroshot/{task}"
            found = {name: metrics[f"{prefix}/{name}"] for name in ("acc", "acc_norm") if f"{prefix}/{name}" in metrics}
            for name, value in found.items():
                error = metrics.get(f"{prefix}/stderr") if name == main_name(task, found) else None
                rows.append([stage, task, name, value, error, metrics[f"{prefix}/n"]])
    return ["stage", "task", "metric", "value", "stderr", "n"], rows
