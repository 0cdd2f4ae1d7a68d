"""What else a layout says of a discovered architecture: biases by head, what modules add and read, configuration keys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from pruning.discovery.clamped import BATCH, STREAM, ClampedModel
from pruning.discovery.modules import Unproved
from pruning.discovery.perturbation import differences
from pruning.discovery.roles import Roles
from pruning.layout import ConfigNames, DecoderLayout, LayerWidths, find_module
from pruning.pruned_model import own_config
from pruning.units import UnitGroup, UnitKind

KEYS = {
    "query_heads": r"(num_(attention_)?|n_)heads?",
    "kv_heads": r".*(kv_heads?|key_value_heads|head_kv|multi_query_group_num)",
    "mlp_channels": r"(?!.*shared).*(intermediate_size|inner(_dim)?|ffn_(hidden_size|dim)|ffn_hidden|d_ff)",
    "experts": r"(num_(local_)?|n_(routed_)?)experts",
}
"""Width of `LayerWidths` -> pattern of the configuration keys that may hold it."""

BIASES = ("alibi", "attention_mask")
"""Arguments of an attention that may hold a bias of its own for every head."""


def config_names(config: PreTrainedConfig, widths: list[LayerWidths]) -> ConfigNames:
    """Return the configuration keys of the widths: of those so named, one that holds the widest layer's, or None.

    A model that was pruned before may have other widths than its configuration says; then the name alone decides.
    """
    mixtures = [layer for layer in widths if layer.experts]
    names: dict[str, str | None] = {}
    for part, pattern in KEYS.items():
        widest = max(getattr(layer, part) for layer in mixtures or widths)
        values = {key: value for key, value in vars(config).items() if re.fullmatch(pattern, key)}
        exact = [key for key, value in values.items() if value == widest]
        loose = [key for key, value in values.items() if value is None or (isinstance(value, int) and value > widest)]
        names[part] = ([*exact, *loose] or [None])[0] if widest else None  # type: ignore[list-item]
    return ConfigNames(**names)


def has_alibi(model: ClampedModel, layout: DecoderLayout, groups: Mapping[str, UnitGroup]) -> bool:
    """Say whether heads differ by a bias that the model hands to its attentions.

    Raises:
        Unproved: units of a layer differ by anything else, although their weights are equal.
    """
    found = set()
    for group in groups.values():
        if group.kind is UnitKind.mlp_channel and group.readers and not _units_alike(model, group, 1):
            raise Unproved(group.readers[0], "is given different numbers by equal channels")
        if group.kind is UnitKind.kv_group:
            found.add(_has_bias_by_head(model, layout, group))
    if len(found) > 1:
        raise Unproved(model.layers, "have a bias by head in some layers only")
    if True in found and getattr(model.model.config, "alibi", True) is False:
        raise Unproved(model.layers, "have a bias by head, but config.alibi is false")
    return True in found


def adds_residual(model: ClampedModel, layout: DecoderLayout, roles: Iterable[Roles]) -> bool:
    """Say whether attention and MLP add the residual, their second argument, themselves.

    Raises:
        Unproved: one does and the other does not; or they do not return what a skipped one would.
    """
    found: dict[str, bool] = {}
    for role in roles:
        layer = model.model.get_submodule(f"{model.layers}.{role.index}")
        parent = layout.mlp.down.rpartition(".")[0]
        parts: dict[str, type] = {layout.attention.module: tuple} if role.attention else {}
        if parent and (role.mlp or (layout.experts and find_module(layer, layout.experts.module))):
            parts[parent] = torch.Tensor
        for path, kind in parts.items():
            name = f"{model.layers}.{role.index}.{path}"
            output, arguments = _output_of(model, role.index, name)
            if kind is tuple and isinstance(output, tuple) and len(output) == 2:
                output = output[0]
            elif kind is tuple or not isinstance(output, torch.Tensor):
                wanted = "a tuple of two" if kind is tuple else "one tensor"
                raise Unproved(name, f"returns {type(output).__name__}, not {wanted}")
            found[name] = bool(differences(name, output).any())
            if found[name] and not (len(arguments) > 1 and isinstance(arguments[1], torch.Tensor)):
                raise Unproved(name, "adds the residual itself, but not from its second argument")
    for name, adds in found.items():
        if adds != next(iter(found.values())):
            raise Unproved(
                name, f"{'adds' if adds else 'does not add'} the residual itself, unlike {next(iter(found))}"
            )
    return any(found.values())


def reads_config(model: ClampedModel, layout: DecoderLayout, roles: Iterable[Roles]) -> bool:
    """Say whether attentions take their number of query heads from their configuration while they run.

    Raises:
        Unproved: a module takes another width, or one in another place.
    """
    found = set()
    for role in roles:
        layer = model.model.get_submodule(f"{model.layers}.{role.index}")
        for path, module in layer.named_modules():
            for part, key in vars(layout.names).items():
                if key is not None and isinstance(getattr(module, "config", None), PreTrainedConfig):
                    reads = _follows_config(model, role, module, key)
                    if reads and (part, path) != ("query_heads", layout.attention.module):
                        raise Unproved(f"{model.layers}.{role.index}.{path}", f"reads config.{key} while it runs")
                    found.add(reads)
    return True in found


def _has_bias_by_head(model: ClampedModel, layout: DecoderLayout, group: UnitGroup) -> bool:
    """Say whether equal heads give equal numbers only once the biases in the attention's arguments are made equal."""
    head_dim = layout.attention.head_dim
    assert head_dim is not None
    if _units_alike(model, group, head_dim):
        return False
    name = f"{model.layers}.{group.layer}.{layout.attention.module}"
    heads = group.slices[-1].indices.numel() // head_dim

    def equal(_: nn.Module, arguments: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return arguments, {key: _first_head(value, heads) if key in BIASES else value for key, value in named.items()}

    hook = model.model.get_submodule(name).register_forward_pre_hook(equal, with_kwargs=True)
    alike = _units_alike(model, group, head_dim)
    hook.remove()
    if not alike:
        raise Unproved(name, f"treats equal heads differently, by more than its arguments {BIASES}")
    return True


def _first_head(bias: Any, heads: int) -> Any:
    """Return biases (B x H, 1, T) or (B, H, T or 1, T) with the first head's for all."""
    if isinstance(bias, torch.Tensor) and bias.ndim == 3 and len(bias) == BATCH * heads:
        return bias.unflatten(0, (-1, heads))[:, :1].expand(-1, heads, -1, -1).flatten(0, 1)
    if isinstance(bias, torch.Tensor) and bias.ndim == 4 and bias.shape[1] == heads:
        return bias[:, :1].expand_as(bias)
    return bias


def _units_alike(model: ClampedModel, group: UnitGroup, size: int) -> bool:
    """Say whether what reads the units is given equal numbers by all, when the maps before it give the same to all.

    Args:
        model: see clamped.py.
        group: units of a layer.
        size: channels of a head, or 1.
    """
    assert group.layer is not None
    outputs: dict[str, torch.Tensor] = {}
    for piece in group.slices[:-1]:
        name = piece.parameter.rpartition(".")[0]
        if name in model.widths:
            outputs[name] = outputs.get(name, model.outputs[name]).clone()
            pattern = outputs[name][:, piece.indices[0, :size]]
            outputs[name][:, piece.indices] = pattern.repeat(1, piece.indices.shape[1] // size)[:, None]
    with model.giving(outputs):
        values = model.run_layer(group.layer, {})[group.readers[0]][0]
    units = values[:, group.slices[-1].indices.flatten()].unflatten(1, (-1, size))
    return _alike(units, units[:, :1].expand_as(units))


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-5)


def _output_of(model: ClampedModel, index: int, name: str) -> tuple[Any, tuple]:
    """Return what a module returns when the layer's input is changed in all samples but the first, and its arguments."""
    kept: list[tuple[Any, tuple]] = []
    hook = model.model.get_submodule(name).register_forward_hook(lambda _, given, output: kept.append((output, given)))
    moved = torch.ones(BATCH, model.widths[STREAM], dtype=torch.bool)
    moved[0] = False
    model.run_layer(index, {STREAM: moved})
    hook.remove()
    return kept[0]


def _follows_config(model: ClampedModel, role: Roles, module: nn.Module, key: str) -> bool:
    """Say whether a layer computes something else, or nothing, when one module's configuration has another value."""
    config = module.config
    before = model.run_layer(role.index, {})
    own_config(module, {key: 2 * (getattr(config, key) or 1)})
    try:
        after = model.run_layer(role.index, {})
    except Exception:  # whatever a forward pass raises that does not fit its weights
        return True
    finally:
        module.config = config
    return any(not _alike(after[name], values) for name, values in before.items())
