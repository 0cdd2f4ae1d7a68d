"""Zero-shot accuracy through lm-eval: its own task definitions, prompts and metrics, on items that lie on this machine.

The only module that imports lm_eval. A task whose items are local gets a definition that includes the stock one and only
says where the items are, so prompts and metrics stay lm-eval's. Few-shot examples are never drawn from the scored items.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.items import BUNDLED, bundled_items
from pruning.cache import Cache, digest, file_digest
from pruning.files import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

SEVEN = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
"""The tasks of LLM-Pruner's mean."""

NORMALISED = ("hellaswag", "arc_challenge", "openbookqa")
"""Those of the seven that enter the mean with acc_norm; the others enter with acc."""

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


class ZeroShot:
    """The asked tasks, ready to score models on. Making it raises for a task that cannot be scored."""

    def __init__(
        self, tasks: list[str], items: int | None, num_fewshot: int, data_dir: str | None, cache: Cache
    ) -> None:
        self.items = items
        self.num_fewshot = num_fewshot
        self.cache = cache
        self.data = {task: find_items(task, data_dir, num_fewshot, cache) for task in tasks}
        self._tasks: dict[str, Any] = {}
        for task, data in self.data.items():
            if data.file is None:
                self._task(task)

    def score(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_fingerprint: str
    ) -> dict[str, dict[str, Any]]:
        """Return for every task its `metrics` and the outcome of every item; scored before -> read from the cache."""
        vocabulary = digest(sorted(tokenizer.get_vocab().items()))
        scorers: list[Any] = []

        def score_task(task: str) -> dict[str, Any]:
            from evaluation.scorer import SharedContextLM

            if not scorers:
                scorers.append(SharedContextLM(model, tokenizer))
            return run_task(self._task(task), task, scorers[0], self.items)

        results = {}
        for task, data in self.data.items():
            inputs = {
                "model": model_fingerprint,
                "vocabulary": vocabulary,
                "task": task,
                "data": data.identity,
                "items": self.items,
                "num_fewshot": self.num_fewshot,
            }
            results[task] = self.cache.json("zeroshot", inputs, partial(score_task, task))
            shown = ", ".join(f"{name} {value:.4g}" for name, value in results[task]["metrics"].items())
            log.info("  %s: %s", task, shown)
        return results

    def _task(self, task: str) -> Any:
        """Return lm-eval's task object, made once."""
        if task not in self._tasks:
            self._tasks[task] = load_task(self.data[task], self.num_fewshot, self.cache.root)
        return self._tasks[task]


def run_task(task: Any, name: str, scorer: Any, items: int | None) -> dict[str, Any]:
    """Have lm-eval score the first `items` items of one task object with `scorer`, an lm-eval model."""
    from lm_eval.evaluator import evaluate

    tasks = {"tasks": {name: task}, "groups": {}, "group_map": {}}
    results = evaluate(scorer, tasks, limit=items, bootstrap_iters=0, log_samples=True)
    outcomes = [item_outcome(sample) for sample in results["samples"][name]]
    metrics = task_metrics(name, outcomes)
    if (perplexity := results["results"][name].get("perplexity,none")) is not None:
        metrics["perplexity"] = perplexity
    return {"metrics": metrics, "version": results["versions"][name], "outcomes": outcomes}


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
    return _prepared(manager.load([data.task])["tasks"][data.task], num_fewshot)


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


def item_outcome(sample: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of one scored item: its id, log-likelihoods (nats), target and metrics."""
    choices = [continuation for _, continuation in sample["arguments"]]
    responses = sample["filtered_resps"]
    outcome = {
        "doc_id": sample["doc_id"],
        "target": str(sample["target"]),
        "choices": choices,
        "loglikelihoods": [float(response[0]) for response in responses],
    }
    return outcome | {name: float(sample[name]) for name in ("acc", "acc_norm") if name in sample}


def task_metrics(task: str, outcomes: list[dict[str, Any]]) -> dict[str, float]:
    """Return acc, acc_norm where lm-eval has it, the standard error of the task's main metric, n, and chance.

    The standard error is the sample standard deviation over the square root of n.
    """
    metrics: dict[str, float] = {}
    for name in ("acc", "acc_norm"):
        if name in outcomes[0]:
            metrics[name] = sum(outcome[name] for outcome in outcomes) / len(outcomes)
    main = main_metric(task, metrics)
    n = len(outcomes)
    spread = sum((outcome[main] - metrics[main]) ** 2 for outcome in outcomes)
    metrics["stderr"] = math.sqrt(spread / (n - 1) / n) if n > 1 else math.nan
    return metrics | {"n": n, "chance": chance_level(outcomes)}


def main_metric(task: str, metrics: dict[str, float]) -> str:
    """Return the metric that stands for a task in means: acc_norm for hellaswag, arc_challenge, openbookqa, else acc."""
    return "acc_norm" if task in NORMALISED and "acc_norm" in metrics else "acc"


def chance_level(outcomes: list[dict[str, Any]]) -> float:
    """Return the accuracy of a model that knows nothing of the items.

    Where all items have the same choices (boolq: no, yes) this is the share of the commonest answer, which a model that
    always says the same reaches; elsewhere one over the number of choices; 0 where the answer is free text.
    """
    if len(outcomes[0]["choices"]) < 2:
        return 0.0
    if len({tuple(outcome["choices"]) for outcome in outcomes}) == 1:
        return Counter(outcome["target"] for outcome in outcomes).most_common(1)[0][1] / len(outcomes)
    return sum(1 / len(outcome["choices"]) for outcome in outcomes) / len(outcomes)


def zeroshot_metrics(scores: dict[str, dict[str, Any]], dense: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the flat `zeroshot/*` metrics of one model.

    mean: unweighted over those of LLM-Pruner's seven tasks that were scored, each by its main metric; mean_stderr: its
    standard error. mean_above_chance: the same over the tasks on which the *dense* model beats chance by two standard
    errors, LAMBADA among them.
    """
    found = {
        f"zeroshot/{task}/{name}": value for task, score in scores.items() for name, value in score["metrics"].items()
    }
    main = {task: score["metrics"][main_metric(task, score["metrics"])] for task, score in scores.items()}
    errors = {task: score["metrics"]["stderr"] for task, score in scores.items()}
    above = [task for task in scores if beats_chance(task, dense[task]["metrics"])]
    for name, tasks in (("mean", [task for task in SEVEN if task in scores]), ("mean_above_chance", above)):
        if tasks:
            found[f"zeroshot/{name}"] = sum(main[task] for task in tasks) / len(tasks)
            found[f"zeroshot/{name}_stderr"] = math.sqrt(sum(errors[task] ** 2 for task in tasks)) / len(tasks)
            found[f"zeroshot/{name}_tasks"] = len(tasks)
    return found


def beats_chance(task: str, metrics: dict[str, float]) -> bool:
    """Say whether a score is above chance by at least two standard errors."""
    value = metrics[main_metric(task, metrics)]
    return value > metrics["chance"] and value - metrics["chance"] >= 2 * metrics["stderr"]


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
        loaded = _prepared(manager.load([task])["tasks"][task], num_fewshot)
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


def _prepared(task: Any, num_fewshot: int) -> Any:
    """Set what lm-eval's own front end sets before it scores a task."""
    task.set_config(key="num_fewshot", value=num_fewshot)
    task.set_fewshot_seed(seed=1234)
    return task
