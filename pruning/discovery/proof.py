"""Whether units are what they claim to be: their rows and columns against what perturbation measures.

A place is a side of a module: the outputs ("out") or inputs ("in") of a linear map, or the channels of a norm ("norm").
Groups of units claim channels of places; influences connect channels of places. A group is proved when its units are the
connected components, no channel more and none less.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pruning.discovery.clamped import BATCH, STREAM, ClampedModel
from pruning.discovery.modules import Unproved, is_experts
from pruning.discovery.perturbation import CHANGED, Influences, changes
from pruning.layout import is_linear, output_dim
from pruning.units import UnitGroup, UnitKind, UnitSlice

Place = tuple[str, str]
Claims = dict[Place, torch.Tensor]
"""Place -> (C,) int64, the unit that each of its channels belongs to; -1 for none."""


def prove_group(model: ClampedModel, index: int, group: UnitGroup, influences: Influences) -> None:
    """Hold the units of a group, or the share that a layer has of the hidden width, against all influences in the layer.

    Args:
        model: see clamped.py.
        index: of the layer.
        group: KV groups, query heads, MLP channels or the hidden width.
        influences: all that `perturbation.influences` measured in this layer.

    Raises:
        Unproved: naming a module where they differ.
    """
    claims = claims_of(model, index, group)
    queries = group.kind is UnitKind.query_head
    pairs = []
    for (source, sink), influence in influences.items():
        start, end = (source, "out"), (sink, "norm" if sink in model.norms else "in")
        if start not in claims:
            if end in claims and not queries:
                raise Unproved(source, f"moves {sink or 'the residual stream'}, but is no part of {group.name}")
            continue
        if group.kind is UnitKind.hidden and len(influence.later):
            raise Unproved(sink or model.layers, "reads the residual stream of earlier tokens")
        owned = [edges[claims[start][edges[:, 0]] >= 0] for edges in (influence.here, influence.later)]
        if queries and len(owned[1]):
            raise Unproved(source, "has rows in the place of queries that other tokens read")
        edges = torch.cat(owned)
        if end in claims:
            pairs.append((start, end, edges))
        elif len(edges) and (group.kind is not UnitKind.hidden or _has_parameters(model, sink)):
            _require_shared(group, sink, end, claims[start], edges)
    _require_components(group, claims, pairs)


def check_group(model: ClampedModel, index: int, group: UnitGroup) -> None:
    """Change random halves of the units of a group, and see that exactly the columns that they claim change.

    Raises:
        Unproved: naming a module where they differ.
    """
    claims = claims_of(model, index, group)
    chosen = torch.rand(BATCH, group.num_units, generator=torch.Generator().manual_seed(index)) < 0.5
    chosen[0] = False
    expected = {place: chosen[:, labels.clamp(min=0)] & (labels >= 0) for place, labels in claims.items()}
    changed = changes(model, index, {name: units for (name, side), units in expected.items() if side == "out"})
    for (name, side), units in expected.items():
        if side != "out" and not torch.equal(changed[name].any(1), units):
            raise Unproved(name, f"does not follow the units of {group.name} as it does in layers like it")


def prove_norm(model: ClampedModel, name: str) -> None:
    """See that a norm treats all channels alike, and that its parameters are one number for each.

    Raises:
        Unproved: it does not, so that channels cannot leave it.
    """
    if name not in model.norm_channels:
        raise Unproved(name, "is a norm that is never used")
    forward, module, channels = model.norms[name], model.model.get_submodule(name), model.norm_channels[name]
    random = torch.Generator().manual_seed(0)
    states = torch.randn(2, channels, generator=random, dtype=torch.float64)
    for parameter in module.parameters():
        if parameter.shape != (channels,):
            raise Unproved(name, f"is a norm of {channels} channels with a parameter of shape {tuple(parameter.shape)}")
    with torch.no_grad():
        before, order = forward(states), torch.randperm(states.shape[1], generator=random)
        if not torch.allclose(forward(states[:, order]), before[:, order], atol=1e-5):
            raise Unproved(name, "is a norm that treats channels differently")
        for parameter in module.parameters():
            chosen = torch.rand(len(parameter), generator=random) < 0.5
            parameter[chosen] += 1
            changed = (forward(states) - before).abs() > CHANGED
            parameter[chosen] -= 1
            if not torch.equal(changed, chosen.expand_as(changed)):
                raise Unproved(name, "is a norm whose parameters do not go with channels one to one")


def claims_of(model: ClampedModel, index: int, group: UnitGroup) -> Claims:
    """Return the channels that a group claims in a layer. The hidden width claims the layer's input and output, too.

    Norms that are given nothing but zeros, after a sublayer that was cut out, are left out: they tell nothing.
    """
    claims: Claims = {}
    seen = model.run_layer(index, {})
    idle = {name for name in model.norms if name in seen and not seen[name].any()}
    for piece in group.slices:
        name = piece.parameter.rpartition(".")[0]
        if piece.parameter.startswith(f"{model.layers}.{index}.") and name not in idle:
            width = model.model.get_parameter(piece.parameter).shape[piece.dims[-1]]
            labels = claims.setdefault(_place(model, piece), torch.full((width,), -1))
            labels[piece.indices] = torch.arange(group.num_units)[:, None].expand_as(piece.indices)
    if group.kind is UnitKind.hidden:
        claims[STREAM, "out"] = claims[STREAM, "in"] = torch.arange(group.num_units)
    return claims


def _place(model: ClampedModel, piece: UnitSlice) -> Place:
    """Return the place that a slice's dimension is."""
    name, _, attribute = piece.parameter.rpartition(".")
    module = model.model.get_submodule(name)
    if name in model.norms:
        return name, "norm"
    if is_experts(module):
        return name, "out" if attribute == "down_proj" else "in"
    outputs = output_dim(module) if is_linear(module) else 0
    return name, "out" if attribute == "bias" or piece.dims == (outputs,) else "in"


def _has_parameters(model: ClampedModel, name: str) -> bool:
    return any(True for _ in model.model.get_submodule(name).parameters())


def _require_shared(group: UnitGroup, sink: str, end: Place, labels: torch.Tensor, edges: torch.Tensor) -> None:
    """Raise unless every unit moves every channel of a norm that no unit claims: only then can units leave without it."""
    if end[1] != "norm":
        raise Unproved(sink, f"is moved by {group.name}, but is no part of it")
    touched = torch.zeros(group.num_units, int(edges[:, 1].max()) + 1, dtype=torch.bool)
    touched[labels[edges[:, 0]], edges[:, 1]] = True
    if not touched.all():
        raise Unproved(sink, f"has channels that belong to single units of {group.name}, but is no part of them")


def _require_components(group: UnitGroup, claims: Claims, pairs: Sequence[tuple[Place, Place, torch.Tensor]]) -> None:
    """Raise unless the claimed units are the connected components of the pairs of channels."""
    starts, total = {}, 0
    for place, labels in claims.items():
        starts[place], total = total, total + len(labels)
    edges = torch.cat([edges + torch.tensor([starts[a], starts[b]]) for a, b, edges in pairs] or [torch.empty(0, 2)])
    graph = coo_matrix((torch.ones(len(edges)), edges.T.long().numpy()), shape=(total, total))
    measured = torch.from_numpy(connected_components(graph, directed=False)[1]).long()
    claimed = torch.cat(list(claims.values()))
    inside = claimed >= 0
    wrong = inside & (_first_equal(measured) != _first_equal(claimed))
    if group.kind is not UnitKind.query_head:
        wrong |= ~inside
    for (name, _), labels in claims.items():
        start = starts[name, _]
        if wrong[start : start + len(labels)].any():
            channel = int(wrong[start : start + len(labels)].nonzero()[0])
            raise Unproved(name, f"channel {channel} does not go with the others of its unit in {group.name}")


def _first_equal(labels: torch.Tensor) -> torch.Tensor:
    """Return, for every place, the first that has the same label: equal for equal partitions, whatever the labels."""
    _, inverse = labels.unique(return_inverse=True)
    places = torch.arange(len(labels))
    first = torch.full((len(labels),), len(labels)).scatter_reduce(0, inverse, places, "amin")
    return first[inverse]
