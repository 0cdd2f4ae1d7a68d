"""Zero-shot accuracy through lm-eval: its own task definitions, prompts and metrics, on items that lie on this machine.

With `tasks.py` and `scorer.py` the only module that imports lm_eval. Scores are kept per task under the model's fingerprint.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from evaluation.prefix_trees import token_budget
from evaluation.tasks import STOCK_FILES, check_counts, check_items, find_items, load_task
from pruning.cache import Cache, digest
from pruning.progress import loop

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

SEVEN = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
"""The tasks of LLM-Pruner's mean."""

NORMALISED = ("hellaswag", "arc_challenge", "openbookqa")
"""Those of the seven that enter the mean with acc_norm; the others enter with acc."""


class ZeroShot:
    """The asked tasks, ready to score models on. Making it raises for a task that cannot be scored."""

    def __init__(
        self, tasks: list[str], items: int | None, num_fewshot: int, data_dir: str | None, cache: Cache
    ) -> None:
        self.items = items
        self.num_fewshot = num_fewshot
        self.cache = cache
        self.budget = token_budget()
        """Of all models: those that are scored later begin with what fitted in memory."""
        self.data = {task: find_items(task, data_dir, num_fewshot, cache) for task in tasks}
        for data in self.data.values():
            check_counts(data, items, num_fewshot)
        self._tasks: dict[str, Any] = {}
        for task in tasks:
            if task not in STOCK_FILES or self.data[task].file is None:
                loaded = self._task(task)  # an unknown name or items that cannot be fetched end here, before any work
                if self.data[task].file is None:
                    check_items(task, items, len(loaded.eval_docs), "the split that lm-eval scores")

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        model_fingerprint: str,
        *,
        alone: int | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Return for every task its `metrics` and the outcome of every item; scored before -> read from the cache.

        What a task gave is kept as soon as it is done, so a killed run goes on with the next task.

        Args:
            model: to score.
            tokenizer: its tokenizer.
            model_fingerprint: hash of its configuration and weights.
            alone: score so many items of each task only, each token sequence in a batch of its own.
        """
        inputs = self._inputs(tokenizer, model_fingerprint, alone)
        scorers: list[Any] = []

        def score_task(task: str) -> dict[str, Any]:
            from evaluation.scorer import SharedContextLM

            if not scorers:
                budget = token_budget(1) if alone else self.budget
                scorers.append(SharedContextLM(model, tokenizer, budget=budget))
            return run_task(self._task(task), task, scorers[0], alone or self.items)

        results = {}
        with loop("zero-shot, alone" if alone else "zero-shot", len(self.data)) as step:
            for task, data in self.data.items():
                step(0, now=task)
                asked = inputs | {"task": task, "data": data.identity}
                results[task] = self.cache.json("zeroshot", asked, partial(score_task, task))
                if not alone:
                    shown = ", ".join(f"{name} {value:.4g}" for name, value in results[task]["metrics"].items())
                    log.info("  %s: %s", task, shown)
                step()
        return results

    def _inputs(self, tokenizer: PreTrainedTokenizerBase, model_fingerprint: str, alone: int | None) -> dict[str, Any]:
        """Return what the scores of every task depend on."""
        inputs = {
            "model": model_fingerprint,
            "vocabulary": digest(sorted(tokenizer.get_vocab().items())),
            "items": alone or self.items,
            "num_fewshot": self.num_fewshot,
        }
        return inputs | ({"alone": True} if alone else {})

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

    The standard error is the sample standard deviation over the square root of n; 0.5, the most it can be, for one item.
    """
    metrics: dict[str, float] = {}
    for name in ("acc", "acc_norm"):
        if name in outcomes[0]:
            metrics[name] = sum(outcome[name] for outcome in outcomes) / len(outcomes)
    main = main_metric(task, metrics)
    n = len(outcomes)
    spread = sum((outcome[main] - metrics[main]) ** 2 for outcome in outcomes)
    metrics["stderr"] = math.sqrt(spread / (n - 1) / n) if n > 1 else 0.5
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
    if len(outcomes) > 1 and len({tuple(outcome["choices"]) for outcome in outcomes}) == 1:
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
