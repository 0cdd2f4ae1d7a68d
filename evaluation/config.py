"""What is measured of a model: the options of `evaluation`."""

from __future__ import annotations

from dataclasses import dataclass, field


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
