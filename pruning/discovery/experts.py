"""Mixtures of experts: finding the stacked weights and their router, and proving the units that `ExpertsLayout` predicts.

Weights of experts are stacked parameters, not linear maps, so they are perturbed themselves, in a narrow copy: hidden
width NARROW, all E experts, all F channels. Letters: E experts, F channels, N tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from pruning.discovery.clamped import STREAM, ClampedModel
from pruning.discovery.modules import Unproved, is_experts
from pruning.discovery.perturbation import Influences
from pruning.layout import ExpertsLayout

NARROW = 3


def find_experts(model: ClampedModel, index: int, influences: Influences) -> ExpertsLayout | None:
    """Return where a layer keeps its mixture of experts, with paths inside the layer, or None where it has none.

    Raises:
        Unproved: there is no router that is one matrix (E, D), or several mixtures.
    """
    prefix = f"{model.layers}.{index}."
    found = [name for name in model.maps(index) if is_experts(model.model.get_submodule(name))]
    if not found:
        return None
    experts: Any = model.model.get_submodule(found[0])
    count, width, _ = experts.down_proj.shape
    routers = []
    for name, module in model.model.get_submodule(prefix[:-1]).named_modules():
        weights = list(module.parameters(recurse=False))
        bare = prefix + name not in model.widths and not list(module.buffers(recurse=False))
        matrix = [weight.shape for weight in weights] == [(count, width)]
        if matrix and bare and (STREAM, prefix + name) in influences:
            routers.append(name)
    if len(found) > 1 or len(routers) != 1:
        raise Unproved(found[-1], f"is not the one mixture of its layer with one router ({count}, {width}): {routers}")
    return ExpertsLayout(found[0].removeprefix(prefix), routers[0])


def prove_experts(model: ClampedModel, index: int, layout: ExpertsLayout) -> None:
    """Prove the units of a mixture.

    Channel f of an expert is rows f and F + f of its gate_up_proj and column f of its down_proj; a token depends on no
    expert but its own; row e of the router chooses expert e.

    Raises:
        Unproved: naming the module for which it does not hold.
    """
    prefix = f"{model.layers}.{index}."
    name, router = prefix + layout.module, prefix + layout.router
    experts = _narrow(model.model.get_submodule(name))
    count, channels = len(experts.down_proj), int(experts.down_proj.shape[2])
    for chosen in _halves(channels):
        if _moves(experts, torch.ones(count, dtype=torch.bool), chosen, columns=False).any():
            raise Unproved(
                name, "has channels that are not a row of each half of gate_up_proj and a column of down_proj"
            )
    for chosen in _halves(count):
        if not torch.equal(_moves(experts, chosen, torch.ones(channels, dtype=torch.bool), columns=True), chosen):
            raise Unproved(name, "has tokens that other experts than their own compute")
    for expert in range(count):
        if _chosen_expert(model, index, name, router, expert) != expert:
            raise Unproved(router, f"chooses another expert than {expert} by its row {expert}")


def _narrow(module: Any) -> Any:
    """Return a copy with its own forward function, random weights and hidden width NARROW."""
    random = torch.Generator().manual_seed(0)
    copied = copy.deepcopy(module)
    del copied.forward
    count, _, channels = module.down_proj.shape
    for name, shape in (("gate_up_proj", (count, 2 * channels, NARROW)), ("down_proj", (count, NARROW, channels))):
        values = 0.1 + torch.rand(shape, generator=random, dtype=torch.float64)
        setattr(copied, name, nn.Parameter(values, requires_grad=False))
    return copied


def _halves(size: int) -> Iterator[torch.Tensor]:
    """Return (size,) bool masks, two for every bit of the index: any two places are told apart both ways."""
    for bit in range(max(size - 1, 1).bit_length()):
        chosen = (torch.arange(size) >> bit) % 2 == 1
        yield chosen
        yield ~chosen


def _moves(experts: Any, chosen: torch.Tensor, channels: torch.Tensor, columns: bool) -> torch.Tensor:
    """Return which tokens (E,), one for each expert, change when the rows of some channels do.

    Args:
        experts: narrow; left as it was.
        chosen: (E,) the experts that are changed.
        channels: (F,) the channels that are.
        columns: whether the columns of these channels count; they are zero otherwise.
    """
    rows, read = experts.gate_up_proj.clone(), experts.down_proj.clone()
    if not columns:
        experts.down_proj[:, :, channels] = 0
    before = _outputs(experts)
    experts.gate_up_proj[chosen[:, None] & channels.repeat(2)] *= -2
    after = _outputs(experts)
    experts.gate_up_proj.copy_(rows)
    experts.down_proj.copy_(read)
    return ~torch.isclose(before, after).all(1)


def _outputs(experts: Any) -> torch.Tensor:
    """Return what every expert makes of the same token, (E, NARROW)."""
    count = len(experts.down_proj)
    states = torch.ones(count, NARROW, dtype=torch.float64)
    with torch.no_grad():
        return experts(states, torch.arange(count)[:, None], torch.ones(count, 1, dtype=torch.float64))


def _chosen_expert(model: ClampedModel, index: int, name: str, router: str, expert: int) -> int:
    """Return the expert that weighs most for the first token, when the router's row for `expert` is the token itself."""
    module: Any = model.model.get_submodule(router)
    zeros = module.weight
    token = model.run_layer(index, {})[router][0, 0]
    rows = torch.zeros(zeros.shape, dtype=torch.float64)
    rows[expert] = 10 * token / token.square().sum()
    given: list[tuple] = []
    hook = model.model.get_submodule(name).register_forward_pre_hook(lambda _, arguments: given.append(arguments))
    module.weight = nn.Parameter(rows, requires_grad=False)
    model.run_layer(index, {})
    module.weight = zeros
    hook.remove()
    _, experts, weights = given[0]
    return int(experts[0, weights[0].argmax()])
