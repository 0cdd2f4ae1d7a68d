"""What each parameter costs, as a function of its shape: numbers to hold, or multiply-accumulates to run.

Cutting changes shapes only, so the same functions count the model as it is and as a plan would leave it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from transformers import PreTrainedModel

from pruning.layout import DecoderLayout, decoder_layers, find_module, is_linear, output_dim, weight_of

Cost = Callable[[Sequence[int]], int]
"""Shape of a parameter -> what it costs."""


def parameter_costs(model: PreTrainedModel, prefix: str = "") -> dict[str, Cost]:
    """Return, for every parameter whose name begins with `prefix`, the count of its numbers; tied ones stand once."""
    return {name: math.prod for name, _ in model.named_parameters() if name.startswith(prefix)}


def mac_costs(model: PreTrainedModel, layout: DecoderLayout, tokens: int) -> dict[str, Cost]:
    """Return the multiply-accumulates that parameters cause in one sequence of T tokens; those that cause none are left out.

    A weight of a linear map is used once per token. An attention of H heads of dimension d adds 2 H d T^2, for scores and
    values, to its output projection, which has H d inputs; causal and sliding masks save nothing. Of E stacked experts a
    token runs through top_k. Embeddings are looked up; norms, biases and rotary embedding are not counted.

    Args:
        model: the model.
        layout: its layout.
        tokens: T.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    costs: dict[str, Cost] = {}
    for module in model.modules():
        if is_linear(module):
            costs[names[id(weight_of(module))]] = _linear(tokens)
    for layer in decoder_layers(model, layout):
        output = find_module(layer, layout.attention.output)
        if is_linear(output):
            assert output is not None
            costs[names[id(weight_of(output))]] = _attention_output(tokens, 1 - output_dim(output))
        experts = find_module(layer, layout.experts.module) if layout.experts else None
        if layout.experts and experts is not None:
            router = layer.get_submodule(layout.experts.router)
            costs[names[id(weight_of(router))]] = _linear(tokens)
            stacked = [parameter for parameter in experts.parameters() if parameter.ndim == 3]
            costs |= {names[id(parameter)]: _experts(tokens, int(router.top_k)) for parameter in stacked}  # type: ignore[arg-type]
    return costs


def total_cost(model: PreTrainedModel, costs: Mapping[str, Cost]) -> int:
    """Return what the whole model costs."""
    return sum(cost(model.get_parameter(name).shape) for name, cost in costs.items())


def _linear(tokens: int) -> Cost:
    return lambda shape: tokens * math.prod(shape)


def _attention_output(tokens: int, inputs: int) -> Cost:
    return lambda shape: tokens * math.prod(shape) + 2 * tokens**2 * shape[inputs]


def _experts(tokens: int, top_k: int) -> Cost:
    return lambda shape: tokens * top_k * math.prod(shape[1:])
