"""What is measured of one model at one moment: the probe around events, and the full measurement of a stage.

Text and zero-shot scores are kept in the cache under the model's fingerprint, so a model that was measured before, in this
run or another, is not measured again. Speeds are always taken anew.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from evaluation.stability import Probe, StabilityConfig
from pruning.cache import Cache, digest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from evaluation.perplexity import TextScore

log = logging.getLogger(__name__)


@dataclass
class CostConfig:
    """Shapes and repetitions of the cost measurement."""

    enabled: bool = True
    macs_tokens: int = 64
    """Tokens in the one sequence that multiply-accumulates are counted for (64 in LLM-Pruner's tables)."""

    batch_size: int = 2
    prefill_tokens: int = 128
    decode_tokens: int = 8
    repetitions: int = 3
    """Timed repetitions after one that warms up; the median is reported."""

    def __post_init__(self) -> None:
        for name in ("macs_tokens", "batch_size", "prefill_tokens", "decode_tokens", "repetitions"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"evaluation.cost.{name}={value}: must be at least 1")


@dataclass
class EvaluationConfig:
    """What is measured of the dense, the pruned and the recovered model."""

    tasks: list[str] = field(default_factory=list)
    """Names of lm-eval tasks; the seven of LLM-Pruner's mean and lambada_openai come with the installation."""

    items: int | None = None
    """Items scored of each task, from the first on; null for all."""

    num_fewshot: int = 0
    """Solved examples in the prompt; needs training items."""

    data_dir: str | None = None
    """A folder with <task>.jsonl files to score instead of the items that come with the installation."""

    control_zeroshot: bool = True
    """Whether the control (the unpruned model given the same recovery) is scored on the tasks too."""

    texts: dict[str, str] = field(default_factory=dict)
    """Perplexity corpora: name -> bundled corpus (passages, wikipedia), .txt or .jsonl file."""

    windows: list[int] = field(default_factory=lambda: [128])
    """Window lengths of perplexity, in tokens."""

    text_tokens: int | None = 8192
    """Tokens read of each corpus at each window length, spread evenly over it; null for the whole corpus."""

    batch_size: int = 8
    """Blocks of text in one forward pass."""

    cost: CostConfig = field(default_factory=CostConfig)

    def __post_init__(self) -> None:
        for name, low in (("items", 1), ("text_tokens", 2), ("batch_size", 1), ("num_fewshot", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"evaluation.{name}={value}: must be at least {low}")
        if any(window < 2 for window in self.windows):
            raise ValueError(f"evaluation.windows={self.windows}: every window must be at least 2 tokens")
        if self.texts and self.text_tokens is not None and self.text_tokens < max(self.windows, default=0):
            raise ValueError(
                f"evaluation.text_tokens={self.text_tokens}: must be at least the largest window ({max(self.windows)})"
            )


class Evaluator:
    """Everything that is measured the same way at every moment of a run. Making it raises for what cannot be measured."""

    def __init__(
        self,
        config: EvaluationConfig,
        stability: StabilityConfig,
        tokenizer: PreTrainedTokenizerBase,
        cache: Cache,
    ) -> None:
        from evaluation.zeroshot import ZeroShot

        self.config = config
        self.stability = stability
        self.tokenizer = tokenizer
        self.cache = cache
        self.tasks = ZeroShot(config.tasks, config.items, config.num_fewshot, config.data_dir, cache)
        self.probe_blocks = self._windows(stability.text, stability.length, stability.blocks, "stability.text")
        self.text_blocks = {
            f"{name}@{window}": self._windows(
                source, window, config.text_tokens and config.text_tokens // window, f"evaluation.texts.{name}"
            )
            for name, source in config.texts.items()
            for window in config.windows
        }
        self.scored: dict[str, dict[str, dict[str, Any]]] = {}
        """Fingerprint -> zero-shot scores, in the order of measuring: the first are the dense model's."""

    def snapshot(self, model: PreTrainedModel) -> Snapshot:
        """Return a view of the model as it is now; it must not be used after the model has changed."""
        return Snapshot(self, model)

    def _windows(self, source: str, length: int, count: int | None, key: str) -> torch.Tensor:
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

    def text(self, blocks: torch.Tensor) -> TextScore:
        """Score the model on `blocks` (N, T), or read its scores from the cache."""
        from evaluation.perplexity import TextScore, score_text

        size = self.evaluator.config.batch_size
        inputs = {"model": self.fingerprint, "blocks": digest(blocks.tolist()), "batch_size": size}
        found = self.evaluator.cache.json("text", inputs, lambda: asdict(score_text(self.model, blocks, size)))
        return TextScore(**found)

    def zeroshot(self) -> dict[str, dict[str, Any]]:
        """Return metrics and outcomes of every task; empty when there are no tasks."""
        scored = self.evaluator.scored
        if self.fingerprint not in scored:
            scores = self.evaluator.tasks.score(self.model, self.evaluator.tokenizer, self.fingerprint)
            scored[self.fingerprint] = scores
        return scored[self.fingerprint]

    def probe(self) -> Probe:
        """Measure what the stability metric is made of; the zero-shot mean only where that is switched on."""
        text = self.text(self.evaluator.probe_blocks)
        zeroshot = self.evaluator.stability.zeroshot
        return Probe(text, self.zeroshot_metrics().get("zeroshot/mean") if zeroshot else None)

    def measure_control(self) -> tuple[dict[str, float], Probe]:
        """Return what is measured of the control under names without a stage, and its probe."""
        zeroshot = self.evaluator.config.control_zeroshot
        text = self.text(self.evaluator.probe_blocks)
        metrics = self.zeroshot_metrics() if zeroshot else {}
        probe = Probe(text, metrics.get("zeroshot/mean"))
        measured = {f"probe/{name}": value for name, value in probe.measures().items() if name != "zeroshot"}
        return metrics | measured, probe

    def measure(self) -> dict[str, float]:
        """Return zero-shot, perplexity and cost under their names without a stage."""
        from evaluation.cost import measure_cost

        metrics = self.zeroshot_metrics()
        metrics |= {f"probe/{name}": value for name, value in self.probe().measures().items() if name != "zeroshot"}
        for name, blocks in self.evaluator.text_blocks.items():
            metrics[f"ppl/{name}"] = self.text(blocks).perplexity
        if self.evaluator.config.cost.enabled:
            metrics |= measure_cost(self.model, self.evaluator.config.cost)
        return metrics

    def outcomes(self) -> dict[str, dict[str, Any]]:
        """Return what was found item by item and block by block: `zeroshot/<task>` and `texts/<name>` -> scores."""
        texts = {"probe": self.evaluator.probe_blocks} | self.evaluator.text_blocks
        found = {f"zeroshot/{task}": scores for task, scores in self.zeroshot().items()}
        for name, blocks in texts.items():
            found[f"texts/{name}"] = {"blocks": digest(blocks.tolist())} | asdict(self.text(blocks))
        return found

    def zeroshot_metrics(self) -> dict[str, float]:
        """Return the `zeroshot/*` metrics: every task, the mean of seven, the mean where the dense model beats chance."""
        from evaluation.zeroshot import zeroshot_metrics

        scores = self.zeroshot()
        return zeroshot_metrics(scores, dense=next(iter(self.evaluator.scored.values())))


def staged(stage: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics under the name of a stage: `dense/ppl/...`."""
    return {f"{stage}/{name}": value for name, value in metrics.items()}
