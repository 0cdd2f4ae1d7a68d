"""Putting corrections into a model, directly before the units leave."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.compensation.base import Correction
from pruning.layout import output_dim
from pruning.masking import masked
from pruning.units import PruningPlan, UnitGroup, removed_units


@torch.no_grad()
def compensate(model: PreTrainedModel, corrections: Mapping[str, Correction]) -> None:
    """Give the linear maps that will lose inputs their corrected weights and biases, in place.

    Called directly before `cut`, which takes away what leaves: until then the model computes something else.
    """
    for reader, correction in corrections.items():
        linear = model.get_submodule(reader)
        weight = model.get_parameter(f"{reader}.weight")
        if correction.weight is not None:
            weight.copy_(correction.weight.movedim(0, output_dim(linear)))
        if correction.added_bias is not None:
            _add_bias(linear, weight, correction.added_bias)


@contextmanager
def compensated(model: PreTrainedModel, corrections: Mapping[str, Correction]) -> Iterator[None]:
    """Correct the model inside the block only; afterwards it is what it was, to the last bit."""
    saved = [
        (model.get_submodule(reader), copy.deepcopy(model.get_submodule(reader).state_dict())) for reader in corrections
    ]
    try:
        compensate(model, corrections)
        yield
    finally:
        for linear, state in saved:
            if "bias" not in state and getattr(linear, "bias", None) is not None:
                linear.register_parameter("bias", None)
            linear.load_state_dict(state)


@contextmanager
def pruned_for_now(
    model: PreTrainedModel,
    groups: Mapping[str, UnitGroup],
    plan: PruningPlan,
    corrections: Mapping[str, Correction],
) -> Iterator[None]:
    """Let the model compute inside the block what it would after the cut; afterwards it is what it was, to the last bit."""
    with compensated(model, corrections), masked(model, groups, removed_units(plan, groups)):
        yield


def _add_bias(linear: nn.Module, weight: nn.Parameter, added: torch.Tensor) -> None:
    present = linear.bias
    if isinstance(present, nn.Parameter):
        present.copy_(present.double() + added)
    else:
        linear.bias = nn.Parameter(added.to(weight), requires_grad=weight.requires_grad)
