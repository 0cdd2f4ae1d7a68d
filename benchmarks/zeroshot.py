"""Times zero-shot tasks under lm-eval's ``HFLM`` and under ``SharedContextLM``, side by side in one run.

``python benchmarks/zeroshot.py --items 60 --model PATH --data-dir DIR`` wants one ``<task>.jsonl`` per task in DIR,
with the fields of the stock dataset. Only the time inside ``loglikelihood`` counts, tokenisation included.

The surprise: each task is cut in slices of items that the two classes score in turn, so that a slow spell of the
machine slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import lm_eval.tasks
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluation.scorer import SharedContextLM

# Task: stock file, and the split that is evaluated.
TASKS = {
    "boolq": ("super_glue/boolq/default.yaml", "validation"),
    "piqa": ("piqa/piqa.yaml", "validation"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation"),
    "winogrande": ("winogrande/default.yaml", "validation"),
    "arc_easy": ("arc/arc_easy.yaml", "test"),
    "arc_challenge": ("arc/arc_challenge.yaml", "test"),
    "openbookqa": ("openbookqa/openbookqa.yaml", "test"),
    "lambada_openai": ("lambada/lambada_openai.yaml", "test"),
}
SLICES = 3
Score = tuple[float, bool]


class Duel(LM):
    """Has two scorers answer every request, in turn, and gives lm-eval the answers of the one asked for.

    Attributes:
        scorers: the two.
        seconds: time each of them took.
        answers: what each of them said, in the order of the requests.
        asked: 0 or 1, whose answers lm-eval gets.
    """

    def __init__(self, scorers: tuple[HFLM, HFLM]) -> None:
        """Start with no answers."""
        super().__init__()
        self.scorers = scorers
        self.seconds = [0.0, 0.0]
        self.answers: tuple[list[Score], list[Score]] = ([], [])
        self.asked = 0

    def loglikelihood(self, requests: list[Instance]) -> list[Score]:
        """Score and time every slice of items by both, or repeat what was scored before."""
        items = sorted({request.doc_id for request in requests})
        size = -(-len(items) // SLICES)
        for number in range(0 if self.answers[0] else SLICES):
            ids = set(items[number * size : (number + 1) * size])
            part = [request for request in requests if request.doc_id in ids]
            for which in (0, 1) if number % 2 else (1, 0):
                start = time.perf_counter()
                self.answers[which].extend(self.scorers[which].loglikelihood(part, disable_tqdm=True))
                self.seconds[which] += time.perf_counter() - start
        return self.answers[self.asked]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Not part of this benchmark."""
        raise NotImplementedError

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Not part of this benchmark."""
        raise NotImplementedError


def write_task(folder: Path, task: str, data: Path) -> None:
    """Write a file to ``folder`` that has the stock ``task`` read ``data`` (YAML, of which JSON is a part)."""
    stock, split = TASKS[task]
    config: dict[str, Any] = {
        "include": str(Path(lm_eval.tasks.__file__).parent / stock),
        "task": task,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(data.resolve())}},
        **{f"{name}_split": name if name == split else None for name in ("training", "validation", "test")},
    }
    (folder / f"{task}.yaml").write_text(json.dumps(config))


def run_task(task: str, manager: TaskManager, scorers: tuple[HFLM, HFLM], items: int) -> tuple[Duel, list[float]]:
    """Run one task; the second value is the accuracy under each scorer."""
    duel, accuracy = Duel(scorers), []
    for duel.asked in (0, 1):
        found = simple_evaluate(model=duel, tasks=[task], task_manager=manager, limit=items, bootstrap_iters=0)
        accuracy.append(found["results"][task]["acc,none"])
    return duel, accuracy


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or name for from_pretrained")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of <task>.jsonl")
    parser.add_argument("--items", type=int, default=60, help="items per task")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens-per-batch", type=int, help="default: that of SharedContextLM")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    args = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).to(args.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    options = {"tokens_per_batch": args.tokens_per_batch} if args.tokens_per_batch else {}
    scorers = (
        HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=8),
        SharedContextLM(model, tokenizer, **options),
    )
    print(f"{'task':<15}{'HFLM s':>9}{'shared s':>9}{'ratio':>7}{'max diff nats':>15}{'greedy differ':>14}{'acc':>14}")
    totals = [0.0, 0.0]
    with tempfile.TemporaryDirectory() as folder:
        for task in args.tasks:
            write_task(Path(folder), task, args.data_dir / f"{task}.jsonl")
        manager = TaskManager(include_path=folder, include_defaults=False)
        for task in args.tasks:
            duel, accuracy = run_task(task, manager, scorers, args.items)
            pairs = list(zip(*duel.answers, strict=True))
            gap = max(abs(theirs[0] - ours[0]) for theirs, ours in pairs)
            flips = sum(theirs[1] != ours[1] for theirs, ours in pairs)
            slow, fast = duel.seconds
            totals = [totals[0] + slow, totals[1] + fast]
            accuracies = " / ".join(f"{value:.3f}" for value in accuracy)
            print(f"{task:<15}{slow:9.2f}{fast:9.2f}{slow / fast:7.2f}{gap:15.1e}{flips:14d}  {accuracies}", flush=True)
    print(f"{'all':<15}{totals[0]:9.2f}{totals[1]:9.2f}{totals[0] / totals[1]:7.2f}")


if __name__ == "__main__":
    main()
