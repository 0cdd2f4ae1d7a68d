"""Pruning as noise: what is done to some units of a model for a while instead of removing them.

Source: Bartoldson, Morcos, Barbu, Erlebacher, "The Generalization-Stability Tradeoff in Neural Network Pruning", NeurIPS
2020, where filters are zeroed, or given Gaussian noise, for a number of training batches after every event. Letters: U units
of a group, P positions in a parameter, R the rest of its shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pruning.masking import masked, silenced
from pruning.units import UnitGroup, from_positions, positions, removed_places


@dataclass(frozen=True)
class Part:
    """Some positions of one parameter, and what stood there."""

    parameter: nn.Parameter
    dims: tuple[int, ...]
    indices: torch.Tensor
    """(P,), counted through `dims`."""

    values: torch.Tensor
    """(P, R)."""

    @torch.no_grad()
    def write(self, values: torch.Tensor) -> None:
        """Put `values`, (P, R) or a single one, there."""
        flat = positions(self.parameter, self.dims).clone()
        flat[self.indices] = values.to(flat)  # training may have made it float32
        self.parameter.copy_(from_positions(flat, self.parameter.shape, self.dims))


class Noise:
    """What happens to the targeted units of one event. Holds the parameters themselves: adapters may rename them."""

    def __init__(
        self,
        model: nn.Module,
        groups: Mapping[str, UnitGroup],
        removed: Mapping[str, Sequence[int]],
        settings: Mapping[str, Any],
    ) -> None:
        """Take note of the units' weights.

        Args:
            model: as it is before the event.
            groups: its groups.
            removed: group name -> targeted units.
            settings: of the removal, as plain values; `steps` says for how many optimiser steps.
        """
        self.model, self.groups, self.removed = model, groups, removed
        self.settings = dict(settings)
        self.steps = int(settings["steps"])
        self.parts = targeted_parts(model, groups, removed)

    @property
    def identity(self) -> dict[str, Any]:
        """What the outcome depends on, as plain values."""
        return {"noise": type(self).__name__, **self.settings, "units": {k: list(v) for k, v in self.removed.items()}}

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let the model compute, inside the block, what it does directly after the event; its weights show it."""
        raise NotImplementedError
        yield

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Act on the model inside the block, which trains it; afterwards the units have come back."""
        raise NotImplementedError
        yield

    def renew(self) -> None:
        """Go on to the next optimiser step inside `acting`."""

    def restore(self) -> None:
        """Give the units the weights back that they had before the event."""
        for part in self.parts.values():
            part.write(part.values)


class Zero(Noise):
    """The units hand on zero."""

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Hold the units' weights at zero; see the base class."""
        with masked(self.model, self.groups, self.removed):
            yield

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Silence the units; see the base class.

        Units that re-enter at zero get their weights back but for those of the maps that read them. With all at zero no
        gradient would reach any of them: a gated channel is down (silu(gate x) * (up x)), and each factor's gradient is a
        product with the others.
        """
        with silenced(self.model, self.groups, self.removed):
            yield
        self.restore()
        if self.settings["reentry"] == "zero":
            readers = {reader for name in self.removed for reader in self.groups[name].readers}
            for (name, _), part in self.parts.items():
                if name.rpartition(".")[0] in readers:
                    part.write(torch.zeros(()))


class Gaussian(Noise):
    """The units' matrices get Gaussian noise, as large as the other units' weights are spread.

    s is `scale` times the standard deviation of the untargeted units of the same group in the same matrix (the paper: of the
    first untargeted filter of the layer). One draw for all steps, or another one on top at every step: a random walk.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: nn.Module,
        groups: Mapping[str, UnitGroup],
        removed: Mapping[str, Sequence[int]],
        settings: Mapping[str, Any],
    ) -> None:
        """Take note of the units' weights, and of the spread of the others; see the base class."""
        super().__init__(model, groups, removed, settings)
        self.spread = {
            key: settings["scale"] * float(others.double().std())
            for key, others in untargeted_values(model, groups, removed).items()
        }
        self._draw = torch.Generator()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Add the first draw; see the base class."""
        self._draw.manual_seed(self.settings["seed"])
        self._add()
        try:
            yield
        finally:
            self.restore()

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Add the first draw, and others by `renew`; the units keep the noise unless they are to be restored."""
        self._draw.manual_seed(self.settings["seed"])
        self._add()
        yield
        if self.settings["restore"]:
            self.restore()

    def renew(self) -> None:
        """Take another step of the walk."""
        if self.settings["walk"]:
            self._add()

    @torch.no_grad()
    def _add(self) -> None:
        for key, spread in self.spread.items():
            part = self.parts[key]
            now = positions(part.parameter, part.dims)[part.indices]
            drawn = torch.randn(now.shape, generator=self._draw, dtype=torch.float32)
            part.write(now + (spread * drawn).to(now))


Key = tuple[str, tuple[int, ...]]
"""Name of a parameter, and the dimensions that units lie along."""


def targeted_parts(
    model: nn.Module, groups: Mapping[str, UnitGroup], removed: Mapping[str, Sequence[int]]
) -> dict[Key, Part]:
    """Return the parts of all parameters that the given units take up, with what stands there now."""
    found = {name: dict(places) for name, places in removed_places(groups, removed).items()}
    for name in removed:
        if groups[name].kind.is_depth:
            for piece in groups[name].slices:
                found[piece.parameter] = {(0,): torch.arange(len(model.get_parameter(piece.parameter)))}
    parts = {}
    for name, places in found.items():
        parameter = model.get_parameter(name)
        for dims, indices in places.items():
            indices = indices.to(parameter.device)
            values = positions(parameter.detach(), dims)[indices].clone()
            parts[name, dims] = Part(parameter, dims, indices, values)
    return parts


def untargeted_values(
    model: nn.Module, groups: Mapping[str, UnitGroup], removed: Mapping[str, Sequence[int]]
) -> dict[Key, torch.Tensor]:
    """Return the numbers of the other units of the same groups, by matrix; (units * positions * rest,) each."""
    others: dict[str, list[int]] = {
        name: sorted(set(range(groups[name].num_units)) - set(units)) for name, units in removed.items()
    }
    return {
        (name, dims): positions(model.get_parameter(name).detach(), dims)[indices.to(model.get_parameter(name).device)]
        for name, places in removed_places(groups, others).items()
        for dims, indices in places.items()
        if model.get_parameter(name).ndim > 1
    }
