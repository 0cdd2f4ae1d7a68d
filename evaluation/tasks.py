"""lm-eval's task objects on items that lie on this machine.

A task whose items are local gets a definition that includes lm-eval's own and only says where the items are, so prompts and
metrics stay lm-eval's. Few-shot examples are never drawn from the scored items, which lm-eval itself would do.
"""

from __future__ import annotations

import difflib
import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.items import BUNDLED, bundled_items
from pruning.cache import Cache, digest, file_digest
from pruning.files import write_text

log = logging.getLogger(__name__)

SCORED = ("multiple_choice", "loglikelihood")
"""Kinds of lm-eval tasks whose items are scored by log-likelihood and end in an accuracy."""

STOCK_FILES = {
    "boolq": "super_glue/boolq/default.yaml",
    "piqa": "piqa/piqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
}
"""Where lm-eval keeps these definitions; other tasks are looked up in its index, which takes some 15 s to build."""


@dataclass(frozen=True)
class TaskData:
    """Where the items of one task come from."""

    task: str
    file: Path | None
    """Local items; None when lm-eval fetches its own."""

    train_file: Path | None
    """Local examples for few-shot prompts."""

    @property
    def identity(self) -> dict[str, str | None]:
        """Return what the scores depend on: the hashes of the files."""
        files = {"items": self.file, "train": self.train_file}
        return {name: file_digest(file) if file else None for name, file in files.items()}


def find_items(task: str, data_dir: str | None, num_fewshot: int, cache: Cache) -> TaskData:
    """Return where the items of `task` are: in `data_dir`, in the installed packages, or with lm-eval.

    Raises:
        ValueError: `data_dir` has no items for the task, or there are no examples for few-shot prompts.
    """
    file, train_file = None, None
    if data_dir is not None:
        file = Path(data_dir).expanduser().absolute() / f"{task}.jsonl"
        if not file.exists():
            there = sorted(path.stem for path in file.parent.glob("*.jsonl"))
            raise ValueError(f"evaluation.data_dir={data_dir}: no {task}.jsonl there, only {there}")
        train_file = file.with_name(f"{task}.train.jsonl")
        train_file = train_file if train_file.exists() else None
    elif task in BUNDLED:
        file = bundled_items(task, cache)
    if num_fewshot and file and not train_file:
        raise ValueError(
            f"evaluation.num_fewshot={num_fewshot}: {task} has no training items here, and examples are never drawn from "
            f"the scored ones. Put {task}.train.jsonl beside {task}.jsonl in evaluation.data_dir, or use num_fewshot=0"
        )
    return TaskData(task, file, train_file)


def check_counts(data: TaskData, items: int | None, num_fewshot: int) -> None:
    """Say so where a task has fewer local items than are asked for, all of which are then scored.

    Raises:
        ValueError: there are no items, a line is not a JSON object, or there are too few examples for the prompts.
    """
    if data.file is None:
        return
    check_items(data.task, items, _count_items(data.file), str(data.file))
    if num_fewshot and data.train_file and (examples := _count_items(data.train_file)) < num_fewshot:
        raise ValueError(
            f"evaluation.num_fewshot={num_fewshot}: {data.train_file.name} has {examples} examples; "
            f"add some, or use at most num_fewshot={examples}"
        )


def check_items(task: str, items: int | None, count: int, place: str) -> None:
    """Say so where a task has `count` items at `place`, fewer than are asked for; raise where it has none."""
    if count == 0:
        raise ValueError(f"evaluation.tasks: {task} has no items: {place} is empty")
    if items is not None and items > count:
        log.warning("evaluation.items=%d: %s has %d items; all of them are scored", items, task, count)


def _count_items(file: Path) -> int:
    """Return the number of items in a .jsonl file; raise at a line that is none."""
    text = file.read_text(encoding="utf-8")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for number, line in lines:
        with suppress(ValueError):
            if isinstance(json.loads(line), dict):
                continue
        raise ValueError(f"{file}, line {number}: not a JSON object; one item a line is expected")
    return len(lines)


def load_task(data: TaskData, num_fewshot: int, folder: Path) -> Any:
    """Return lm-eval's task object for `data`; `folder` keeps the definition that points to local items.

    Raises:
        ValueError: lm-eval knows no such task, or its items are neither local nor to be fetched.
    """
    from lm_eval.tasks import TaskManager

    if data.file is None:
        return _load_stock_task(data.task, num_fewshot)
    definition = task_definition(data, _stock_file(data.task))
    place = folder / "tasks" / digest(definition)
    write_text(place / f"{data.task}.yaml", json.dumps(definition, indent=2))
    manager = TaskManager(include_path=str(place), include_defaults=False)
    return _prepared(manager.load([data.task])["tasks"], data.task, num_fewshot)


def task_definition(data: TaskData, stock: Path) -> dict[str, Any]:
    """Return an lm-eval task definition (JSON is YAML) that is `stock` with the items of `data`.

    Splits that are not there are nulled, the training split first of all: lm-eval would otherwise draw few-shot examples
    from the items it scores.
    """
    files = {"validation": str(data.file)}
    if data.train_file:
        files["train"] = str(data.train_file)
    return {
        "include": str(stock),
        "task": data.task,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        "training_split": "train" if data.train_file else None,
        "validation_split": "validation",
        "test_split": None,
        "fewshot_split": None,
    }


def _stock_file(task: str) -> Path:
    import lm_eval.tasks

    if task in STOCK_FILES:
        return Path(lm_eval.tasks.__file__).parent / STOCK_FILES[task]
    return Path(_stock_manager(task).task_index[task].yaml_path)


def _stock_manager(task: str) -> Any:
    """Return lm-eval's index of its own tasks; raise when `task` is not in it."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    if task not in manager.task_index:
        near = difflib.get_close_matches(task, manager.all_tasks, n=5)
        raise ValueError(f"evaluation.tasks: lm-eval knows no task {task!r}; near names: {near or 'none'}")
    return manager


def _load_stock_task(task: str, num_fewshot: int) -> Any:
    manager = _stock_manager(task)
    try:
        loaded = _prepared(manager.load([task])["tasks"], task, num_fewshot)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"evaluation.tasks: the items of {task} are not on this machine and could not be fetched ({error}). Put "
            f"{task}.jsonl into a folder and name it in evaluation.data_dir, or choose among {sorted(BUNDLED)}"
        ) from error
    if num_fewshot and not (loaded.has_training_docs() or loaded.config.fewshot_split):
        raise ValueError(
            f"evaluation.num_fewshot={num_fewshot}: {task} has no training split, and examples are never drawn from the "
            "scored items; use num_fewshot=0"
        )
    return loaded


def _prepared(tasks: dict[str, Any], name: str, num_fewshot: int) -> Any:
    """Pick a task and set what lm-eval's own front end sets before it scores one."""
    if name not in tasks:
        raise ValueError(f"evaluation.tasks: {name} is a group; name its tasks: {', '.join(sorted(tasks))}")
    task = tasks[name]
    if task.OUTPUT_TYPE not in SCORED:
        raise ValueError(
            f"evaluation.tasks: {name} is a {task.OUTPUT_TYPE} task; only {' and '.join(SCORED)} tasks are scored here"
        )
    task.set_config(key="num_fewshot", value=num_fewshot)
    task.set_fewshot_seed(seed=1234)
    return task
