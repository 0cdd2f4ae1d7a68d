"""Holding units at zero for as long as a block of code runs: what cutting them must be equal to.

A norm over units (the hidden width; OLMo 2's query and key norms) takes its statistics over the units that are left, and
a router chooses among the experts that are left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

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
        norms: dict[str, torch.Tensor] = {}
        for name, places in removed_places(groups, removed).items():
            owner = name.rpartition(".")[0]
            if "norm" in type(model.get_submodule(owner)).__name__.lower():
                norms[owner] = places[0,]
            elif owner not in experts:
                stack.enter_context(_zeroed(model.get_parameter(name), places))
        for owner, gone in norms.items():
            stack.enter_context(_norm_over_rest(model.get_submodule(owner), gone))
        for owner, units in experts.items():
            stack.enter_context(_router_without(model.get_submodule(owner), units))
        for name in removed:
            if groups[name].kind.is_depth:
                for piece in groups[name].slices:
                    parameter = model.get_parameter(piece.parameter)
                    stack.enter_context(_zeroed(parameter, {(0,): torch.arange(parameter.shape[0])}))
        yield


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
def _norm_over_rest(norm: nn.Module, gone: torch.Tensor) -> Iterator[None]:
    """Have a norm see only the positions that are left; its output is zero at the others."""
    whole = dict(norm.named_parameters(recurse=False))
    width = len(next(iter(whole.values())))
    kept = torch.tensor(sorted(set(range(width)) - set(gone.tolist())), device=next(iter(whole.values())).device)

    def narrow(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (arguments[0][..., kept], *arguments[1:])

    def widen(_: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return output.new_zeros(*output.shape[:-1], width).index_copy(-1, kept, output)

    _set_norm(norm, {name: nn.Parameter(parameter.detach()[kept]) for name, parameter in whole.items()})
    hooks = [norm.register_forward_pre_hook(narrow), norm.register_forward_hook(widen)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        _set_norm(norm, whole)


def _set_norm(norm: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        setattr(norm, name, parameter)
        if isinstance(norm, nn.LayerNorm):
            norm.normalized_shape = tuple(parameter.shape)


@contextmanager
def _router_without(router: nn.Module, units: Sequence[int]) -> Iterator[None]:
    """Have a router choose among the experts that are left; it returns (logits, weights, chosen experts)."""
    whole = router.weight
    assert isinstance(whole, nn.Parameter)
    kept = torch.tensor(sorted(set(range(len(whole))) - set(units)), device=whole.device)

    def rename(_: nn.Module, arguments: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (*output[:2], kept[output[2]])

    router.weight = nn.Parameter(whole.detach()[kept])
    hook = router.register_forward_hook(rename)
    try:
        yield
    finally:
        hook.remove()
        router.weight = whole
