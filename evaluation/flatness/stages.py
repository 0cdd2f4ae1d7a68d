"""Measures flatness at the stages of one run: the same text, the same weights, each model only once."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from evaluation.flatness.config import FlatnessMeter, MeasuredFlatness, Space
from evaluation.flatness.curvature import gauss_newton, hessian
from evaluation.flatness.factors import unmerged
from evaluation.flatness.figures import flatness_figures
from evaluation.flatness.landscape import LossLandscape, differentiable_twice
from evaluation.flatness.weights import choose_weights, present_names
from pruning.cache import Cache, digest, file_digest
from pruning.layout import DecoderLayout
from pruning.model import fingerprint

log = logging.getLogger(__name__)


class StageMeter(FlatnessMeter):
    """What measures one run."""

    def __init__(
        self,
        config: MeasuredFlatness,
        model: PreTrainedModel,
        layout: DecoderLayout,
        blocks: torch.Tensor,
        cache: Cache,
    ) -> None:
        """Choose the weights in the dense model, and try whether it can be differentiated twice.

        Raises:
            ValueError: there are no such weights, or it cannot.
        """
        self.config = config
        self.blocks = blocks
        self.cache = cache
        self.weights = choose_weights(model, layout, config.parameters)
        self._try(model)
        log.info("flatness: %s", cost(config))

    def measure(self, stage: str, model: PreTrainedModel, adapter: Path | None = None) -> dict[str, float]:
        """Return `flatness/<stage>/*`, or nothing where the weights in question are not there; see the base class."""
        names = present_names(model, self.weights)
        if self.config.space is Space.lora:
            if adapter is None:
                return {}
            own: dict[str, Any] = {"adapter": adapter_digest(adapter)}
        elif names:
            own = {"names": names}
        else:
            log.warning("flatness: all weights that it is measured on were cut out of the %s model", stage)
            return {}
        inputs = {
            "model": fingerprint(model),
            "settings": asdict(self.config),
            "blocks": digest(self.blocks.tolist()),
            "library": version("hessian-eigenthings"),
        }
        found = self.cache.json("flatness", inputs | own, lambda: self._figures(model, names, adapter))
        return {f"flatness/{stage}/{name}": math.nan if value is None else value for name, value in found.items()}

    def _figures(self, model: PreTrainedModel, names: list[str], adapter: Path | None) -> dict[str, float]:
        with (
            self._place(in_float32(model), names, adapter) as (measured, chosen),
            differentiable_twice(measured, chosen),
        ):
            return flatness_figures(self._landscape(measured, chosen), self.blocks, self.config)

    @contextmanager
    def _place(
        self, model: PreTrainedModel, names: list[str], adapter: Path | None
    ) -> Iterator[tuple[PreTrainedModel, list[str]]]:
        if self.config.space is Space.layers:
            yield model, names
        else:
            assert adapter is not None
            with unmerged(model, adapter) as factored:
                yield factored

    def _landscape(self, model: PreTrainedModel, names: list[str]) -> LossLandscape:
        count = self.config.curvature_samples
        spread = torch.arange(count) * len(self.blocks) // count
        return LossLandscape(model, names, self.blocks[spread], self.config.batch_size)

    def _try(self, model: PreTrainedModel) -> None:
        """Take one product of each kind on the beginning of one sequence."""
        names, model = present_names(model, self.weights), in_float32(model)
        try:
            with differentiable_twice(model, names):
                landscape = LossLandscape(model, names, self.blocks[:1, :4], 1)
                for operator in (hessian(landscape), gauss_newton(landscape)):
                    operator.matvec(landscape.weights)
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(
                f"flatness: {type(model).__name__} cannot be differentiated twice ({error}): use flatness=none"
            ) from error


def in_float32(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model, or a copy in float32 where it holds anything else."""
    if all(parameter.dtype == torch.float32 for parameter in model.parameters()):
        return model
    return deepcopy(model).float()


def adapter_digest(adapter: Path) -> dict[str, str]:
    """Return what names the contents of an adapter's folder."""
    return {name: file_digest(adapter / name) for name in ("adapter_config.json", "adapter_model.safetensors")}


def cost(config: MeasuredFlatness) -> str:
    """Say what a stage takes, with the measured cost of each kind of pass: a gradient 2 forward passes, a product 5.

    The losses are those of epsilon where the second and later directions are tried once, and all others.
    """
    products = 2 * config.products + config.iterations
    losses = 25 + 2 * config.eigenvalues + len(config.rhos) + config.draws
    forward = 2 * config.samples + config.curvature_samples * (5 * products + losses)
    return (
        f"at each stage {config.samples} gradients of one sequence, {products} products with matrices and about {losses} "
        f"losses on {config.curvature_samples} sequences: as long as {forward:,} forward passes of {config.length} tokens"
    )
