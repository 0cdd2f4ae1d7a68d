"""The benchmark items that come with the installation, in the schemas that lm-eval's own task definitions read.

Written once as `<task>.jsonl`, in an order drawn with a fixed seed, because some sets are sorted: the first n lines are
then a fair sample. The LAMBADA items are the half of the passages that nothing is calibrated or trained on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pruning.bundled import BENCHMARKS, benchmark_requests, benchmark_rows, half_of_passages
from pruning.cache import Cache

Item = dict[str, Any]


def _rows(dataset: str) -> Iterator[Item]:
    for row in benchmark_rows(dataset):
        yield dict(row)


def _boolq() -> Iterator[Item]:
    """Yield BoolQ in its SuperGLUE form, which lm-eval's prompt expects: the passage begins with its title."""
    seen = set()
    for line in benchmark_requests("boolq/rc_0shot"):
        document = line["doc"]
        if document["idx"] in seen:
            continue
        seen.add(document["idx"])
        passage, _, rest = document["query"].rpartition("\nQuestion: ")
        question = rest.removesuffix("?\nAnswer:")
        label = int(document["choices"][document["gold"]] == "yes")
        yield {"question": question, "passage": passage, "idx": document["idx"], "label": label}


def _lambada() -> Iterator[Item]:
    for passage in half_of_passages(heldout=True):
        yield {"text": passage}


BUNDLED: dict[str, Callable[[], Iterator[Item]]] = {
    "boolq": _boolq,
    "piqa": lambda: _rows("piqa/plain_text"),
    "hellaswag": lambda: _rows("hellaswag/none"),
    "winogrande": lambda: _rows("winogrande/winogrande_xl"),
    "arc_easy": lambda: _rows("ai2_arc/ARC-Easy"),
    "arc_challenge": lambda: _rows("ai2_arc/ARC-Challenge"),
    "openbookqa": lambda: _rows("openbookqa/main"),
    "lambada_openai": _lambada,
}


def bundled_items(task: str, cache: Cache) -> Path:
    """Return the .jsonl file of all bundled items of `task`, written if it is not there yet."""

    def build(folder: Path) -> None:
        items = list(BUNDLED[task]())
        random.Random(f"items of {task}").shuffle(items)
        lines = (json.dumps(item, ensure_ascii=False) for item in items)
        (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    return cache.folder("items", {"task": task, "package": version(BENCHMARKS)}, build) / f"{task}.jsonl"
