"""Cutting a plan out of a model, and masking units for as long as a block of code runs.

The law that every family is tested for: a model with units cut gives the logits of the model with the same units masked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.families import DecoderLayout, layer_widths
from pruning.units import PruningPlan, UnitGroup, removed_units


def cut(model: PreTrainedModel, layout: DecoderLayout, groups: Mapping[str, UnitGroup], plan: PruningPlan) -> None:
    """Remove from `model`, in place, the units that `plan` does not keep, and record the widths in its configuration.

    Raises:
        ValueError: the plan does not fit; nothing has been touched then.
    """
    for (name, dim), indices in _positions(groups, removed_units(plan, groups)).items():
        _shrink(model, name, dim, indices)
    record_widths(model, layout)


@contextmanager
def masked(model: nn.Module, groups: Mapping[str, UnitGroup], removed: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """Hold the given units at zero inside the block; afterwards the weights are what they were, to the last bit."""
    positions = _positions(groups, removed)
    saved: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for (name, dim), indices in positions.items():
            parameter = model.get_parameter(name)
            saved.setdefault(name, parameter.clone())
            parameter.index_fill_(dim, indices.to(parameter.device), 0)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, values in saved.items():
                model.get_parameter(name).copy_(values)


def record_widths(model: PreTrainedModel, layout: DecoderLayout) -> None:
    """Write the widths of every layer into the configuration's own `per_layer_config`, so that saving keeps them.

    transformers makes the global values unreadable once layers differ; its caches and generation still ask for them, so
    reading them is allowed.
    """
    config = model.config
    config.per_layer_config = {
        index: {
            "num_attention_heads": widths.query_heads,
            "num_key_value_heads": widths.kv_heads,
            "intermediate_size": widths.mlp_channels,
        }
        for index, widths in enumerate(layer_widths(model, layout))
    }
    config.allow_global_per_layer_attribute_access = True


def _positions(
    groups: Mapping[str, UnitGroup], units: Mapping[str, Sequence[int]]
) -> dict[tuple[str, int], torch.Tensor]:
    """Return (parameter, dim) -> the sorted positions that the given units occupy there."""
    found: dict[tuple[str, int], list[torch.Tensor]] = defaultdict(list)
    for name, chosen in units.items():
        for piece in groups[name].slices:
            found[piece.parameter, piece.dim].append(piece.indices[torch.tensor(chosen)].flatten())
    return {place: torch.cat(parts).sort().values for place, parts in found.items()}


def _shrink(model: nn.Module, name: str, dim: int, removed: torch.Tensor) -> None:
    """Replace a parameter by what is left of it, and set its linear map's feature count."""
    owner = model.get_submodule(name.rpartition(".")[0])
    attribute = name.rpartition(".")[2]
    old = getattr(owner, attribute)
    stays = torch.ones(old.shape[dim], dtype=torch.bool)
    stays[removed] = False
    kept = stays.nonzero().flatten().to(old.device)
    new = nn.Parameter(old.detach().index_select(dim, kept).contiguous(), requires_grad=old.requires_grad)
    setattr(owner, attribute, new)
    if isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = owner.weight.shape
