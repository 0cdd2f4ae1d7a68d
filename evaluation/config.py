"""What is measured of a model: the options of `evaluation`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class CostConfig:
    """Shapes and repetitions of the cost measurement."""

    enabled: bool = True
    macs_tokens: int = 64
    """Tokens in the one sequence that multiply-accumulates are counted for (64 in LLM-Pruner's tables)."""

    batch_sizes: list[int] = field(default_factory=lambda: [1, 8])
    """Sequences that are run at once; speeds are taken at each."""

    prefill_tokens: int = 128
    decode_tokens: int = 8
    repetitions: int = 5
    """Timed repetitions after one that warms up; their median and interquartile range are reported."""

    paired: bool = True
    """Whether the pruned and the recovered model are timed in turn with the dense one, for the speed-ups. It is loaded again
    for that, so memory must hold two models for that moment."""

    def __post_init__(self) -> None:
        lowest = {"macs_tokens": 1, "prefill_tokens": 1, "decode_tokens": 1, "repetitions": 2}
        for name, low in lowest.items():
            if (value := getattr(self, name)) < low:
                raise ValueError(f"evaluation.cost.{name}={value}: must be at least {low}")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(
                f"evaluation.cost.batch_sizes={self.batch_sizes}: must be one or more numbers of at least 1, such as [1, 8]"
            )


@dataclass
class EvaluationConfig:
    """What is measured of the dense, the pruned and the recovered model."""

    tasks: list[str] = field(default_factory=list)
    """Names of lm-eval tasks; the seven of LLM-Pruner's mean and lambada_openai come with the installation."""

    items: int | None = None
    """Items scored of each task, from the first on; null for all."""

    num_fewshot: int = 0
    """Solved examples in the prompt; needs training items."""

    noise_items: int | None = None
    """Items of each task that are scored once more, each alone, by the dense model: how far the shape of a batch moves
    its scores. null: 25 in 16-bit types, none in float32; 0: none."""

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
    """Blocks of text in one forward pass; of blocks longer than 128 tokens, as many tokens as in so many of 128."""

    generations: int = 4
    """Prompts from the text of the probes (stability.text) that each model continues, for a person to read; 0 for none."""

    cost: CostConfig = field(default_factory=CostConfig)

    def __post_init__(self) -> None:
        for name, low in (
            ("items", 1),
            ("text_tokens", 2),
            ("batch_size", 1),
            ("num_fewshot", 0),
            ("noise_items", 0),
            ("generations", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"evaluation.{name}={value}: must be at least {low}")
        if any(window < 2 for window in self.windows):
            raise ValueError(f"evaluation.windows={self.windows}: every window must be at least 2 tokens")
        if self.texts and self.text_tokens is not None and self.text_tokens < max(self.windows, default=0):
            raise ValueError(
                f"evaluation.text_tokens={self.text_tokens}: must be at least the largest window ({max(self.windows)})"
            )
