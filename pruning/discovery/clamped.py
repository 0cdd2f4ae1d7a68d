"""A copy of a model without its weights, in which linear maps give fixed numbers instead of computing.

A change that is made to the outputs of one map reaches the inputs of the next maps and goes no further, and a run costs
next to nothing. Norms let changes pass channel by channel, as if their statistics were frozen. Letters: B samples of
which the first is never changed, T tokens of which token AT is changed, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.discovery.modules import Unproved, is_experts, is_norm, map_sizes, parameter_sizes, weightless
from pruning.layout import is_linear

BATCH, TOKENS, AT = 32, 4, 1

STREAM = ""
"""The residual stream: as a source a layer's input, as a sink its output."""

FACTOR = -6
"""What an output is multiplied by to change it."""

ROUNDS = 2
"""Sets of fixed numbers: once in a while, a change is too small to be seen with one of them."""

Call = tuple[tuple, dict[str, Any]]
"""Arguments of a module by position and by name."""


class ClampedModel:
    """The copy, whose layers can be run on their own, again and again. Modules go by their names in the model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = weightless(model)
        self.widths: dict[str, int] = {}
        """Linear map, experts of a mixture, embedding or STREAM -> output channels."""

        self.norms: dict[str, Callable] = {}
        """Norm -> its own forward function."""

        self.norm_channels: dict[str, int] = {}
        self.embeddings: list[str] = []
        self._moved: Mapping[str, torch.Tensor] = {}
        self._seen: dict[str, torch.Tensor] = {}
        self._clamp()
        self._random = torch.Generator().manual_seed(0)
        self.outputs = self._draw()
        """Linear map, experts, embedding or STREAM -> its fixed outputs (T, C)."""

        self.layers, self._calls = self._find_layers()
        """Path of the decoder layers; how each was called."""

        self.widths[STREAM] = _states(self._calls[0]).shape[-1]
        self.rounds = tuple(self._draw() for _ in range(ROUNDS))
        self.outputs = self.rounds[0]

    def run(self, moved: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run the whole model; arguments and result as those of `run_layer`. Embeddings can be moved, too."""
        self._moved, self._seen = moved, {}
        vocabulary = self.model.get_input_embeddings().num_embeddings
        with torch.no_grad():
            self.model(torch.arange(2, 2 + TOKENS).remainder(vocabulary).expand(BATCH, TOKENS))  # type: ignore[arg-type]
        return self._seen

    def run_layer(self, index: int, moved: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run one layer.

        Args:
            index: of the layer.
            moved: linear map or STREAM -> (B, C) bool, the channels of its outputs that are changed at token AT.

        Returns:
            linear map, norm, router or STREAM -> what it was given (STREAM: the layer's output), (B, N, C) float64 where N
            are the tokens, or in norms tokens and heads.
        """
        self._moved, self._seen = moved, {}
        arguments, named = self._calls[index]
        if arguments:
            arguments = (self._give(STREAM), *arguments[1:])
        else:
            named = named | {"hidden_states": self._give(STREAM)}
        with torch.no_grad():
            output = self.model.get_submodule(f"{self.layers}.{index}")(*arguments, **named)
        self._seen[STREAM] = output if isinstance(output, torch.Tensor) else output[0]
        return self._seen

    @contextmanager
    def giving(self, outputs: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Have maps give other fixed outputs, (T, C), inside the block."""
        kept = self.outputs
        self.outputs = {**kept, **outputs}
        try:
            yield
        finally:
            self.outputs = kept

    def maps(self, index: int) -> list[str]:
        """Return the linear maps of a layer, and the experts of its mixture."""
        return [name for name in self.widths if name.startswith(f"{self.layers}.{index}.")]

    def _draw(self) -> dict[str, torch.Tensor]:
        """Return fixed outputs (T, C) for all: positive, so that no activation function hides a change."""
        shapes = {name: (TOKENS, width) for name, width in self.widths.items()}
        numbers = {name: torch.rand(shape, generator=self._random).double() for name, shape in shapes.items()}
        return {name: 0.25 + 0.5 * values for name, values in numbers.items()}

    def _clamp(self) -> None:
        """Put fixed numbers, or watching eyes, where modules computed."""
        head = self.model.get_output_embeddings()
        for name, module in self.model.named_modules():
            if is_linear(module) or is_experts(module):
                columns, rows = map_sizes(name, module)
                self.widths[name] = 1 if module is head else rows
                module.forward = self._fixed(name, columns)
            elif is_norm(module):
                self.norms[name] = module.forward
                module.forward = self._frozen(name)
            elif isinstance(module, nn.Embedding):
                self.embeddings.append(name)
                self.widths[name] = module.embedding_dim
                module.register_forward_hook(lambda *_, name=name: self._give(name))
            elif sizes := parameter_sizes(module):
                if list(sizes) != ["weight"] or len(sizes["weight"]) != 2:
                    raise Unproved(name, f"holds parameters that no layout describes: {sizes}")
                module.register_forward_pre_hook(lambda _, given, name=name: self._see(name, given[0]))

    def _fixed(self, name: str, columns: int) -> Callable:
        def forward(states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            if states.shape[-1] != columns:
                raise Unproved(name, f"has {columns} columns, but is given {states.shape[-1]} channels")
            self._see(name, states)
            return self._give(name).view(*states.shape[:-1], -1)

        return forward

    def _frozen(self, name: str) -> Callable:
        def forward(states: torch.Tensor, *others: Any) -> torch.Tensor:
            if others:
                raise Unproved(name, "is a norm that takes more than the states that it normalises")
            self.norm_channels[name] = states.shape[-1]
            samples = states.reshape(BATCH, -1, *states.shape[1:])
            before = self._seen.get(name, samples.new_empty(BATCH, 0, states.shape[-1]))
            self._seen[name] = torch.cat((before, samples.reshape(BATCH, -1, states.shape[-1])), dim=1)
            return (self.norms[name](samples[0]) + (samples - samples[:1])).reshape(states.shape)

        return forward

    def _see(self, name: str, states: torch.Tensor) -> None:
        if name in self._seen:
            raise Unproved(name, "is used more than once in a forward pass")
        if states.shape[:-1].numel() != BATCH * TOKENS:
            raise Unproved(name, f"is given {states.shape[:-1].numel()} states where there are {BATCH * TOKENS} tokens")
        self._seen[name] = states.reshape(BATCH, TOKENS, -1)

    def _give(self, name: str) -> torch.Tensor:
        """Return the outputs (B, T, C) of a map, changed where they are to be."""
        outputs = self.outputs[name].expand(BATCH, -1, -1).clone()
        if name in self._moved:
            outputs[:, AT] *= torch.where(self._moved[name], FACTOR, 1)
        return outputs

    def _find_layers(self) -> tuple[str, list[Call]]:
        """Return the path of the list of modules that run one after the other and hold most weights, and their calls."""
        calls: dict[str, list[tuple[int, Call]]] = {}
        hooks = []
        for path, modules in self.model.named_modules():
            if isinstance(modules, nn.ModuleList) and len({type(module) for module in modules}) == 1:
                for index, module in enumerate(modules):
                    record = _recorder(calls.setdefault(path, []), index)
                    hooks.append(module.register_forward_pre_hook(record, with_kwargs=True))
        self.run({})
        for hook in hooks:
            hook.remove()
        weights = {}
        for path, found in calls.items():
            modules = self.model.get_submodule(path)
            in_order = [index for index, _ in found] == list(range(len(list(modules.children()))))
            if in_order and all(_states(call).shape[:-1] == (BATCH, TOKENS) for _, call in found):
                weights[path] = sum(parameter.numel() for parameter in modules.parameters() if parameter.ndim > 1)
        if not weights:
            raise Unproved("", "no list of equal modules runs one after the other over the tokens")
        best = max(weights, key=weights.__getitem__)
        return best, [call for _, call in calls[best]]


def _recorder(calls: list[tuple[int, Call]], index: int) -> Callable:
    def record(_: nn.Module, arguments: tuple, named: dict[str, Any]) -> None:
        calls.append((index, (arguments, named)))

    return record


def _states(call: Call) -> torch.Tensor:
    """Return the hidden states (B, T, D) among a layer's arguments; something empty where there are none."""
    arguments, named = call
    states = arguments[0] if arguments else named.get("hidden_states")
    return states if isinstance(states, torch.Tensor) else torch.empty(0)
