"""What is measured of one model at one moment: the probe around events, and the full measurement of a stage.

Text and zero-shot scores are kept in the cache under the model's fingerprint, so a model that was measured before, in this
run or another, is not measured again. Speeds are always taken anew.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from evaluation.batch_size import BatchSize, in_one_size
from evaluation.config import EvaluationConfig
from evaluation.probe import Probe, TaskItems
from evaluation.stability import StabilityConfig
from pruning.cache import Cache, digest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from evaluation.perplexity import TextScore


class Evaluator:
    """Everything that is measured the same way at every moment of a run. Making it raises for what cannot be measured."""

    def __init__(
        self,
        config: EvaluationConfig,
        stability: StabilityConfig,
        tokenizer: PreTrainedTokenizerBase,
        cache: Cache,
    ) -> None:
        from evaluation.generations import PROMPT_TOKENS
        from evaluation.perplexity import scored_bytes, text_batch
        from evaluation.zeroshot import ZeroShot

        self.config = config
        self.stability = stability
        self.tokenizer = tokenizer
        self.cache = cache
        self.tasks = ZeroShot(config.tasks, config.items, config.num_fewshot, config.data_dir, cache)
        self.probe_blocks = self.windows(stability.text, stability.length, stability.blocks, "stability.text")
        self.text_blocks = {
            f"{name}@{window}": self.windows(
                source, window, config.text_tokens and config.text_tokens // window, f"evaluation.texts.{name}"
            )
            for name, source in config.texts.items()
            for window in config.windows
        }
        self._text_batches: dict[int, BatchSize] = {}
        """Tokens in a block -> how many blocks are scored at once: see `text_batch`."""

        self.divergence_batch = text_batch(config.batch_size, stability.length)
        self.text_bytes = {name: scored_bytes(tokenizer, blocks) for name, blocks in self.text_blocks.items()}
        self.prompts = self.probe_blocks[:0]
        if count := config.generations:
            self.prompts = self.windows(stability.text, PROMPT_TOKENS, count, "stability.text")
        self.scored: dict[str, dict[str, dict[str, Any]]] = {}
        """Fingerprint -> zero-shot scores, in the order of measuring: the first are the dense model's."""

    def snapshot(self, model: PreTrainedModel) -> Snapshot:
        """Return a view of the model as it is now; it must not be used after the model has changed."""
        return Snapshot(self, model)

    def before_cut(self, model: PreTrainedModel) -> Snapshot:
        """Return a view of the model; of a copy of it where `stability.kl` will run it again after the cut.

        One batch of the probe is run, also where the probe itself is in the cache: a size that fits now fits after the cut.
        """
        from evaluation.perplexity import score_text

        before = Snapshot(self, copy.deepcopy(model) if self.stability.kl else model)
        blocks = self.probe_blocks
        in_one_size(lambda size: score_text(model, blocks[:size], size), self.text_batch(blocks))
        return before

    def text_batch(self, blocks: torch.Tensor) -> BatchSize:
        """Return how many of some blocks (N, T) are scored at once: of all blocks of one length as many."""
        from evaluation.perplexity import text_batch

        length = blocks.shape[1]
        if length not in self._text_batches:
            self._text_batches[length] = text_batch(self.config.batch_size, length)
        return self._text_batches[length]

    def windows(self, source: str, length: int, count: int | None, key: str) -> torch.Tensor:
        """Return windows (N, T) spread evenly over a bundled corpus or a file, which `key` asks for."""
        from pruning.blocks import evenly_spaced_windows
        from pruning.documents import read_corpus

        documents = read_corpus(source, key)
        return evenly_spaced_windows(documents, self.tokenizer, length, count, purpose=f"{key}={source}")


class Snapshot:
    """One model at one moment."""

    def __init__(self, evaluator: Evaluator, model: PreTrainedModel) -> None:
        from pruning.model import fingerprint

        self.evaluator = evaluator
        self.model = model
        self.fingerprint = fingerprint(model)

    def text(self, blocks: torch.Tensor, *, fixed: bool = False) -> TextScore:
        """Score the model on `blocks` (N, T), all in batches of one size, or read its scores in such batches from the cache.

        Args:
            blocks: token ids.
            fixed: whether to raise, not to take smaller batches, where memory runs out.
        """
        from evaluation.perplexity import TextScore, score_text

        inputs = {"model": self.fingerprint, "blocks": digest(blocks.tolist())}

        def score(size: int) -> dict[str, Any]:
            asked = inputs | {"batch_size": size}
            return self.evaluator.cache.json("text", asked, lambda: asdict(score_text(self.model, blocks, size)))

        return TextScore(**in_one_size(score, self.evaluator.text_batch(blocks), fixed=fixed))

    def zeroshot(self) -> dict[str, dict[str, Any]]:
        """Return metrics and outcomes of every task; empty when there are no tasks."""
        scored = self.evaluator.scored
        if self.fingerprint not in scored:
            scores = self.evaluator.tasks.score(self.model, self.evaluator.tokenizer, self.fingerprint)
            scored[self.fingerprint] = scores
        return scored[self.fingerprint]

    def probe(self, *, after_cut: bool = False) -> Probe:
        """Measure what the stability metric is made of; the zero-shot mean only where that is switched on.

        Directly after a cut the text is scored in the batches of the probe before it, or not at all.
        """
        return self._probe(self.evaluator.stability.zeroshot, after_cut)

    def _probe(self, zeroshot: bool, after_cut: bool = False) -> Probe:
        items = mean_items(self.zeroshot()) if zeroshot else None
        return Probe(self.text(self.evaluator.probe_blocks, fixed=after_cut), items or None, self.fingerprint)

    def divergence_from(self, before: Snapshot) -> list[float] | None:
        """Return the KL divergence from the model before the cut on every block of the probe, nats per token, (N,).

        None without `stability.kl`.
        """
        from evaluation.perplexity import token_divergence

        evaluator = self.evaluator
        if not evaluator.stability.kl:
            return None
        blocks = evaluator.probe_blocks
        inputs = {"models": [before.fingerprint, self.fingerprint], "blocks": digest(blocks.tolist())}

        def diverge(size: int) -> list[float]:
            asked = inputs | {"batch_size": size}
            return evaluator.cache.json(
                "divergence", asked, lambda: token_divergence(before.model, self.model, blocks, size)
            )

        return in_one_size(diverge, evaluator.divergence_batch)

    def measure_control(self) -> tuple[dict[str, float], Probe]:
        """Return what is measured of the control under names without a stage, and its probe."""
        zeroshot = self.evaluator.config.control_zeroshot
        metrics, probe = self.zeroshot_metrics() if zeroshot else {}, self._probe(zeroshot)
        measured = {f"probe/{name}": value for name, value in probe.measures().items() if name != "zeroshot"}
        return metrics | measured, probe

    def measure(self, load_dense: Callable[[], PreTrainedModel] | None = None) -> dict[str, float]:
        """Return zero-shot, perplexity, bits per byte and cost under their names without a stage.

        Args:
            load_dense: gives the dense model, to be timed in turn with this one where `evaluation.cost.paired` asks for it;
                None for the dense model itself.
        """
        from evaluation.cost import measure_cost

        metrics = self.zeroshot_metrics()
        metrics |= {f"probe/{name}": value for name, value in self.probe().measures().items() if name != "zeroshot"}
        for name, blocks in self.evaluator.text_blocks.items():
            score = self.text(blocks)
            metrics[f"ppl/{name}"] = score.perplexity
            metrics[f"bits_per_byte/{name}"] = score.bits_per_byte(self.evaluator.text_bytes[name])
        cost = self.evaluator.config.cost
        if cost.enabled:
            metrics |= measure_cost(self.model, cost, load_dense() if load_dense and cost.paired else None)
        return metrics

    def outcomes(self) -> dict[str, dict[str, Any]]:
        """Return what was found item by item: `zeroshot/<task>`, `texts/<name>` -> scores, `generations` -> text."""
        texts = {"probe": self.evaluator.probe_blocks} | self.evaluator.text_blocks
        found = {f"zeroshot/{task}": scores for task, scores in self.zeroshot().items()}
        for name, blocks in texts.items():
            found[f"texts/{name}"] = {"blocks": digest(blocks.tolist())} | asdict(self.text(blocks))
        return found | ({"generations": self.generations()} if len(self.evaluator.prompts) else {})

    def generations(self) -> dict[str, str]:
        """Return how the model goes on after each prompt, greedily."""
        from evaluation.generations import NEW_TOKENS, continue_prompts

        evaluator, prompts = self.evaluator, self.evaluator.prompts
        inputs = {"model": self.fingerprint, "prompts": digest(prompts.tolist()), "new_tokens": NEW_TOKENS}
        return evaluator.cache.json(
            "generations", inputs, lambda: continue_prompts(self.model, evaluator.tokenizer, prompts)
        )

    def zeroshot_metrics(self) -> dict[str, float]:
        """Return the `zeroshot/*` metrics: every task, the mean of seven, the mean where the dense model beats chance.

        Of the dense model also how far the shape of a batch moves them, where that is measured.
        """
        from evaluation.precision import items_scored_twice, noise_metrics
        from evaluation.zeroshot import zeroshot_metrics

        evaluator, scores = self.evaluator, self.zeroshot()
        dense = next(iter(evaluator.scored.values()))
        metrics = zeroshot_metrics(scores, dense=dense)
        count = items_scored_twice(evaluator.config.noise_items, self.model.dtype) if scores is dense else 0
        if count:
            count = min(count, evaluator.config.items or count)
            alone = evaluator.tasks.score(self.model, evaluator.tokenizer, self.fingerprint, alone=count)
            metrics |= noise_metrics(scores, alone)
        return metrics


def mean_items(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, TaskItems]:
    """Return the items of the tasks that enter the zero-shot mean, by the metric they enter it with."""
    from evaluation.zeroshot import SEVEN, main_metric

    return {
        task: TaskItems([item[main_metric(task, item)] for item in score["outcomes"]], score["metrics"]["chance"])
        for task, score in scores.items()
        if task in SEVEN
    }


def staged(stage: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics under the name of a stage: `dense/ppl/...`."""
    return {f"{stage}/{name}": value for name, value in metrics.items()}
