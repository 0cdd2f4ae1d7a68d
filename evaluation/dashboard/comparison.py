"""What runs differ in, and what they can be compared by.

The surprise: runs are one arm, and averaged over seeds, only when *nothing* else differs: not only the chosen options, but
every key of the configuration that the figures depend on.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from evaluation.contamination import mark
from evaluation.dashboard.runs import RunRecord
from evaluation.report_rows import perplexity_label
from evaluation.zeroshot import SEVEN, main_metric

GROUPS = {
    "model": "model",
    "importance": "estimator",
    "pruning": "pruning",
    "schedule": "schedule",
    "recovery": "recovery",
    "data": "data",
    "evaluation": "evaluation",
    "stability": "stability",
}
"""Configuration groups that the figures depend on -> what a reader calls them."""

NO_CAUSE = ("tracking", "study", "runs_dir", "cache_dir", "save_model", "force", "experiment", "seed")
"""Top-level keys that do not make another arm."""

MISSING = "-"

Options = tuple[str, ...]
"""The chosen option of every group in GROUPS."""


def facets(runs: Sequence[RunRecord]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Return what runs can be told apart and filtered by.

    Returns:
        The facets, each with its `name`, `label` and different `values`, and the value of every facet for every run. A run
        that was ended before it had written its configuration has no value that counts as different.
    """
    keys = sorted(set().union(*varying_keys(runs).values()))
    names = {"study": "study"} | GROUPS | {key: key for key in keys} | {"ratio": "ratio", "seed": "seed"}
    values = [
        {"study": run.study, "ratio": _text(run.config.get("pruning.ratio")), "seed": _text(run.config.get("seed"))}
        | {group: run.choices.get(group, MISSING) for group in GROUPS}
        | {key: _text(run.config.get(key)) for key in keys}
        for run in runs
    ]
    known = [value for run, value in zip(runs, values, strict=True) if run.config and run.choices]
    kinds = [
        {"name": name, "label": label, "values": list(dict.fromkeys(value[name] for value in known))}
        for name, label in names.items()
    ]
    return kinds, values


def varying_keys(runs: Sequence[RunRecord]) -> dict[Options, set[str]]:
    """Return for every set of options the keys in which its finished runs differ, beside ratio and seed.

    A key that older runs do not have does not make them differ, nor does a seed of a part (`pruning.seed`) that is the run's
    own seed in all of them.
    """
    seen: dict[Options, dict[str, set[tuple[str, bool]]]] = defaultdict(lambda: defaultdict(set))
    for run in runs:
        for key, value in run.config.items() if run.state == "done" else ():
            if key.split(".")[0] not in NO_CAUSE and key != "pruning.ratio":
                is_own_seed = key.endswith(".seed") and value == run.config.get("seed")
                seen[_options(run)][key].add((json.dumps(value, sort_keys=True), is_own_seed))

    def vary(found: set[tuple[str, bool]]) -> bool:
        return len({value for value, _ in found}) > 1 and not all(is_own_seed for _, is_own_seed in found)

    return {options: {key for key, found in keys.items() if vary(found)} for options, keys in seen.items()}


def arms(runs: Sequence[RunRecord]) -> list[str]:
    """Return for every run the name of its arm: the estimator, and whatever else it needs to be told from other arms.

    An option is named where finished runs with all options named before it differ in it, a key where they have the same
    options, and the study where nothing else tells them apart.
    """
    done = [index for index, run in enumerate(runs) if run.state == "done"]
    varying = varying_keys(runs)
    own = [varying.get(_options(run), set()) for run in runs]
    parts = [[run.choices.get("importance", MISSING)] for run in runs]
    causes = [[run.choices.get(group, MISSING) for run in runs] for group in GROUPS if group != "importance"]
    for key in sorted(set().union(*own)):
        name = key.rpartition(".")[2]
        causes.append([f"{name}={_text(run.config.get(key))}" if key in own[i] else "" for i, run in enumerate(runs)])
    for values in [*causes, [run.study for run in runs]]:
        with_cause = [[*part, value] for part, value in zip(parts, values, strict=True)]
        if _count(with_cause, done) > _count(parts, done):
            parts = with_cause
    return [" · ".join(_short(part) for part in parts_of_run if part) for parts_of_run in parts]


def measures(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Return the measures of quality that any run has, each with `name`, `label` and whether `lower` is better.

    A text that is in domain or contaminated in any of the runs is marked so.
    """
    names = measured(runs)
    marks = {name: value for run in runs for name, value in run.metrics.items() if value}
    labels = {
        "zeroshot/mean": "zero-shot mean",
        "zeroshot/mean_above_chance": "zero-shot mean where dense beats chance",
        **{name: perplexity_label(marks, name) for name in sorted(names) if name.startswith("ppl/")},
        "probe/tok_acc": f"next-token accuracy{mark(marks, 'probe')}",
        "probe/loss": f"loss, nats per token{mark(marks, 'probe')}",
    }
    return [
        {"name": name, "label": label, "lower": name.startswith("ppl/") or name == "probe/loss"}
        for name, label in labels.items()
        if name in names
    ]


def tasks(runs: Sequence[RunRecord]) -> list[dict[str, str]]:
    """Return the zero-shot tasks that any run has, LLM-Pruner's seven first, each with its `name` and main `metric`."""
    found: dict[str, set[str]] = defaultdict(set)
    for name in measured(runs):
        kind, _, rest = name.partition("/")
        task, _, metric = rest.partition("/")
        if kind == "zeroshot" and metric in ("acc", "acc_norm"):
            found[task].add(metric)
    order = [task for task in SEVEN if task in found] + sorted(set(found) - set(SEVEN))
    return [{"name": task, "metric": main_metric(task, dict.fromkeys(found[task], 0.0))} for task in order]


def measured(runs: Sequence[RunRecord]) -> set[str]:
    """Return the names, without their stage, of all metrics that any run has at some stage."""
    stages = ("dense", "pruned", "recovered")
    names = {name.partition("/") for run in runs for name in run.metrics}
    return {rest for stage, _, rest in names if stage in stages}


def _options(run: RunRecord) -> Options:
    return tuple(run.choices.get(group, MISSING) for group in GROUPS)


def _count(parts: Sequence[Sequence[str]], indices: Sequence[int]) -> int:
    return len({tuple(parts[index]) for index in indices})


def _short(part: str) -> str:
    return part if len(part) <= 40 else f"…{part[-39:]}"


def _text(value: Any) -> str:
    if value is None:
        return MISSING
    return value if isinstance(value, str) else json.dumps(value)
