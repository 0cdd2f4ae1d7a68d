"""Layouts by discovery: where a decoder that no family declares keeps its projections, found without reading names.

Every output channel of every linear map in a layer is perturbed (perturbation.py). What reads the residual stream, what
writes it, and what moves what in between tells which map is which (roles.py). Then the layout is proved (proof.py): the
units that it predicts must be the connected components that were measured, in every layer. What cannot be proved is
refused.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.discovery.clamped import BATCH, ClampedModel
from pruning.discovery.experts import find_experts, prove_experts
from pruning.discovery.modules import Unproved, is_norm
from pruning.discovery.perturbation import CHANGED, Influences, differences, influences
from pruning.discovery.proof import check_group, prove_group, prove_norm
from pruning.discovery.roles import Roles, attention_layout, find_roles, mlp_layout
from pruning.discovery.traits import adds_residual, config_names, has_alibi, reads_config
from pruning.grouping import HIDDEN, find_units
from pruning.layout import DISCOVERED, DecoderLayout, ExpertsLayout, MlpLayout, layer_widths
from pruning.units import UnitGroup, UnitKind


def discover_layout(model: PreTrainedModel) -> DecoderLayout:
    """Find the layout of a decoder by perturbation, and prove it. The model is not touched.

    Raises:
        ValueError: naming the module that does not fit, or whose part cannot be proved.
    """
    try:
        return _discover(model)
    except Unproved as error:
        reason = f"its layout cannot be proved: {error}"
    except Exception as error:  # whatever a foreign forward pass may raise
        reason = f"a copy of it cannot be run on {BATCH} short texts ({type(error).__name__}: {error})"
    raise ValueError(
        f"unsupported architecture: model_type={model.config.model_type!r} is not declared in pruning/families.py, and "
        f"{reason}. Declare it there: docs/extending.md, 'An architecture family'"
    )


def _discover(model: PreTrainedModel) -> DecoderLayout:
    if model.config.is_encoder_decoder:
        raise Unproved("", "is an encoder with a decoder")
    clamped = ClampedModel(model)
    _require_known(clamped)
    for norm in clamped.norms:
        prove_norm(clamped, norm)
    kinds = [_signature(layer) for layer in clamped.model.get_submodule(clamped.layers).children()]
    measured = {kinds.index(kind): influences(clamped, kinds.index(kind)) for kind in dict.fromkeys(kinds)}
    roles = {index: find_roles(clamped, index, moves) for index, moves in measured.items()}
    layout = _infer(model, clamped, roles, measured)
    groups = find_units(model, layout)
    _require_claimed(clamped, groups)
    for index in range(len(kinds)):
        _prove_layer(clamped, index, layout, groups, measured.get(index))
    if HIDDEN in groups:
        _prove_stream(clamped)
    attention = replace(
        layout.attention,
        alibi=has_alibi(clamped, layout, groups),
        reads_config=reads_config(clamped, layout, roles.values()),
    )
    return replace(layout, attention=attention, adds_residual=adds_residual(clamped, layout, roles.values()))


def _signature(layer: nn.Module) -> Hashable:
    """Return what layers that are built alike have in common: sizes, names and classes."""
    sizes = tuple((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters())
    return sizes, tuple((name, type(module)) for name, module in layer.named_modules())


def _infer(
    model: PreTrainedModel, clamped: ClampedModel, roles: Mapping[int, Roles], measured: Mapping[int, Influences]
) -> DecoderLayout:
    """Return the layout of the widest attention, MLP and mixture; whether it is that of all layers is for the proof."""
    attention = max(roles.values(), key=lambda role: sum(clamped.widths[name] for name in role.attention_sources))
    mlp = max(roles.values(), key=lambda role: sum(clamped.widths[name] for name in role.mlp_sources))
    experts = None
    for index, moves in measured.items():
        found = find_experts(clamped, index, moves)
        if found and roles[index].mlp:
            raise Unproved(roles[index].mlp or "", "is an MLP beside a mixture of experts")
        experts = found or experts
    if attention.attention is None or (mlp.mlp is None and experts is None):
        raise Unproved(clamped.layers, "has no attention, or no MLP and no mixture of experts, in any layer")
    layout = DecoderLayout(
        family=DISCOVERED,
        model_types=(model.config.model_type,),
        layers=clamped.layers,
        attention=attention_layout(clamped, attention, measured[attention.index]),
        mlp=_mlp_or_mixture(clamped, mlp, experts),
        experts=experts,
    )
    return replace(layout, names=config_names(model.config, layer_widths(model, layout)))


def _mlp_or_mixture(clamped: ClampedModel, role: Roles, experts: ExpertsLayout | None) -> MlpLayout:
    """Return the layout of the MLP; in a model of nothing but mixtures only the module of its paths means anything."""
    mlp = mlp_layout(clamped, role) if role.mlp else None
    if experts is None:
        assert mlp is not None
        return mlp
    block = experts.module.rpartition(".")[0]
    if mlp is None:
        return MlpLayout(up=f"{block}.up_proj", down=f"{block}.down_proj", gate=f"{block}.gate_proj")
    if mlp.down.rpartition(".")[0] != block:
        raise Unproved(role.mlp or "", f"does not lie in {block}, where other layers have a mixture of experts")
    return mlp


def _require_known(clamped: ClampedModel) -> None:
    """Raise when there are matrices outside the layers, beside embeddings and the head, or embeddings inside."""
    head = clamped.model.get_output_embeddings()
    if head is None:
        raise Unproved("", "has no language model head")
    for name, module in clamped.model.named_modules():
        inside = name.startswith(f"{clamped.layers}.")
        known = is_norm(module) or module is head or inside != isinstance(module, nn.Embedding)
        if not known and any(parameter.ndim > 1 for parameter in module.parameters(recurse=False)):
            raise Unproved(name, f"is a {type(module).__name__} {'inside' if inside else 'outside'} the decoder layers")


def _require_claimed(clamped: ClampedModel, groups: Mapping[str, UnitGroup]) -> None:
    """Raise when a matrix in a layer is no part of any unit."""
    claimed = {piece.parameter for group in groups.values() if not group.kind.is_depth for piece in group.slices}
    for name, parameter in clamped.model.get_submodule(clamped.layers).named_parameters(clamped.layers):
        if parameter.ndim > 1 and name not in claimed:
            raise Unproved(name, f"{tuple(parameter.shape)} is no part of any unit")


def _prove_layer(
    clamped: ClampedModel, index: int, layout: DecoderLayout, groups: Mapping[str, UnitGroup], moves: Influences | None
) -> None:
    """Prove the units of one layer by all influences in it or, where a layer like it has been proved, by random halves."""
    for group in groups.values():
        in_layer = group.layer == index and group.readers and not group.kind.is_depth
        if in_layer or group.kind is UnitKind.hidden:
            if moves is None:
                check_group(clamped, index, group)
            else:
                prove_group(clamped, index, group, moves)
    if layout.experts and moves is not None and find_experts(clamped, index, moves):
        prove_experts(clamped, index, layout.experts)


def _prove_stream(clamped: ClampedModel) -> None:
    """Change random halves of every embedding's channels, and see that these reach the head through all layers.

    Equal channels must stay equal, too: a constant that is added to the stream, and is no parameter, could not be cut.

    Raises:
        Unproved: naming the embedding whose channels are not those of the residual stream.
    """
    head = clamped.model.get_output_embeddings()
    name = next(name for name, module in clamped.model.named_modules() if module is head)
    equal = {place: torch.full_like(outputs, 0.5) for place, outputs in clamped.outputs.items()}
    with clamped.giving(equal):
        states = clamped.run({})[name]
    if (states - states[..., :1]).abs().max() > CHANGED:
        raise Unproved(name, "is given different numbers by equal channels: constants are added to the residual stream")
    for embedding in clamped.embeddings:
        chosen = torch.rand(BATCH, clamped.widths[embedding], generator=torch.Generator().manual_seed(0)) < 0.5
        chosen[0] = False
        reached = differences(name, clamped.run({embedding: chosen})[name]).any(1)
        if not torch.equal(reached, chosen):
            raise Unproved(embedding, "has channels that are not those of the residual stream, as the head reads it")
