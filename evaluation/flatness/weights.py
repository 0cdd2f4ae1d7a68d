"""The weights that flatness is measured on, found again after cuts.

They are remembered by the module that holds them: pruning edits modules in place, and layers that leave renumber the others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from pruning.layout import DecoderLayout, decoder_layers, find_module, is_linear


@dataclass(frozen=True)
class Weight:
    """A parameter of a module."""

    module: nn.Module
    name: str


def choose_weights(model: PreTrainedModel, layout: DecoderLayout, patterns: Sequence[str] | None) -> list[Weight]:
    """Return the weights of the dense model that are asked for.

    Args:
        model: the dense model.
        layout: where it keeps its projections.
        patterns: regular expressions, one of which must be found in a weight's name; None for the output projection of
            attention and the down projection of the MLP (of all experts) at a quarter, half and three quarters of the depth.

    Raises:
        ValueError: a pattern is found in no name.
    """
    if patterns is None:
        return _projections(model, layout)
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(
                f"flatness.parameters={pattern}: is found in no name of this model's weights, which are like "
                f"{', '.join(names[1:4])}; take null for a choice that fits every model"
            )
    chosen = [name for name in names if any(re.search(pattern, name) for pattern in patterns)]
    return [Weight(model.get_submodule(path), own) for path, _, own in (name.rpartition(".") for name in chosen)]


def _projections(model: PreTrainedModel, layout: DecoderLayout) -> list[Weight]:
    layers = decoder_layers(model, layout)
    found = []
    for depth in sorted({len(layers) * quarter // 4 for quarter in (1, 2, 3)}):
        layer = layers[depth]
        experts = find_module(layer, layout.experts.module) if layout.experts else None
        if experts is not None:
            found.append(Weight(experts, "down_proj"))
        linear = (find_module(layer, path) for path in (layout.attention.output, layout.mlp.down))
        found += [Weight(module, "weight") for module in linear if module is not None and is_linear(module)]
    if not found:
        raise ValueError("flatness.parameters=null: the layers in question were cut out of this model; name weights")
    return found


def present_names(model: PreTrainedModel, weights: Sequence[Weight]) -> list[str]:
    """Return the names that the weights have in the model as it is now; those that were cut out have none."""
    paths = {module: path for path, module in model.named_modules()}
    return [f"{paths[weight.module]}.{weight.name}" for weight in weights if weight.module in paths]
