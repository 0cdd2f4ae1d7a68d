"""The `flatness` options: whether the flatness of the loss is measured, on which weights, on what text, how exactly."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pruning.cache import Cache
    from pruning.layout import DecoderLayout

INSTALL = "pip install --constraint constraints.txt --editable '.[flatness]'"


class Space(Enum):
    """The weights that the loss is a function of."""

    layers = "layers"
    lora = "lora"


class FlatnessMeter:
    """Measures flatness at the stages of a run. This one measures nothing."""

    def measure(self, stage: str, model: PreTrainedModel, adapter: Path | None = None) -> dict[str, float]:
        """Return `flatness/<stage>/*`; the model is bit-identical afterwards.

        Args:
            stage: dense, pruned or recovered.
            model: the dense model as it is at that stage, cut and trained in place.
            adapter: the LoRA adapter that was merged into it last, in peft's own format.
        """
        return {}


@dataclass
class Flatness:
    """Base of the `flatness` options."""

    def meter(
        self,
        model: PreTrainedModel,
        layout: DecoderLayout,
        tokenizer: PreTrainedTokenizerBase,
        cache: Cache,
        trains_factors: bool,
    ) -> FlatnessMeter:
        """Return what measures one run.

        Args:
            model: the dense model.
            layout: where it keeps its projections.
            tokenizer: the model's.
            cache: where figures are kept by the model's fingerprint.
            trains_factors: whether the recovery leaves LoRA factors that its update can be taken apart into.

        Raises:
            ValueError: the model, the text or the recovery does not go with the option.
        """
        return FlatnessMeter()


@dataclass
class NoFlatness(Flatness):
    """Flatness is not measured."""


@dataclass
class MeasuredFlatness(Flatness):
    """Flatness before pruning, after it and after recovery, on the same text and, as far as they are left, the same weights."""

    space: Space = Space.layers
    """layers: some weights of the model, comparable between recoveries. lora: the factors of the adapters of the last
    training, of the recovered model only; they depend on rank, alpha and the scale that A and B share out between them."""

    parameters: list[str] | None = None
    """Regular expressions; the weights whose names one of them is found in, as the dense model names them. null: output
    projection of attention and down projection of the MLP, at a quarter, half and three quarters of the depth."""

    text: str = "passages"
    """Held-out text: a bundled corpus by name, or a .txt or .jsonl file."""

    samples: int = 128
    """Sequences for the second moment of the gradient (512 in the paper)."""

    curvature_samples: int = 4
    """Of these, spread evenly, the sequences for everything else."""

    length: int = 128
    """Tokens in each."""

    batch_size: int = 4
    """Sequences in one pass; must divide `curvature_samples`. Does not change the figures beyond rounding."""

    products: int = 30
    """Matrix-vector products for each trace."""

    eigenvalues: int = 10
    """Largest algebraic eigenvalues of the Hessian, and directions for epsilon (100 and 10 in the paper)."""

    iterations: int = 30
    """Lanczos steps, a Hessian-vector product each."""

    rise: float = 0.1
    """Rise in loss that epsilon is the shortest way to, nats per token."""

    rhos: list[float] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2])
    """Lengths of the step along the gradient, relative to the norm of the weights."""

    sigma: float = 0.1
    """Standard deviation of random displacements, relative to each weight."""

    draws: int = 8
    """Random displacements."""

    seed: int = 0
    """Of all random vectors; not the run's seed, so that runs are measured alike."""

    def __post_init__(self) -> None:
        """Check ranges, and that the library is there."""
        if find_spec("hessian_eigenthings") is None:
            raise ValueError(f"flatness: needs the extra 'flatness', which is not installed: {INSTALL}")
        least = {"samples": 2, "curvature_samples": 1, "length": 2, "batch_size": 1, "products": 6, "eigenvalues": 1}
        for name, low in (least | {"iterations": self.eigenvalues, "draws": 2}).items():
            if (value := getattr(self, name)) < low:
                raise ValueError(f"flatness.{name}={value}: must be at least {low}")
        if self.curvature_samples > self.samples:
            raise ValueError(
                f"flatness.curvature_samples={self.curvature_samples}: must be at most flatness.samples={self.samples}"
            )
        if self.curvature_samples % self.batch_size:
            raise ValueError(
                f"flatness.batch_size={self.batch_size}: must divide flatness.curvature_samples={self.curvature_samples}"
            )
        positive = {"rise": self.rise, "sigma": self.sigma} | {f"rhos[{i}]": rho for i, rho in enumerate(self.rhos)}
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"flatness.{name}={value:g}: must be above 0")
        for pattern in self.parameters or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"flatness.parameters={pattern}: is not a regular expression: {error}") from error

    def meter(
        self,
        model: PreTrainedModel,
        layout: DecoderLayout,
        tokenizer: PreTrainedTokenizerBase,
        cache: Cache,
        trains_factors: bool,
    ) -> FlatnessMeter:
        """Return what measures one run; see the base class."""
        from evaluation.flatness.stages import StageMeter
        from pruning.blocks import evenly_spaced_windows
        from pruning.documents import read_corpus

        if self.space is Space.lora and not trains_factors:
            raise ValueError(
                "flatness.space=lora: this recovery leaves no LoRA factors that its update can be taken apart into; use "
                "recovery=lora without use_dora, or flatness.space=layers"
            )
        documents, purpose = read_corpus(self.text, "flatness.text"), f"flatness.text={self.text}"
        blocks = evenly_spaced_windows(documents, tokenizer, self.length, self.samples, purpose=purpose)
        return StageMeter(self, model, layout, blocks, cache)
