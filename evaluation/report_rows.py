"""What the tables of a finished run say: a figure for each stage, and single facts with how to read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from evaluation.contamination import mark
from evaluation.zeroshot import SEVEN, main_metric

STAGES = ("dense", "pruned", "recovered", "control")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    label: str
    cells: dict[str, str]
    """Stage -> what stands there; a stage without a figure is left out."""


FLATNESS = (
    ("gradient second moment, relative", "trC_relative"),
    ("Gauss-Newton trace, relative", "trGGN_relative"),
    ("largest Hessian eigenvalue, relative", "lmax_relative"),
    ("epsilon, relative (larger: flatter)", "epsilon_relative"),
)
"""Curvatures for steps as long as the weights, which compare models of different widths: label, figure."""


def report_rows(metrics: Mapping[str, float | None]) -> list[list[Row]]:
    """Return the rows of the main table in four parts: tasks, text, cost, flatness."""
    tasks = ordered_tasks(metrics)
    zeroshot = [_task_row(metrics, task) for task in tasks]
    zeroshot += [
        _row(metrics, "mean of seven", "zeroshot/mean", _with_error),
        _row(metrics, "mean where dense beats chance", "zeroshot/mean_above_chance", _with_error),
    ]
    texts = sorted({name.split("/", 1)[1] for name in metrics if "/ppl/" in name})
    text = [_row(metrics, perplexity_label(metrics, name), name, _plain("{:.2f}")) for name in texts]
    for name in texts:
        label = perplexity_label(metrics, name).replace("perplexity", "bits/byte", 1)
        text.append(_row(metrics, label, name.replace("ppl", "bits_per_byte", 1), _plain("{:.4f}")))
    text.append(_row(metrics, f"next-token accuracy{mark(metrics, 'probe')}", "probe/tok_acc", _plain("{:.4f}")))
    cost = [
        _row(metrics, "parameters", "params", _plain("{:,.0f}")),
        _row(metrics, "MACs (one sequence)", "macs", _scaled(1e9, " G")),
        _row(metrics, "weights", "weights_bytes", _scaled(2**20, " MiB")),
        _row(metrics, "peak memory", "peak_bytes", _scaled(2**20, " MiB")),
        *_speed_rows(metrics),
    ]
    flatness = [_flatness_row(metrics, label, name) for label, name in FLATNESS]
    return [[row for row in part if row.cells] for part in (zeroshot, text, cost, flatness)]


def perplexity_label(metrics: Mapping[str, float | None], name: str) -> str:
    """Return how tables name `ppl/<text>@<window>`, with its mark."""
    text, _, window = name.removeprefix("ppl/").rpartition("@")
    return f"perplexity, {text}@{window}{mark(metrics, f'text/{text}')}"


FACTS = (
    ("removed, asked", "pruned/ratio_asked", "{:.2%}", ""),
    ("removed, reached", "pruned/ratio_reached", "{:.2%}", "nearest that whole units allow"),
    ("scores, agreement of halves", "pruned/scores/rank_agreement", "{:.3f}", "of two calibration draws, in rank"),
    ("instability, token accuracy", "stability/instability_mean/tok_acc", "{:.1%}", "drop at the cut"),
    ("  its interval, low", "stability/instability_mean/tok_acc_low", "{:.1%}", "paired bootstrap over blocks"),
    ("  its interval, high", "stability/instability_mean/tok_acc_high", "{:.1%}", ""),
    ("stability, token accuracy", "stability/pct_mean/tok_acc", "{:.1f} %", "retained at the cut"),
    ("instability, loss", "stability/instability_mean/loss", "{:+.3f}", "nats per token"),
    ("instability, zero-shot mean", "stability/instability_mean/zeroshot", "{:.1%}", ""),
    ("predictions moved, KL", "stability/instability_mean/kl", "{:.4f}", "nats per token, at the cut"),
    ("recovered, token accuracy", "stability/recovered_frac/tok_acc", "{:.1%}", "of the drop"),
    ("recovered, loss", "stability/recovered_frac/loss", "{:.1%}", "of the rise"),
    ("retained, token accuracy", "generalization/retained/tok_acc", "{:.1%}", "of the dense model, in the end"),
    ("generalization gain, token accuracy", "generalization/gain/tok_acc", "{:+.4f}", "over the control"),
    ("generalization gain, loss", "generalization/gain/loss", "{:+.3f}", "nats per token; above 0 = better"),
    ("generalization gain, zero-shot mean", "generalization/gain/zeroshot", "{:+.3f}", ""),
    ("gain over random pruning, loss", "generalization/gain_match/loss", "{:+.3f}", "same ratio and recovery"),
    ("generalization gap, loss", "generalization/gap/loss", "{:+.3f}", "held-out minus training text"),
    ("  its standard error", "generalization/gap/loss_stderr", "{:.3f}", ""),
    ("  out of domain, loss", "generalization/gap_out_of_domain/loss", "{:+.3f}", "text of another corpus"),
)
"""What stands below the main table: label, metric, form, how to read it."""


def fact_rows(metrics: Mapping[str, float | None]) -> list[tuple[str, str, str]]:
    """Return (label, figure, how to read it) for the ratios, the stability and the generalization of a run."""
    found = []
    if words := mark(metrics, "probe"):
        found.append(("text of the probes", words.strip(" ()"), "stability and generalization are measured on it"))
    for label, name, form, note in FACTS:
        value = metrics.get(name)
        if value is not None:
            found.append((label, form.format(value) if math.isfinite(value) else "-", note))
    return found


def ordered_tasks(metrics: Mapping[str, float | None]) -> list[str]:
    """Return the tasks of the dense model, LLM-Pruner's seven first."""
    tasks = {name.split("/")[2] for name in metrics if name.startswith("dense/zeroshot/") and name.endswith("/acc")}
    return [task for task in SEVEN if task in tasks] + sorted(tasks - set(SEVEN))


def _task_row(metrics: Mapping[str, float | None], task: str) -> Row:
    prefix = f"dense/zeroshot/{task}/"
    main = main_name(task, [name.removeprefix(prefix) for name in metrics if name.startswith(prefix)])
    cells = {}
    for stage in STAGES:
        value = metrics.get(f"{stage}/zeroshot/{task}/{main}")
        if value is not None:
            cells[stage] = _with_error(value, metrics[f"{stage}/zeroshot/{task}/stderr"])
    return Row(f"{task} ({main})", cells)


def main_name(task: str, names: Collection[str]) -> str:
    """Return which of a task's figures stands for it."""
    return main_metric(task, dict.fromkeys(names, 0.0))


def _row(metrics: Mapping[str, float | None], label: str, name: str, form: Callable[..., str]) -> Row:
    cells = {}
    for stage in STAGES:
        value = metrics.get(f"{stage}/{name}")
        if value is not None:
            cells[stage] = form(value, metrics.get(f"{stage}/{name}_stderr"))
    return Row(label, cells)


def _speed_rows(metrics: Mapping[str, float | None]) -> list[Row]:
    """Return a row for each kind of speed at each batch size, the smallest first."""
    sizes = sorted({int(name.partition("@")[2]) for name in metrics if "_tok_s@" in name})
    kinds = (
        ("prefill, tokens/s", "prefill_tok_s", "{:,.0f}"),
        ("prefill speed-up", "prefill_speedup", "{:.2f}x"),
        ("decode, tokens/s", "decode_tok_s", "{:,.1f}"),
        ("decode speed-up", "decode_speedup", "{:.2f}x"),
    )
    return [
        _row(metrics, f"{label}, batch of {size}", f"{name}@{size}", _plain(form))
        for label, name, form in kinds
        for size in sizes
    ]


def _flatness_row(metrics: Mapping[str, float | None], label: str, name: str) -> Row:
    found = {stage: metrics.get(f"flatness/{stage}/{name}") for stage in STAGES}
    return Row(label, {stage: f"{value:.3g}" for stage, value in found.items() if value is not None})


def _plain(form: str) -> Callable[..., str]:
    return lambda value, _: form.format(value)


def _scaled(unit: float, suffix: str) -> Callable[..., str]:
    return lambda value, _: f"{value / unit:,.2f}{suffix}"


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"
