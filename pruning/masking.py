"""Holding units at zero for as long as a block of code runs: what cutting them must be equal to.

`masked` sets weights to zero; `silenced` does the same to a model that is being trained, by hooks.

A norm over units (the hidden width; OLMo 2's query and key norms) takes its statistics over the units that are left, and
a router chooses among the experts that are left.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from pruning.units import Places, UnitGroup, UnitKind, from_positions, positions, removed_places


@contextmanager
def masked(model: nn.Module, groups: Mapping[str, UnitGroup], removed: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """Hold the given units at zero inside the block; afterwards the weights are what they were, to the last bit.

    Args:
        model: in place.
        groups: the model's groups.
        removed: group name -> units.
    """
    experts = {
        groups[name].slices[0].parameter.rpartition(".")[0]: units
        for name, units in removed.items()
        if groups[name].kind is UnitKind.expert
    }
    with ExitStack() as stack:
        by_parameter = removed_places(groups, removed)
        for name, places in by_parameter.items():
            stack.enter_context(_zeroed(model.get_parameter(name), places))
        stack.enter_context(_norms_over_rest(model, by_parameter))
        for owner, units in experts.items():
            stack.enter_context(_router_without(model.get_submodule(owner), torch.tensor(units)))
        for name in removed:
            if groups[name].kind.is_depth:
                for piece in groups[name].slices:
                    parameter = model.get_parameter(piece.parameter)
                    stack.enter_context(_zeroed(parameter, {(0,): torch.arange(parameter.shape[0])}))
        yield


@contextmanager
def silenced(model: nn.Module, groups: Mapping[str, UnitGroup], removed: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """Let the given units hand on zero inside the block, which the model may be trained in.

    The model computes what it does when they are `masked`, but their weights stay as they are: no gradient reaches them, nor
    what an adapter adds to them. Every unit must have readers.

    Args:
        model: in place.
        groups: the model's groups.
        removed: group name -> units.
    """
    with ExitStack() as stack:
        by_parameter = removed_places(groups, removed)
        stack.enter_context(_norms_over_rest(model, by_parameter))
        for name in removed:
            for reader in groups[name].readers:
                module = model.get_submodule(reader)
                if groups[name].kind.is_depth:
                    hook = module.register_forward_hook(lambda _, inputs, output: torch.zeros_like(output))
                else:
                    gone = torch.cat(list(by_parameter[f"{reader}.weight"].values()))
                    hook = module.register_forward_pre_hook(partial(_without_inputs, gone))
                stack.callback(hook.remove)
        yield


def _without_inputs(gone: torch.Tensor, _: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    inputs, *others = arguments
    return inputs.index_fill(-1, gone.to(inputs.device), 0), *others


@contextmanager
def _zeroed(parameter: nn.Parameter, places: Places) -> Iterator[None]:
    saved = parameter.detach().clone()
    with torch.no_grad():
        for dims, indices in places.items():
            flat = positions(parameter, dims).clone()
            flat[indices.to(flat.device)] = 0
            parameter.copy_(from_positions(flat, parameter.shape, dims))
    try:
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(saved)


@contextmanager
def _norms_over_rest(model: nn.Module, by_parameter: Mapping[str, Places]) -> Iterator[None]:
    """Have every norm that loses positions see only those that are left."""
    with ExitStack() as stack:
        norms = {
            name.rpartition(".")[0]: places[0,]
            for name, places in by_parameter.items()
            if "norm" in type(model.get_submodule(name.rpartition(".")[0])).__name__.lower()
        }
        for owner, gone in norms.items():
            stack.enter_context(_norm_over_rest(model.get_submodule(owner), gone))
        yield


@contextmanager
def _norm_over_rest(norm: nn.Module, gone: torch.Tensor) -> Iterator[None]:
    """Have a norm see only the positions that are left; its output is zero at the others."""
    parameters, kept = _rest(norm, gone)
    width = len(kept) + len(gone)
    narrow = copy.copy(norm)
    if isinstance(narrow, nn.LayerNorm):
        narrow.normalized_shape = (len(kept),)

    def forward(inputs: torch.Tensor, *arguments: Any) -> torch.Tensor:
        output = functional_call(_WithoutHooks(narrow), parameters(), (inputs[..., kept], *arguments))
        return output.new_zeros(*output.shape[:-1], width).index_copy(-1, kept, output)

    with _forward_replaced(norm, forward):
        yield


@contextmanager
def _router_without(router: nn.Module, gone: torch.Tensor) -> Iterator[None]:
    """Have a router choose among the experts that are left; it returns (logits, weights, chosen experts)."""
    parameters, kept = _rest(router, gone)

    def forward(*arguments: Any) -> tuple[torch.Tensor, ...]:
        logits, weights, chosen = functional_call(_WithoutHooks(router), parameters(), arguments)
        return logits, weights, kept[chosen]

    with _forward_replaced(router, forward):
        yield


def _rest(module: nn.Module, gone: torch.Tensor) -> tuple[Callable[[], dict[str, torch.Tensor]], torch.Tensor]:
    """Return what makes the parameters without the rows that are gone, and the rows that are left.

    The module's own parameters keep their shapes: units are scored while others are masked.
    """
    whole = dict(module.named_parameters(recurse=False))
    any_of_them = next(iter(whole.values()))
    kept = torch.ones(len(any_of_them), dtype=torch.bool).index_fill(0, gone, False).nonzero().flatten()
    kept = kept.to(any_of_them.device)
    return lambda: {f"module.{name}": parameter[kept] for name, parameter in whole.items()}, kept


class _WithoutHooks(nn.Module):
    """Runs the forward of a module's class: the hooks of the module have run, or will, around the one that replaces it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any) -> Any:
        return type(self.module).forward(self.module, *arguments)


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
