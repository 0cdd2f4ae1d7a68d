"""Keeping a model's configuration true: after every cut it describes the model as it is.

Equal widths stand in the configuration's own keys, and the ordinary class loads them. Otherwise `per_layer_config` says
the widths of each layer, and `config.pruned` how the model differs from what its ordinary class builds; the difference is
taken from the two models, so that it holds for every family.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from pruning.layout import DecoderLayout, LayerWidths, decoder_layers, head_dimension, layer_widths, weight_of
from pruning.pruned_model import LEAF_SIZES, SkippedSublayer, ordinary_config

Structure = dict[str, dict[str, Any]]

NOT_STRUCTURE = ("training", "gradient_checkpointing", *LEAF_SIZES)


def record_structure(model: PreTrainedModel, layout: DecoderLayout) -> None:
    """Write the model's present widths and parts into its configuration."""
    config = model.config
    before = config.__dict__.pop("pruned", {"base": {}})
    config.per_layer_config = None
    _set_all(config, before["base"])
    widths = layer_widths(model, layout)
    uniform = _uniform_values(model, layout, widths)
    hidden = uniform.get("hidden_size", config.hidden_size)
    if hidden != config.hidden_size and getattr(config, "head_dim", None) is None:
        config.head_dim = head_dimension(decoder_layers(model, layout)[0], layout)  # no longer what the others imply
    if _fits(model, config, uniform):
        _set_all(config, uniform)
        _share_config(model)
        return
    base = {"hidden_size": config.hidden_size} if hidden != config.hidden_size else {}
    config.pruned = {"base": base, **difference(model, skeleton(model, config))}
    config.hidden_size = hidden
    _record_per_layer(config, layout, widths)


def difference(model: nn.Module, ordinary: nn.Module) -> Structure:
    """Return in what a pruned model differs from an ordinary one: the `config.pruned` of pruned_model.py."""
    expected = dict(ordinary.named_modules())
    structure: Structure = {"skipped": {}, "attributes": {}, "configs": {}, "shapes": {}}
    for name, module in model.named_modules():
        other = expected.get(name)
        if isinstance(module, SkippedSublayer):
            structure["skipped"][name] = _numbers(module)
        elif isinstance(module, nn.Identity) and not isinstance(other, nn.Identity):
            structure["skipped"][name] = "identity"
        elif other is not None:
            known = _numbers(other)
            changed = {name: value for name, value in _numbers(module).items() if known.get(name) != value}
            if changed:
                structure["attributes"][name] = changed
            if values := getattr(module, "own_config_values", None):
                structure["configs"][name] = values
    sizes = {name: parameter.shape for name, parameter in ordinary.named_parameters()}
    structure["shapes"] = {
        name: list(parameter.shape)
        for name, parameter in model.named_parameters()
        if sizes.get(name) != parameter.shape and (name in sizes or _is_added_bias(name, expected))
    }
    return structure


def skeleton(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Return what the model's ordinary class builds from a configuration, without memory for its weights."""
    ordinary = getattr(type(model), "ordinary_class", type(model))
    with torch.device("meta"):
        return ordinary(ordinary_config(config))


def _uniform_values(model: PreTrainedModel, layout: DecoderLayout, widths: list[LayerWidths]) -> dict[str, Any]:
    """Return the configuration values of all widths that are equal in every layer."""
    names = vars(layout.names)
    values: dict[str, Any] = {}
    if not layout.runs_on_hidden_size:
        values["hidden_size"] = weight_of(model.get_input_embeddings()).shape[1]
    for part, name in names.items():
        found = {getattr(layer, part) for layer in widths if part != "experts" or layer.experts}
        if name is not None and len(found) == 1:
            values[name] = found.pop()
    return {name: value for name, value in values.items() if _has(model.config, name)}


def _fits(model: PreTrainedModel, config: PreTrainedConfig, values: dict[str, Any]) -> bool:
    """Say whether the ordinary class, built with these values, is the model."""
    trial = ordinary_config(config)
    _set_all(trial, values)
    try:
        trial.validate_architecture()
        structure = difference(model, skeleton(model, trial))
    except (ValueError, RuntimeError, ZeroDivisionError):  # the family refuses such widths
        return False
    return not any(values for part, values in structure.items() if part != "configs")


def _share_config(model: PreTrainedModel) -> None:
    """Take back the configurations of their own that modules had while widths differed."""
    for module in model.modules():
        if hasattr(module, "own_config_values"):
            module.config = model.config  # type: ignore[assignment]
            del module.own_config_values


def _record_per_layer(config: PreTrainedConfig, layout: DecoderLayout, widths: list[LayerWidths]) -> None:
    """Write the widths of every layer into transformers' own `per_layer_config`, under the family's own names.

    transformers makes the global values unreadable once layers differ; its caches and generation still ask for them, so
    reading them is allowed.
    """
    names = {part: name for part, name in vars(layout.names).items() if name is not None and _has(config, name)}
    layers: dict[int | str, dict[str, Any]] = {}
    for index, layer in enumerate(widths):
        values: dict[str, Any] = {name: getattr(layer, part) for part, name in names.items() if getattr(layer, part)}
        gone = [part for part, width in (("attention", layer.kv_heads), ("mlp", layer.mlp_channels)) if not width]
        layers[index] = values | ({"skip": gone} if gone else {})
    if all(values == layers[0] for values in layers.values()):
        return
    config.allow_global_per_layer_attribute_access = True
    config.per_layer_config = layers
    try:
        config.validate_architecture()
    except ValueError:  # some families insist on heads that divide the hidden size
        for values in layers.values():
            values.pop(names.get("query_heads", ""), None)
        config.per_layer_config = layers


def _numbers(module: nn.Module) -> dict[str, Any]:
    """Return the plain numbers among a module's attributes, which widths are made of, but those that weights tell."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in NOT_STRUCTURE and _is_plain(value)
    }


def _is_added_bias(name: str, ordinary: dict[str, nn.Module]) -> bool:
    """Say whether a parameter is the bias of a module that ordinarily has none (compensation adds such)."""
    owner, _, part = name.rpartition(".")
    return part == "bias" and owner in ordinary and getattr(ordinary[owner], "bias", False) is None


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(item, int) for item in value)
    return isinstance(value, bool | int | float)


def _has(config: PreTrainedConfig, name: str) -> bool:
    return hasattr(config, name)


def _set_all(config: PreTrainedConfig, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(config, name, value)
