"""Equal widths by padding: zeros fill every layer up to the widest, so that the ordinary class loads the checkpoint.

The outputs stay what they are; the memory that pruning saved is given back. For programs that know nothing else.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.checkpoint import is_pruned
from pruning.grouping import find_units
from pruning.kinds import UnitKind
from pruning.layout import DecoderLayout, layer_widths
from pruning.pruned_model import ordinary_config
from pruning.structure import skeleton
from pruning.units import UnitGroup, from_positions, positions


def pad_to_equal_widths(model: PreTrainedModel, layout: DecoderLayout) -> PreTrainedModel:
    """Return a model of the ordinary class that computes what `model` does, all layers as wide as the widest.

    Raises:
        ValueError: zeros would change what the model computes: norms over all heads, biases by head on distance, experts;
            or its hidden width was cut in a family that cannot say so; or compensation added biases.
    """
    _check_paddable(model, layout)
    widths = layer_widths(model, layout)
    kv_heads = max(layer.kv_heads for layer in widths)
    share = max(layer.query_heads // layer.kv_heads for layer in widths if layer.kv_heads)
    widest = {
        layout.names.kv_heads: kv_heads,
        layout.names.query_heads: kv_heads * share,
        layout.names.mlp_channels: max(layer.mlp_channels for layer in widths),
    }
    try:
        padded = _built(model, {name: value for name, value in widest.items() if name})
        if layer_widths(padded, layout)[0].query_heads != kv_heads * share:
            raise ValueError("the head dimension follows from the number of heads")
    except (ValueError, RuntimeError):  # the family refuses such widths: back to those of the dense model
        padded = _built(model, {})
    _fill(padded, model, layout)
    padded.generation_config = model.generation_config
    nn.Module.to(padded, model.dtype)
    return padded.eval()


def _check_paddable(model: PreTrainedModel, layout: DecoderLayout) -> None:
    reasons = {
        "its norms run over all heads": layout.attention.query_norm is not None,
        "its heads have biases on distance": getattr(model.config, "alibi", layout.attention.alibi),
        "it is a mixture of experts": layout.experts is not None,
        "its hidden width was cut": is_pruned(model.config) and bool(model.config.pruned["base"]),
        "its ordinary class does not have the biases that compensation=bias added": _has_added_biases(model),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"{model.config.model_type}: cannot be padded to equal widths: {reason}")


def _has_added_biases(model: PreTrainedModel) -> bool:
    ordinary = dict(skeleton(model, model.config).named_parameters())
    return any(name.endswith(".bias") and name not in ordinary for name, _ in model.named_parameters())


def _built(model: PreTrainedModel, values: dict[str, int]) -> PreTrainedModel:
    """Return what the ordinary class builds with these configuration values."""
    config = ordinary_config(model.config)
    for name, value in values.items():
        setattr(config, name, value)
    config.validate_architecture()
    ordinary = getattr(type(model), "ordinary_class", type(model))
    return ordinary(config)


@torch.no_grad()
def _fill(padded: PreTrainedModel, model: PreTrainedModel, layout: DecoderLayout) -> None:
    """Copy what has one shape in both models, zero the rest, and put every unit in its place."""
    source = dict(model.named_parameters())
    for name, parameter in padded.named_parameters():
        if name in source and source[name].shape == parameter.shape:
            parameter.copy_(source[name])
        else:
            parameter.zero_()
    groups = find_units(model, layout)
    for name, group in find_units(padded, layout).items():
        if group.kind in (UnitKind.kv_group, UnitKind.mlp_channel) and name in groups:
            _place_units(padded, model, group, groups[name])
    padded.tie_weights()


def _place_units(padded: nn.Module, model: nn.Module, wide: UnitGroup, narrow: UnitGroup) -> None:
    for to, of in zip(wide.slices, narrow.slices, strict=True):
        target, source = padded.get_parameter(to.parameter), model.get_parameter(of.parameter)
        units, per_unit = of.indices.shape
        flat = positions(target, to.dims).clone()
        flat[to.indices[:units, :per_unit].flatten()] = positions(source, of.dims)[of.indices.flatten()].to(flat)
        target.copy_(from_positions(flat, target.shape, to.dims))
